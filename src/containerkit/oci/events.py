"""``events``: print the events of a container, one JSON object per line."""

from __future__ import annotations

import os
import select
import time

from containerkit import jsontext
from containerkit.oci import store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.cgroup.stats import Stats
    from containerkit.oci.main import Call

__all__ = ["events", "statistics"]

_LOOK_S = 0.2
"""How often to check for out-of-memory kills, in seconds."""


def events(call: Call) -> int:
    """Print statistics in an interval, and out-of-memory kills within 0.2 s, until the container ends.

    With ``--stats`` the statistics are printed once.
    """
    with store.open_entry(call.root, call.name) as entry:
        if entry.status() == "stopped":
            raise RuntimeFailure("container not running")
        groups = entry.record.get("groups", [])
        if not groups:
            raise RuntimeFailure("events: the container has no control groups, so nothing can be watched")
        if call.flags.has("stats"):
            _print_event(entry.id, "stats", statistics(groups))
            return 0
        _watch(call, entry.id, entry.pid, groups)
    return 0


def _interval_s(call: Call) -> float:
    text = call.flags.text("interval", "5s")
    unit = "ms" if text.endswith("ms") else text[-1:]
    try:
        value = float(text.removesuffix(unit)) if unit in ("ms", "s", "m", "h") else float(text)
    except ValueError:
        raise RuntimeFailure(f"--interval: {text!r} is not a duration such as 5s") from None
    seconds = value * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}.get(unit, 1.0)
    if seconds <= 0:
        raise RuntimeFailure("--interval: must be more than 0")
    return seconds


def _watch(call: Call, name: str, pid: int, groups: list[str]) -> None:
    interval_s = _interval_s(call)
    pidfd = os.pidfd_open(pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    kills = 0
    due = time.monotonic()
    ended = False
    try:
        while True:
            try:
                stats = _read(groups)
            except FileNotFoundError:  # deleted in the meantime
                return
            seen = stats.memory.oom_kills or 0 if stats.memory is not None else 0
            for _ in range(seen - kills):
                _print_event(name, "oom", None)
            kills = seen
            if ended:
                return
            if time.monotonic() >= due:
                _print_event(name, "stats", _shaped(stats))
                due = time.monotonic() + interval_s
            ended = bool(poller.poll(min(interval_s, _LOOK_S) * 1000))
    finally:
        os.close(pidfd)


def _print_event(name: str, kind: str, data: object) -> None:
    event = {"type": kind, "id": name} | ({} if data is None else {"data": data})
    os.write(1, jsontext.dumps(event).encode() + b"\n")


def statistics(groups: list[str]) -> dict[str, Any]:
    """Return the usage of the processes of groups, in the format of other runtimes.

    Args:
        groups: the directories, one in each hierarchy.
    """
    return _shaped(_read(groups))


def _read(groups: list[str]) -> Stats:
    from containerkit.cgroup.directory import Directory, OpenedDirectory
    from containerkit.cgroup.usage import stats
    from containerkit.oci.cgroups import Groups, hierarchies

    known = Groups.of(groups, hierarchies())
    parts: list[Directory] = []
    try:
        for hierarchy, place in zip(known.found, known.places, strict=True):
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            names = frozenset(name for name in hierarchy.names if "=" not in name)
            parts.append(OpenedDirectory(fd, place, hierarchy.version, names))
        return stats(tuple(parts))
    finally:
        for part in parts:
            part.close()


_NO_LIMIT = 2**64 - 1


def _shaped(stats: Stats) -> dict[str, Any]:
    """Return the report with the names that other runtimes use. Times are in nanoseconds."""
    from containerkit.cgroup.stats import CpuStats, MemoryStats, PidsStats

    cpu, memory, pids = stats.cpu or CpuStats(), stats.memory or MemoryStats(), stats.pids or PidsStats()
    shaped: dict[str, Any] = {
        "cpu": {
            "usage": {
                "total": _ns(cpu.usage_us),
                "percpu": [_ns(each) for each in cpu.per_cpu_us or ()],
                "kernel": _ns(cpu.system_us),
                "user": _ns(cpu.user_us),
            },
            "throttling": {
                "periods": cpu.periods or 0,
                "throttledPeriods": cpu.throttled_periods or 0,
                "throttledTime": _ns(cpu.throttled_us),
            },
        },
        "memory": {
            "usage": {
                "limit": _NO_LIMIT if memory.limit_bytes is None else memory.limit_bytes,
                "usage": memory.current_bytes or 0,
                "max": memory.peak_bytes or 0,
                "failcnt": memory.limit_hits or 0,
            },
            "swap": {
                "limit": _NO_LIMIT if memory.swap_limit_bytes is None else memory.swap_limit_bytes,
                "usage": memory.swap_current_bytes or 0,
            },
            "kernel": {"usage": memory.kernel_bytes or 0},
            "cache": memory.file_bytes or 0,
            "raw": dict(memory.detail),
        },
        "pids": {"current": pids.current or 0, "limit": pids.limit or 0},
        "blkio": {"ioServiceBytesRecursive": [], "ioServicedRecursive": []},
        "hugetlb": {
            size: {"usage": each.current_bytes or 0, "max": each.peak_bytes or 0, "failcnt": each.limit_hits or 0}
            for size, each in (stats.hugetlb or {}).items()
        },
    }
    for device in stats.io.devices if stats.io is not None else ():
        where = {"major": device.major, "minor": device.minor}
        for key, pairs in (
            ("ioServiceBytesRecursive", (("Read", device.read_bytes), ("Write", device.write_bytes))),
            ("ioServicedRecursive", (("Read", device.reads), ("Write", device.writes))),
        ):
            shaped["blkio"][key] += [{**where, "op": name, "value": value} for name, value in pairs]
    return shaped


def _ns(microseconds: int | None) -> int:
    return (microseconds or 0) * 1000
