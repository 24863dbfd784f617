"""The reports of a group, combined from all its hierarchies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from containerkit.cgroup.controllers import CONTROLLERS, controller
from containerkit.cgroup.processes import walk
from containerkit.cgroup.statfiles import device, flat, freezer_frozen, integer, nested, operations
from containerkit.cgroup.stats import CpuStats, GroupUsage, Stats

if TYPE_CHECKING:
    from containerkit.cgroup.directory import Directory

__all__ = ["oom_kills", "stats", "throttled_us", "usage"]


def usage(parts: tuple[Directory, ...], former_kills: int = 0) -> GroupUsage:
    """Return what the processes of a group used. It reads few files, because every run calls it at its end.

    Args:
        parts: the directories of the group.
        former_kills: how many processes were killed for lack of memory in child groups that have been removed.
    """
    found: dict[str, Any] = {}
    for part in parts:
        if part.version == 2:
            _usage_2(part, found)
        else:
            _usage_1(part, found, former_kills)
    return GroupUsage(**found)


def _usage_2(part: Directory, found: dict[str, Any]) -> None:
    cpu = flat(part.read("cpu.stat"))
    for field, key in (
        ("cpu_us", "usage_usec"),
        ("cpu_user_us", "user_usec"),
        ("cpu_system_us", "system_usec"),
        ("throttled_us", "throttled_usec"),
    ):
        if key in cpu:
            found[field] = cpu[key]
    there = part.available()
    if "memory" in there:
        found["memory_peak_bytes"] = integer(part.read("memory.peak"))
        found["oom_kills"] = flat(part.read("memory.events")).get("oom_kill")
    if "pids" in there:
        found["pids_peak"] = integer(part.read("pids.peak"))
    if "io" in there:
        devices = nested(part.read("io.stat")).values()
        found["io_read_bytes"] = sum(one.get("rbytes") or 0 for one in devices)
        found["io_write_bytes"] = sum(one.get("wbytes") or 0 for one in devices)


def _usage_1(part: Directory, found: dict[str, Any], former_kills: int) -> None:
    names = part.names
    if "memory" in names:
        found["memory_peak_bytes"] = integer(part.read("memory.max_usage_in_bytes"))
        found["oom_kills"] = _oom_kills(part, former_kills)
    if "pids" in names:
        found["pids_peak"] = integer(part.read("pids.peak"))
    if "cpu" in names:
        found["throttled_us"] = flat(part.read("cpu.stat")).get("throttled_time", 0) // 1000
    if "cpuacct" in names:
        for field, file in (
            ("cpu_us", "cpuacct.usage"),
            ("cpu_user_us", "cpuacct.usage_user"),
            ("cpu_system_us", "cpuacct.usage_sys"),
        ):
            nanoseconds = integer(part.read(file))
            found[field] = None if nanoseconds is None else nanoseconds // 1000
    if "blkio" in names:
        served = operations(part.read("blkio.throttle.io_service_bytes_recursive"))
        devices = [counts for name, counts in served.items() if device(name)]
        found["io_read_bytes"] = sum(counts.get("Read", 0) for counts in devices)
        found["io_write_bytes"] = sum(counts.get("Write", 0) for counts in devices)


def throttled_us(parts: tuple[Directory, ...]) -> int | None:
    """Return how long the processor limit stopped a group, in microseconds. It reads nothing else."""
    for part in parts:
        counts = flat(part.read("cpu.stat")) if part.version == 2 or "cpu" in part.names else {}
        if "throttled_time" in counts:
            return counts["throttled_time"] // 1000
        if "throttled_usec" in counts:
            return counts["throttled_usec"]
    return None


def oom_kills(parts: tuple[Directory, ...], former_kills: int = 0) -> int | None:
    """Return how many processes were killed because the group was out of memory. It reads nothing else."""
    for part in parts:
        if "memory" in part.names:
            return _oom_kills(part, former_kills)
        if part.version == 2 and "memory" in part.available():
            return flat(part.read("memory.events")).get("oom_kill")
    return None


def _oom_kills(part: Directory, former_kills: int) -> int | None:
    """Count the kills. Version 1 counts a kill only in the group of the victim, so those of child groups are added."""
    kills = flat(part.read("memory.oom_control")).get("oom_kill")
    if kills is not None and part.has_groups():
        kills += sum(flat(below.read("memory.oom_control")).get("oom_kill", 0) for below in walk(part))
    return None if kills is None else kills + former_kills


def stats(parts: tuple[Directory, ...], former_kills: int = 0) -> Stats:
    """Return the reports of all controllers that the group is in."""
    found: dict[str, Any] = {}
    for part in parts:
        names = set(part.available())
        if part.version == 2:
            names.add("cpu")  # cpu.stat counts the time even if the controller is not enabled
            frozen = flat(part.read("cgroup.events")).get("frozen")
            found["frozen"] = found.get("frozen") or (None if frozen is None else bool(frozen))
        for name in sorted("io" if name == "blkio" else name for name in names):
            if name not in CONTROLLERS or name == "perf_event":
                continue
            if name == "freezer":
                found["frozen"] = freezer_frozen(part.read("freezer.state"))
            elif name in {"cpu", "cpuacct"}:
                found["cpu"] = _merged(found.get("cpu"), controller(name).report(part.read, part.version))
            elif name != "devices":
                field = "net_cls_classid" if name == "net_cls" else name
                found[field] = controller(name).report(part.read, part.version)
        if "memory" in part.names:
            found["memory"] = attrs.evolve(found["memory"], oom_kills=_oom_kills(part, former_kills))
    return Stats(**found)


def _merged(first: CpuStats | None, second: CpuStats) -> CpuStats:
    """Combine the parts of the cpu report that come from several hierarchies."""
    if first is None:
        return second
    names = attrs.fields(CpuStats)
    return CpuStats(
        **{
            field.name: getattr(first, field.name)
            if getattr(second, field.name) is None
            else getattr(second, field.name)
            for field in names
        }
    )
