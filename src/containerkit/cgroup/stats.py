"""What a group reports: the same fields on both versions, None where the kernel has none."""

from __future__ import annotations

import attrs

__all__ = [
    "CpuStats",
    "CpusetStats",
    "HugetlbStats",
    "IODeviceStats",
    "IOStats",
    "MemoryStats",
    "PidsStats",
    "Pressure",
    "PressureShare",
    "Stats",
    "Usage",
]


@attrs.frozen(kw_only=True)
class Usage:
    """What one run used: the sums of a group from its creation on.

    Attributes:
        memory_peak_bytes: the most memory held at once.
        cpu_us: processor time in microseconds, user and system together.
        cpu_user_us: of it in user mode.
        cpu_system_us: of it in the kernel.
        throttled_us: time for which the processor limit held the group back.
        io_read_bytes: read from block devices.
        io_write_bytes: written to block devices.
        oom_kills: processes that the kernel killed for the group's memory.
        pids_peak: the most processes and threads at once.
    """

    memory_peak_bytes: int | None = None
    cpu_us: int | None = None
    cpu_user_us: int | None = None
    cpu_system_us: int | None = None
    throttled_us: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    oom_kills: int | None = None
    pids_peak: int | None = None

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed a process of the group for its memory."""
        return bool(self.oom_kills)


@attrs.frozen(kw_only=True)
class MemoryStats:
    """The memory controller's report, in bytes and counts.

    Attributes:
        current_bytes: held now.
        peak_bytes: the most ever held.
        limit_bytes: the limit; None for no limit.
        swap_current_bytes: swapped out now.
        swap_limit_bytes: the most that may be swapped out; None for no limit.
        anonymous_bytes: of it anonymous memory.
        file_bytes: of it page cache.
        kernel_bytes: of it kernel memory.
        page_faults: since the creation.
        major_page_faults: of them such that read from a disk.
        limit_hits: how often the limit stopped an allocation.
        high_hits: how often ``memory_high`` slowed the group.
        ooms: how often the group was out of memory.
        oom_kills: how many processes were killed for it.
        detail: the kernel's whole ``memory.stat``.
    """

    current_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    swap_current_bytes: int | None = None
    swap_limit_bytes: int | None = None
    anonymous_bytes: int | None = None
    file_bytes: int | None = None
    kernel_bytes: int | None = None
    page_faults: int | None = None
    major_page_faults: int | None = None
    limit_hits: int | None = None
    high_hits: int | None = None
    ooms: int | None = None
    oom_kills: int | None = None
    detail: dict[str, int] = attrs.field(factory=dict, repr=False)


@attrs.frozen(kw_only=True)
class CpuStats:
    """The cpu controllers' report, times in microseconds.

    Attributes:
        usage_us: processor time.
        user_us: of it in user mode.
        system_us: of it in the kernel.
        per_cpu_us: processor time on each processor (version 1's cpuacct).
        periods: periods of the quota that have passed.
        throttled_periods: of them such in which the group was held back.
        throttled_us: for how long.
        bursts: periods in which saved quota was used.
        burst_us: how much.
    """

    usage_us: int | None = None
    user_us: int | None = None
    system_us: int | None = None
    per_cpu_us: tuple[int, ...] | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_us: int | None = None
    bursts: int | None = None
    burst_us: int | None = None


@attrs.frozen(kw_only=True)
class CpusetStats:
    """Where the group may run: the processors and memory nodes in effect, and version 2's partition."""

    cpus: frozenset[int] = frozenset()
    mems: frozenset[int] = frozenset()
    partition: str | None = None


@attrs.frozen(kw_only=True)
class PidsStats:
    """Processes and threads: now, the limit (None for none), the most ever, how often a fork was refused."""

    current: int | None = None
    limit: int | None = None
    peak: int | None = None
    limit_hits: int | None = None


@attrs.frozen(kw_only=True)
class IODeviceStats:
    """What went to and from one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0
    discard_bytes: int = 0
    discards: int = 0


@attrs.frozen(kw_only=True)
class IOStats:
    """The io controller's report."""

    devices: tuple[IODeviceStats, ...] = ()

    @property
    def read_bytes(self) -> int:
        """Bytes read from all devices."""
        return sum(device.read_bytes for device in self.devices)

    @property
    def write_bytes(self) -> int:
        """Bytes written to all devices."""
        return sum(device.write_bytes for device in self.devices)


@attrs.frozen(kw_only=True)
class HugetlbStats:
    """Huge pages of one size: held now, the most ever (version 1), the limit (None for none), refused allocations."""

    current_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    limit_hits: int | None = None


@attrs.frozen(kw_only=True)
class PressureShare:
    """How much time was lost: percent over 10, 60 and 300 seconds, and the sum in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@attrs.frozen(kw_only=True)
class Pressure:
    """Pressure stall information of one resource.

    Attributes:
        some: while at least one task waited.
        full: while all of them waited; None where the kernel has none.

    Source: Documentation/accounting/psi.rst.
    """

    some: PressureShare
    full: PressureShare | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """A group's report. The part of a controller that the group is not in is None.

    Attributes:
        rdma: for each device its handles and objects in use.
        misc: for each resource what is in use.
        net_cls_classid: the class of the group's packets.
        net_prio: the priority on each interface.
        hugetlb: for each page size (``"2MB"``) what is held.
        frozen: whether the group is frozen.
    """

    memory: MemoryStats | None = None
    cpu: CpuStats | None = None
    cpuset: CpusetStats | None = None
    pids: PidsStats | None = None
    io: IOStats | None = None
    hugetlb: dict[str, HugetlbStats] | None = None
    rdma: dict[str, dict[str, int | None]] | None = None
    misc: dict[str, int] | None = None
    net_cls_classid: int | None = None
    net_prio: dict[str, int] | None = None
    frozen: bool | None = None
