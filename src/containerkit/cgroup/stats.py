"""The reports of a group. Both versions have the same fields; a field is None if the kernel does not report it."""

from __future__ import annotations

import attrs

__all__ = [
    "CpuStats",
    "CpusetStats",
    "GroupUsage",
    "HugetlbStats",
    "IODeviceStats",
    "IOStats",
    "MemoryStats",
    "PidsStats",
    "Pressure",
    "PressureShare",
    "Stats",
]


@attrs.frozen(kw_only=True)
class GroupUsage:
    """The resources that one run used: totals of its group since the group was created.

    Attributes:
        memory_peak_bytes: the largest amount of memory in use at one time.
        cpu_us: processor time in microseconds, user and system together.
        cpu_user_us: the part in user mode.
        cpu_system_us: the part in the kernel.
        throttled_us: how long the processor limit stopped the group.
        io_read_bytes: bytes read from block devices.
        io_write_bytes: bytes written to block devices.
        oom_kills: how many processes the kernel killed because the group was out of memory.
        pids_peak: the largest number of processes and threads at one time.
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
        """Whether the kernel killed a process because the group was out of memory."""
        return bool(self.oom_kills)


@attrs.frozen(kw_only=True)
class MemoryStats:
    """The report of the memory controller, in bytes and counts.

    Attributes:
        current_bytes: memory in use now.
        peak_bytes: the largest amount of memory in use so far.
        limit_bytes: the limit, or None for no limit.
        swap_current_bytes: memory swapped out now.
        swap_limit_bytes: the maximum that may be swapped out, or None for no limit.
        anonymous_bytes: the part of ``current_bytes`` that is anonymous memory.
        file_bytes: the part that is page cache.
        kernel_bytes: the part that is kernel memory.
        page_faults: page faults since the group was created.
        major_page_faults: those that read from a disk.
        limit_hits: how often the limit stopped an allocation.
        high_hits: how often ``memory_high`` slowed down the group.
        ooms: how often the group was out of memory.
        oom_kills: how many processes were killed because of it.
        detail: all values of the kernel's ``memory.stat``.
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
    """The report of the cpu controllers. Times are in microseconds.

    Attributes:
        usage_us: processor time.
        user_us: the part in user mode.
        system_us: the part in the kernel.
        per_cpu_us: processor time on each processor (version 1's cpuacct).
        periods: how many periods of the quota have passed.
        throttled_periods: in how many of them the group was stopped.
        throttled_us: how long it was stopped.
        bursts: in how many periods accumulated quota was used.
        burst_us: how much accumulated quota was used.
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
    """The effective processors and memory nodes of the group, and the partition (version 2)."""

    cpus: frozenset[int] = frozenset()
    mems: frozenset[int] = frozenset()
    partition: str | None = None


@attrs.frozen(kw_only=True)
class PidsStats:
    """Processes and threads: the number now, the limit (None for none), the peak, and how often a fork was refused."""

    current: int | None = None
    limit: int | None = None
    peak: int | None = None
    limit_hits: int | None = None


@attrs.frozen(kw_only=True)
class IODeviceStats:
    """How much was read from and written to one block device."""

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
    """The report of the io controller."""

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
    """Huge pages of one size: in use now, the peak (version 1), the limit (None for none), and refused allocations."""

    current_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    limit_hits: int | None = None


@attrs.frozen(kw_only=True)
class PressureShare:
    """Lost time: percentages over 10, 60 and 300 seconds, and the total in microseconds."""

    avg10: float
    avg60: float
    avg300: float
    total_us: int


@attrs.frozen(kw_only=True)
class Pressure:
    """Pressure stall information of one resource.

    Attributes:
        some: time in which at least one task waited.
        full: time in which all tasks waited, or None if the kernel does not report it.

    Source: Documentation/accounting/psi.rst.
    """

    some: PressureShare
    full: PressureShare | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """The report of a group. The part of a controller is None if the group is not in that controller.

    Attributes:
        rdma: the handles and objects in use on each device.
        misc: the amount of each resource that is in use.
        net_cls_classid: the class of the group's packets.
        net_prio: the priority on each interface.
        hugetlb: the huge pages in use for each page size (``"2MB"``).
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
