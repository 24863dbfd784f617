"""Waits for a project's containers: for their end, health, output and events, and the conditions of dependencies."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import ContainerTimeout, StateError
from containerkit.project.shapes import duration_s

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator

    from containerkit.project.journal import Happening, Journal, LogLine
    from containerkit.project.plan import Step
    from containerkit.project.project import Project
    from containerkit.project.replica import Replica

__all__ = ["Waiting"]

_POLL_S: Final = 0.5
_SETTLED_S: Final = 0.2
"""A command without a health check is ready after it has run so long. Most that fail at their start have ended then."""


class Waiting:
    """The part of a stack that waits."""

    project: Project
    _journal: Journal[LogLine]
    _happened: Journal[Happening]
    _changed: threading.Condition

    def containers(self, service: str | None = None) -> list[Replica]:
        """Return the containers of a service, or all, by name."""
        raise NotImplementedError

    def check_names(self, services: Collection[str]) -> None:
        """Refuse names that no service has."""
        raise NotImplementedError

    def events(
        self,
        *services: str,
        since: float = 0.0,
        until: float | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Happening]:
        """Iterate over what happens to the containers, until the project ends.

        Args:
            services: the services to include (default: all).
            since, until, stop: see :meth:`containerkit.project.journal.Journal.read`.
        """
        self.check_names(services)
        return self._happened.read(services, follow=True, since=since, until=until, stop=stop)

    def logs(
        self,
        *services: str,
        follow: bool = False,
        since: float = 0.0,
        until: float | None = None,
        tail: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[LogLine]:
        """Iterate over the output of the containers; see :meth:`containerkit.project.journal.Journal.read`."""
        self.check_names(services)
        return self._journal.read(services, follow=follow, since=since, until=until, tail=tail, stop=stop)

    def wait(self, *services: str, timeout: float | None = None) -> dict[str, int]:
        """Wait until the containers of services (default: all) have ended; return their statuses by name.

        Raises:
            ContainerTimeout: some are still running.
        """
        self.check_names(services)

        def ended() -> dict[str, int] | None:
            chosen = [each for each in self.containers() if not services or each.service in services]
            codes = {each.name: each.exit_code for each in chosen if each.status == "exited"}
            return {name: code or 0 for name, code in codes.items()} if len(codes) == len(chosen) else None

        found: dict[str, int] = self._until(ended, timeout, "end")
        return found

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until all containers have run for 0.2 s or ended with status 0, and those with a check are healthy.

        Raises:
            ContainerTimeout: they are not ready in time.
            StateError: one has failed, or is unhealthy.
        """

        def ready() -> bool | None:
            return True if all(self._is_ready(each) for each in self.containers()) else None

        self._until(ready, timeout, "be ready", poll_s=_SETTLED_S / 4)

    def _is_ready(self, each: Replica) -> bool:
        if each.status == "exited" and each.exit_code and not each.was_stopped:
            raise StateError(f"{each.name}: it has ended with status {each.exit_code}{self._last_words(each)}")
        if each.health == "unhealthy":
            raise StateError(f"{each.name}: it is unhealthy{self._last_words(each)}")
        if each.status == "running" and each.health is None:
            return time.time() - each.started_at >= _SETTLED_S
        return each.status == "exited" or (each.status == "running" and each.health == "healthy")

    def _last_words(self, each: Replica) -> str:
        lines = [line.text for line in self._journal.read((each.service,)) if line.container == each.name][-3:]
        return f": {' / '.join(lines)}" if lines else ""

    def _until(self, look: Callable[[], Any], timeout: float | None, what: str, *, poll_s: float = _POLL_S) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while (found := look()) is None:
                left = poll_s if deadline is None else min(poll_s, deadline - time.monotonic())
                if left <= 0:
                    raise ContainerTimeout([f"wait for {self.project.name} to {what}"], timeout or 0)
                self._changed.wait(left)
        return found

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _wait_step(self, step: Step, errors: list[BaseException]) -> None:
        of = [each for each in self.containers(step.service) if step.target in (step.service, each.name)]
        wanted, _, time_text = step.detail.partition(" ")
        end = time.monotonic() + duration_s(time_text)

        def met() -> bool | None:
            if errors:
                return True
            if wanted == "running_for":
                for each in of:
                    self._is_ready(each)
            if time_text:
                return True if time.monotonic() >= end else None
            return True if all(_meets(each, wanted) for each in of) else None

        self._until(met, None, wanted)


def _meets(each: Replica, condition: str) -> bool:
    """Return whether a container meets a condition.

    Raises:
        StateError: it can no longer meet it.
    """
    if condition == "service_completed_successfully":
        if each.status == "exited" and each.exit_code:
            raise StateError(f"{each.name}: it should complete, but has ended with status {each.exit_code}")
        return each.status == "exited"
    if each.health is None:
        raise StateError(f"{each.name}: it should become healthy, but has no health check")
    if each.status == "exited":
        raise StateError(f"{each.name}: it should become healthy, but has ended with status {each.exit_code}")
    if each.health == "unhealthy":
        raise StateError(f"{each.name}: it should become healthy, but is unhealthy")
    return each.health == "healthy"
