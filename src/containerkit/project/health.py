"""Repeated health checks of a container: a command inside, a TCP connection or an HTTP request."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit.errors import ContainerError, ContainerTimeout, SetupError, StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.container.lifecycle import Container
    from containerkit.project.replica import Replica

__all__ = ["Check", "watch"]

_FIRST_FAILURE: Final = 400
_LEAST_SUCCESS: Final = 200


@attrs.frozen(kw_only=True)
class Check:
    """A health check of a container, and how often it is repeated. Times are in seconds.

    Attributes:
        argv: a command inside that must exit with status 0; or
        port: a TCP port that must accept connections, and
        path: a path that an HTTP server at this port must serve with a status from 200 to 399.
        scheme: ``"http"`` or ``"https"``, whose certificate is not checked.
        host: the address of the port.
        delay_s: the time before the first check.
        retries: after so many failures in a row the container is unhealthy.
        successes: after so many successes in a row it is healthy.
    """

    argv: tuple[str, ...] = ()
    port: int = 0
    path: str | None = None
    scheme: Literal["http", "https"] = "http"
    host: str = "127.0.0.1"
    delay_s: float = 0.0
    interval_s: float = 30.0
    timeout_s: float = 30.0
    retries: int = 3
    successes: int = 1
    start_period_s: float = 0.0
    start_interval_s: float = 5.0

    def passes(self, container: Container, options: Mapping[str, Any]) -> bool:
        """Check once, in the calling thread.

        Args:
            container: the container.
            options: of commands in it.
        """
        try:
            if self.argv:
                return container.run(self.argv, timeout=self.timeout_s, **options).returncode == 0
            return self._answers(container)
        except (ContainerTimeout, SetupError, StateError, OSError):
            return False

    def _answers(self, container: Container) -> bool:
        """Connect from within the container's network if this process may enter it, otherwise by a program inside."""
        with container.namespace("network") as network, ExitStack() as visit:
            try:
                visit.enter_context(network.enter())
            except SetupError:  # an unprivileged user could not return from another network namespace
                return container.run(self._command(), timeout=self.timeout_s).returncode == 0
            return self._connects() if self.path is None else self._serves()

    def _connects(self) -> bool:
        socket.create_connection((self.host, self.port), self.timeout_s).close()
        return True

    def _serves(self) -> bool:
        import http.client  # compose files have no such checks
        import ssl

        if self.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            made: http.client.HTTPConnection = http.client.HTTPSConnection(
                self.host, self.port, timeout=self.timeout_s, context=context
            )
        else:
            made = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            made.request("GET", self.path or "/", headers={"User-Agent": "containerkit"})
            return _LEAST_SUCCESS <= made.getresponse().status < _FIRST_FAILURE
        except http.client.HTTPException:
            return False
        finally:
            made.close()

    def _command(self) -> list[str]:
        """Return a command for a shell. The address is an argument of it, so that no part of it is read as a script."""
        if self.path is None:
            return ["/bin/sh", "-c", 'nc -z "$0" "$1" </dev/null', self.host, str(self.port)]
        url = f"{self.scheme}://{self.host}:{self.port}{self.path}"
        return ["/bin/sh", "-c", 'wget -q -O /dev/null "$0" || curl -fsSk -o /dev/null "$0"', url]


def watch(
    replica: Replica,
    options: Mapping[str, Any],
    ended: threading.Event,
    *,
    ready: Check | None,
    alive: Check | None,
    started: Check | None,
) -> None:
    """Check a container until it ends.

    Args:
        replica: the container.
        options: of commands in it.
        ended: an event that ends the checks.
        ready: decides whether it is healthy.
        alive: if it fails, the command is restarted.
        started: the others begin once this has passed; if it fails, the command is restarted.
    """
    _Watch(replica, options, ended, started).run(ready, alive)


class _Watch:
    def __init__(
        self, replica: Replica, options: Mapping[str, Any], ended: threading.Event, started: Check | None
    ) -> None:
        self._replica, self._options, self._ended, self._started = replica, options, ended, started

    def run(self, ready: Check | None, alive: Check | None) -> None:
        if not self._has_started():
            return
        if alive is not None:
            threading.Thread(target=self._keep_alive, args=(alive,), name=self._replica.name, daemon=True).start()
        if ready is not None:
            self._follow(ready)
        elif self._started is not None:
            self._replica.set_health("healthy")

    def _goes_on(self) -> bool:
        return not self._ended.is_set() and self._replica.status != "exited"

    def _passes(self, check: Check) -> bool:
        return self._replica.status == "running" and check.passes(self._replica.container, self._options)

    def _has_started(self) -> bool:
        """Wait for the first check. Return False if the container ends before it passes."""
        return self._started is None or self._until_it_fails(self._started, stops_at_success=True)

    def _keep_alive(self, check: Check) -> None:
        while self._goes_on():
            self._until_it_fails(check)
            if self._goes_on() and not self._has_started():
                return

    def _until_it_fails(self, check: Check, *, stops_at_success: bool = False) -> bool:
        """Check until it has failed often enough, then restart the command."""
        failures = 0
        self._ended.wait(check.delay_s)
        while self._goes_on():
            passed = self._passes(check)
            if passed and stops_at_success:
                return True
            if self._replica.status == "running":
                failures = 0 if passed else failures + 1
            if failures >= check.retries:
                with suppress(ContainerError):
                    self._replica.restart()
                if not stops_at_success:
                    return False
                failures = 0
                self._ended.wait(check.delay_s)
            self._ended.wait(check.interval_s)
        return False

    def _follow(self, check: Check) -> None:
        replica = self._replica
        began, failures, successes = time.monotonic(), 0, 0
        self._ended.wait(check.delay_s)
        while self._goes_on():
            starting = replica.health == "starting" and time.monotonic() - began < check.start_period_s
            # The first check is early: most containers are ready at once, and others may wait for them.
            pause = check.start_interval_s if starting else check.interval_s
            if self._passes(check):
                failures, successes = 0, successes + 1
                if successes >= check.successes:
                    replica.set_health("healthy")
            elif not starting and replica.status == "running":
                failures, successes = failures + 1, 0
                if failures >= check.retries:
                    replica.set_health("unhealthy")
            self._ended.wait(pause)
