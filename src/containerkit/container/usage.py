"""What a container uses: from its control group, or from its processes if it has none."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import attrs

from containerkit._linux import procfs

if TYPE_CHECKING:
    from containerkit.cgroup.stats import Stats
    from containerkit.container.lifecycle import Container

__all__ = ["Usage", "usage_of"]


@attrs.frozen(kw_only=True)
class Usage:
    """What the processes of a container use.

    Attributes:
        cpu_us: the processor time so far, in microseconds; None if unknown. Without a control group, that of processes
            that have ended is missing.
        memory_bytes: the memory in use; None if unknown. Without a control group, the sum of what the processes have in
            memory, in which shared pages count for each.
        memory_limit_bytes: the limit; None for none.
        processes: their number, or that of the threads in the control group; None if unknown.
    """

    cpu_us: int | None
    memory_bytes: int | None
    memory_limit_bytes: int | None
    processes: int | None

    def to_json(self) -> dict[str, Any]:
        """Return it as a mapping."""
        return attrs.asdict(self)

    @classmethod
    def of_group(cls, stats: Stats) -> Usage:
        """Return the usage that a control group reports."""
        memory, pids = stats.memory, stats.pids
        return cls(
            cpu_us=None if stats.cpu is None else stats.cpu.usage_us,
            memory_bytes=None if memory is None else memory.current_bytes,
            memory_limit_bytes=None if memory is None else memory.limit_bytes,
            processes=None if pids is None else pids.current,
        )

    @classmethod
    def of_processes(cls, pids: list[int]) -> Usage:
        """Return the usage of processes. Those that have ended in the meantime are left out."""
        ticks = pages = count = 0
        for pid in pids:
            with suppress(OSError):
                stat = procfs.stat(pid)
                with open(f"/proc/{pid}/statm", encoding="ascii") as file:
                    pages += int(file.read().split()[1])
                ticks += stat.user_ticks + stat.system_ticks
                count += 1
        return cls(
            cpu_us=ticks * 1_000_000 // os.sysconf("SC_CLK_TCK"), memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            memory_limit_bytes=None, processes=count,
        )  # fmt: skip


def usage_of(container: Container) -> Usage:
    """Return what a running container uses.

    Raises:
        StateError: it does not run.
    """
    if container.spec.limits is None:
        return Usage.of_processes(list(container.members()))
    return Usage.of_group(container.stats())
