"""Health checks: run the command by which an image defines whether its container works."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from containerkit.errors import ContainerTimeout, SetupError, SpecError

if TYPE_CHECKING:
    from containerkit.container.lifecycle import Container
    from containerkit.image.config import Defaults, Healthcheck

__all__ = ["Health", "Probe"]

_OUTPUT_BYTES: Final = 4096
_NS: Final = 1_000_000_000
_INTERVAL_S, _TIMEOUT_S, _START_INTERVAL_S, _RETRIES = 30.0, 30.0, 5.0, 3


class Probe(NamedTuple):
    """One check.

    Attributes:
        passed: whether its command ended with status 0.
        returncode: its status, or None if it timed out or could not be started.
        output: the end of its output.
        duration_s: its duration in seconds.
    """

    passed: bool
    returncode: int | None
    output: str
    duration_s: float


class Health:
    """The health of a container. Nothing happens by itself: :meth:`check` checks once, :meth:`wait` checks repeatedly.

    ::

        health = image.healthcheck(container)
        if not health.wait(timeout=60):
            raise RuntimeError(health.last.output)

    Args:
        container: a running container.
        defaults: the defaults of its image.

    Attributes:
        status: ``"starting"``, ``"healthy"`` or ``"unhealthy"``.
        failures: the number of consecutive failed checks.
        last: the last check, or None.

    Raises:
        SpecError: the image defines no check.

    Source: Docker image specification 1.2, "Healthcheck"; Dockerfile reference, "HEALTHCHECK".
    """

    def __init__(self, container: Container, defaults: Defaults) -> None:
        check = defaults.healthcheck
        self.argv = () if check is None else _argv(check, defaults)
        if check is None or not self.argv:
            raise SpecError("the image has no health check")
        self.container = container
        self.options = defaults.options()
        self.interval_s = check.interval_ns / _NS or _INTERVAL_S
        self.timeout_s = check.timeout_ns / _NS or _TIMEOUT_S
        self.start_period_s = check.start_period_ns / _NS
        self.start_interval_s = check.start_interval_ns / _NS or _START_INTERVAL_S
        self.retries = check.retries or _RETRIES
        self.status: Literal["starting", "healthy", "unhealthy"] = "starting"
        self.failures = 0
        self.last: Probe | None = None
        self._began = time.monotonic()

    def __repr__(self) -> str:
        return f"<Health of {self.container!r}: {self.status}>"

    def check(self) -> bool:
        """Run the check once, within its timeout.

        Returns:
            Whether it passed. A failure in the start period counts only after a check has passed.

        Raises:
            StateError: the container is not running.
        """
        self.last = self._probe()
        if self.last.passed:
            self.status, self.failures = "healthy", 0
        elif self.status != "starting" or not self._is_starting():
            self.failures += 1
            if self.failures >= self.retries:
                self.status = "unhealthy"
        return self.last.passed

    def wait(self, timeout: float | None = None) -> bool:
        """Check at the image's intervals until the container is healthy or unhealthy.

        Args:
            timeout: in seconds. Default: none.

        Returns:
            Whether it is healthy. False also if the timeout expires.

        Raises:
            StateError: the container is no longer running.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self.check() and self.status != "unhealthy":
            pause = self.start_interval_s if self._is_starting() else self.interval_s
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                pause = min(pause, left)
            time.sleep(pause)
        return self.status == "healthy"

    def _is_starting(self) -> bool:
        return time.monotonic() - self._began < self.start_period_s

    def _probe(self) -> Probe:
        began = time.monotonic()
        code: int | None = None
        written: str | bytes
        try:
            done = self.container.run(self.argv, stderr=-2, timeout=self.timeout_s, **self.options)
            code, written = done.returncode, done.stdout
        except ContainerTimeout as error:
            written = error.stdout or b""
        except SetupError as error:
            written = str(error)
        end = written[-_OUTPUT_BYTES:]
        output = end if isinstance(end, str) else end.decode("utf-8", "replace")
        return Probe(code == 0, code, output, time.monotonic() - began)


def _argv(check: Healthcheck, defaults: Defaults) -> tuple[str, ...]:
    kind, words = (check.test[0], check.test[1:]) if check.test else ("NONE", ())
    if kind == "CMD-SHELL":
        return (*(defaults.shell or ("/bin/sh", "-c")), *words)
    return words if kind == "CMD" else ()
