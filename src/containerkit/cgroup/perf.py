"""Counters of hardware and software events for a whole group.

Source: perf_event_open(2).
"""

from __future__ import annotations

import os
import struct
from errno import EBADF, EINVAL, ENODEV, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from containerkit._native.calls_seam import syscall
from containerkit.cgroup.directory import refused
from containerkit.cgroup.quantities import numbers
from containerkit.descriptors import Closing
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.view import GroupView

__all__ = ["EVENTS", "PerfCounters"]

EVENTS: Final = {
    "cycles": (0, 0),
    "instructions": (0, 1),
    "cache-references": (0, 2),
    "cache-misses": (0, 3),
    "branch-instructions": (0, 4),
    "branch-misses": (0, 5),
    "cpu-clock": (1, 0),
    "task-clock": (1, 1),
    "page-faults": (1, 2),
    "context-switches": (1, 3),
    "cpu-migrations": (1, 4),
    "minor-faults": (1, 5),
    "major-faults": (1, 6),
}
"""The events by the names of perf(1): type and number. The clocks count nanoseconds."""

_USUAL: Final = ("task-clock", "context-switches", "page-faults", "cycles", "instructions")
_BY_GROUP: Final = 4 | 8  # PERF_FLAG_PID_CGROUP, PERF_FLAG_FD_CLOEXEC
_TIMES: Final = 1 | 2  # PERF_FORMAT_TOTAL_TIME_ENABLED, PERF_FORMAT_TOTAL_TIME_RUNNING
_ATTRIBUTES: Final = struct.Struct("=IIQQQQQ16x")
"""struct perf_event_attr as the first kernels defined it, 64 bytes. Later kernels accept this size too."""
_HINT: Final = "counting by group needs CAP_PERFMON, or CAP_SYS_ADMIN before kernel 5.8"


class PerfCounters(Closing):
    """Counters of a group, which run from their creation on. They own a descriptor for each event and processor."""

    __slots__ = ("_fds", "group")

    def __init__(self, group: GroupView, events: Iterable[str] | None = None) -> None:
        names = _USUAL if events is None else tuple(dict.fromkeys(events))
        unknown = [name for name in names if name not in EVENTS]
        if unknown:
            raise SpecError(f"events: {unknown} are not among {', '.join(sorted(EVENTS))}")
        self.group = group.name
        self._fds: dict[str, list[int]] = {}
        part = _hierarchy(group)
        try:
            for name in names:
                try:
                    self._open(part, name)
                except UnsupportedError:
                    if events is not None:
                        raise
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<PerfCounters of {self.group}: {', '.join(self._fds) or 'closed'}>"

    def _open(self, part: Directory, name: str) -> None:
        kind, number = EVENTS[name]
        attributes = _ATTRIBUTES.pack(kind, _ATTRIBUTES.size, number, 0, 0, _TIMES, 0)
        opened: list[int] = []
        try:
            for processor in _online():
                opened.append(syscall("perf_event_open", attributes, part.fd, processor, -1, _BY_GROUP))  # noqa: PERF401 - if one fails, those opened before must be closed
        except OSError as error:
            for fd in opened:
                os.close(fd)
            if error.errno in {ENOENT, ENODEV, EOPNOTSUPP}:
                hint = "this machine does not count this event, like many virtual machines; leave it out"
                raise UnsupportedError("perf_event_open", error.errno or 0, name, hint) from None
            if error.errno in {EBADF, EINVAL}:
                raise UnsupportedError("perf_event_open", error.errno or 0, part.path, _hierarchy_hint()) from None
            raise refused("perf_event_open", error, f"{name} of {part.path}", _HINT) from None
        self._fds[name] = opened

    def read(self) -> dict[str, int]:
        """Return what has been counted so far on all processors. The clocks count nanoseconds.

        If the hardware counters were shared among events, the numbers are scaled up to the whole time.

        Raises:
            StateError: the counters are closed.
            SetupError: the kernel refuses the read.
        """
        if not self._fds:
            raise StateError(f"counters of {self.group}: they are closed")
        return {name: sum(map(_count, fds)) for name, fds in self._fds.items()}

    def close(self) -> None:
        """Stop counting. May be called twice."""
        for fds in self._fds.values():
            for fd in fds:
                os.close(fd)
        self._fds = {}


def _count(fd: int) -> int:
    try:
        value, enabled, running = struct.unpack("=QQQ", os.read(fd, 24))
    except OSError as error:
        raise SetupError("read", error.errno or 0, "perf counter") from None
    return int(value * enabled // running) if 0 < running < enabled else int(value)


def _online() -> list[int]:
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        return sorted(numbers(file.read().strip(), "online processors"))


def _hierarchy(group: GroupView) -> Directory:
    for part in group.parts:
        if "perf_event" in part.names:
            return part
    if group.unified is None:
        raise UnsupportedError("perf_event_open", EOPNOTSUPP, group.path, _hierarchy_hint())
    return group.unified


def _hierarchy_hint() -> str:
    return 'the group is in no perf_event hierarchy; create it with controllers=["perf_event"]'
