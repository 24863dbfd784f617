"""Events of a group, reported when they happen. The kernel wakes the waiting process; there is no polling.

On version 2 a file changes and poll(2) reports POLLPRI. Version 1's memory controller signals an eventfd when the group
runs out of memory. The kill follows a moment later and signals nothing, so the processes of the group are watched
through pidfds until one of them ends.

Source: "Event Notification" and the ``*.events`` files in Documentation/admin-guide/cgroup-v2.rst; "OOM Control" in
Documentation/admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

import os
import select
import time
from collections import deque
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Final, Literal, Self

import attrs

from containerkit.cgroup.directory import refused
from containerkit.cgroup.statfiles import flat
from containerkit.descriptors import Closing
from containerkit.errors import SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.pressure import PressureTrigger, Resource, TriggerWatch
    from containerkit.cgroup.view import GroupView

__all__ = ["KINDS", "Event", "EventKind", "Events"]

EventKind = Literal[
    "oom", "oom_kill", "memory_high", "memory_max", "pids_max", "frozen", "thawed", "populated", "empty", "pressure"
]

_MEMORY: Final[dict[str, EventKind]] = {
    "oom": "oom",
    "oom_kill": "oom_kill",
    "high": "memory_high",
    "max": "memory_max",
}
_PIDS: Final[dict[str, EventKind]] = {"max": "pids_max"}
_STATES: Final[dict[str, tuple[EventKind, EventKind]]] = {
    "frozen": ("thawed", "frozen"),
    "populated": ("empty", "populated"),
}

KINDS: Final = frozenset({*_MEMORY.values(), *_PIDS.values(), "thawed", "frozen", "empty", "populated"})
"""The kinds that can be requested by name. ``pressure`` is requested with triggers."""


@attrs.frozen(kw_only=True)
class Event:
    """An event of a group.

    Attributes:
        kind: ``oom``, ``oom_kill``, ``memory_high``, ``memory_max``, ``pids_max``, ``frozen``, ``thawed``,
            ``populated``, ``empty`` or ``pressure``.
        count: how many times it happened since the last event of this kind was reported.
        resource: ``cpu``, ``memory`` or ``io`` for a pressure event, otherwise None.
    """

    kind: EventKind
    count: int = 1
    resource: Resource | None = None


class Events(Closing):
    """The events of a group from now on: an iterator, an asynchronous iterator and a context manager.

    The iteration ends when this object or its group is closed. The object owns its descriptors.
    """

    __slots__ = ("__weakref__", "_epoll", "_kinds", "_oom", "_queue", "_sources", "_stop", "_victims", "group")

    def __init__(
        self, group: GroupView, kinds: Iterable[str] | None = None, triggers: Iterable[PressureTrigger] = ()
    ) -> None:
        wanted = None if kinds is None else frozenset(kinds)
        if wanted is not None and not wanted <= KINDS:
            raise SpecError(f"kinds: {sorted(wanted - KINDS)} are not among {', '.join(sorted(KINDS))}")
        self.group = group.name
        self._kinds = KINDS if wanted is None else wanted
        self._queue: deque[Event] = deque()
        self._sources: dict[int, _Source] = {}
        self._victims: set[int] = set()
        self._oom: _OutOfMemory | None = None
        self._epoll = select.epoll()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._epoll.register(self._stop, select.EPOLLIN)
            self._watch(group, wanted)
            for trigger in triggers:
                self._watch_pressure(group.pressure.trigger(trigger))
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Events of {self.group} {'closed' if self._stop < 0 else f'fd {self._epoll.fileno()}'}>"

    # Setting up ----------------------------------------------------------------------------------------------------

    def _watch(self, group: GroupView, wanted: frozenset[str] | None) -> None:
        """Open the sources of the requested kinds. Every kind that was named must have a source."""
        told: set[str] = set()
        for part in group.parts:
            there = part.available()
            if part.version == 2:
                told |= self._add_file(part, "cgroup.events", {}, _STATES)
            if "memory" in there and part.version == 2:
                told |= self._add_file(part, "memory.events", _MEMORY, {})
            elif "memory" in there and self._kinds & {"oom", "oom_kill"}:
                self._oom = _OutOfMemory(part, group)
                self._sources[self._oom.eventfd] = self._oom
                self._epoll.register(self._oom.eventfd, select.EPOLLIN)
                told |= {"oom", "oom_kill"}
            if "pids" in there and part.version == 2:
                told |= self._add_file(part, "pids.events", _PIDS, {})
        if wanted is not None and wanted - told:
            raise _no_source(wanted - told, group.path)

    def _add_file(
        self, part: Directory, file: str, counts: dict[str, EventKind], states: dict[str, tuple[EventKind, EventKind]]
    ) -> set[EventKind]:
        kinds = {*counts.values(), *(kind for pair in states.values() for kind in pair)}
        if not kinds & self._kinds or not part.exists(file):
            return set()
        source = _KeyedFile(part.open_file(file, os.O_RDONLY), counts, states)
        self._sources[source.fd] = source
        self._epoll.register(source.fd, select.EPOLLPRI)
        return kinds & source.kinds()

    def _watch_pressure(self, watch: TriggerWatch) -> None:
        self._sources[watch.fileno()] = _Pressed(watch)
        self._epoll.register(watch.fileno(), select.EPOLLPRI)

    # Waiting -------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when :meth:`wait` has something to check."""
        return self._epoll.fileno()

    def wait(self, timeout: float | None = None) -> Event | None:
        """Return the next event, or None if the timeout expires or this object or its group is closed.

        Args:
            timeout: in seconds. 0 does not wait. Default: no timeout.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._queue and self._stop >= 0:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left < 0 and timeout:
                return None
            ready = self._epoll.poll(-1 if left is None else max(0.0, left))
            for fd, _ in ready:
                self._handle(fd)
            if not ready and left is not None:
                return None
        return self._queue.popleft() if self._queue else None

    def _handle(self, fd: int) -> None:
        if fd == self._stop:
            self.close()
            return
        if fd in self._victims:
            self._forget(fd)
            if self._oom is not None:
                self._enqueue(self._oom.killed())
            return
        source = self._sources.get(fd)
        if source is None:
            return
        self._enqueue(source.changes())
        if source is self._oom and "oom_kill" in self._kinds:
            self._watch_members()

    def _enqueue(self, events: Iterable[Event]) -> None:
        self._queue.extend(event for event in events if event.kind in self._kinds or event.kind == "pressure")

    def _watch_members(self) -> None:
        """Watch the processes of a group that has run out of memory until one of them ends."""
        if self._oom is None:
            return
        for pid in self._oom.members():
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            self._victims.add(pidfd)
            self._epoll.register(pidfd, select.EPOLLIN)
        self._enqueue(self._oom.killed())  # the kill may have happened before the pidfds were opened

    def _forget(self, pidfd: int) -> None:
        self._victims.discard(pidfd)
        os.close(pidfd)

    def stop(self) -> None:
        """Wake the thread that waits and end the iteration. May be called from any thread and from signal handlers."""
        if self._stop >= 0:
            os.eventfd_write(self._stop, 1)

    def close(self) -> None:
        """Close the descriptors. May be called twice. If another thread is waiting, call :meth:`stop` instead."""
        stop, self._stop = self._stop, -1
        if stop < 0:
            return
        os.close(stop)
        for source in self._sources.values():
            source.close()
        for pidfd in self._victims:
            os.close(pidfd)
        self._sources.clear()
        self._victims.clear()
        self._epoll.close()

    # Iterating -----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.wait()
        if event is None:
            raise StopIteration
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        import asyncio

        while True:
            event = self.wait(0)
            if event is not None:
                return event
            if self._stop < 0:
                raise StopAsyncIteration
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()
            fd = self.fileno()
            loop.add_reader(fd, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(fd)


def _no_source(kinds: frozenset[str], path: str) -> UnsupportedError:
    hint = (
        "oom needs the memory controller (set a limit, or name it in controllers=); memory_high, memory_max and "
        "pids_max need memory or pids on version 2 (version 1 only counts them); the others need a mounted cgroup2"
    )
    return UnsupportedError("watch", EOPNOTSUPP, f"{', '.join(sorted(kinds))} of {path}", hint)


class _Source:
    """A descriptor that reports events."""

    def changes(self) -> list[Event]:
        """Return what has happened since the last call."""
        return []

    def close(self) -> None:
        """Close the descriptor."""


class _KeyedFile(_Source):
    """A flat keyed file of counters and states."""

    def __init__(self, fd: int, counts: dict[str, EventKind], states: dict[str, tuple[EventKind, EventKind]]) -> None:
        self.fd = fd
        self._counts = counts
        self._states = states
        self._last = self._read()

    def kinds(self) -> set[str]:
        """Return the kinds whose key is in the file."""
        there = {kind for key, kind in self._counts.items() if key in self._last}
        return there | {kind for key, pair in self._states.items() if key in self._last for kind in pair}

    def _read(self) -> dict[str, int]:
        try:
            return flat(os.pread(self.fd, 4096, 0).decode("ascii", "replace"))
        except OSError:  # ENODEV: the group has been removed
            return {}

    def changes(self) -> list[Event]:
        former, self._last = self._last, self._read() or self._last
        found: list[Event] = []
        for key, kind in self._counts.items():
            grown = self._last.get(key, 0) - former.get(key, 0)
            if grown > 0:
                found.append(Event(kind=kind, count=grown))
        for key, pair in self._states.items():
            now = self._last.get(key)
            if now is not None and now != former.get(key):
                found.append(Event(kind=pair[bool(now)]))
        return found

    def close(self) -> None:
        os.close(self.fd)


class _OutOfMemory(_Source):
    """Version 1's notification that a group has run out of memory, or that a group below has because of this limit."""

    def __init__(self, part: Directory, group: GroupView) -> None:
        self._group = group
        self._control = part.open_file("memory.oom_control", os.O_RDONLY)
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            part.write("cgroup.event_control", b"%d %d" % (self.eventfd, self._control))
        except OSError as error:
            self.close()
            raise refused("write", error, f"{part.path}/cgroup.event_control") from None
        self._kills = self._count()

    def _count(self) -> int:
        try:
            return self._group.oom_kills or 0
        except StateError:  # the group has been removed
            return 0

    def members(self) -> frozenset[int]:
        """Return the pids of the group."""
        try:
            return self._group.processes()
        except StateError:
            return frozenset()

    def killed(self) -> list[Event]:
        """Return the kills since the last call."""
        former, self._kills = self._kills, max(self._kills, self._count())
        return [Event(kind="oom_kill", count=self._kills - former)] if self._kills > former else []

    def changes(self) -> list[Event]:
        try:
            count = os.eventfd_read(self.eventfd)
        except BlockingIOError:
            count = 0
        # The removal of the group signals the eventfd too. The counter of a removed group can't be read.
        try:
            os.pread(self._control, 1, 0)
        except OSError:
            return []
        return [Event(kind="oom", count=count)] if count else []

    def close(self) -> None:
        for fd in (self.eventfd, self._control):
            os.close(fd)


class _Pressed(_Source):
    """A pressure trigger."""

    def __init__(self, watch: TriggerWatch) -> None:
        self._watch = watch

    def changes(self) -> list[Event]:
        return [Event(kind="pressure", resource=self._watch.trigger.resource)]

    def close(self) -> None:
        self._watch.close()
