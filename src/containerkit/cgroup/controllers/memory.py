"""The memory controller limits memory and swap.

Source: "Memory" in Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/memory.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting, unsupported
from containerkit.cgroup.quantities import MAX
from containerkit.cgroup.statfiles import flat, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.quantities import Amount
    from containerkit.cgroup.stats import MemoryStats

_ONLY_V2 = ("memory_high", "memory_low", "memory_min", "oom_group")
_ONLY_V1 = ("swappiness", "memory_kernel", "memory_kernel_tcp", "oom_kill_disable")
_SWAP_HINT = 'swap accounting is off: boot with swapaccount=1, or allow swap with swap="max"'
_SMALLER = "the group already uses more than that, and it could not be reclaimed"
_NO_LIMIT = 1 << 62
"""Version 1 represents "no limit" as the largest multiple of the page size below 2**63."""


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that apply the memory limits."""
    wrong = _ONLY_V1 if version == 2 else _ONLY_V2
    for argument in wrong:
        if getattr(limits, argument) is not None:
            raise unsupported(argument, version)
    return _version_2(limits) if version == 2 else _version_1(limits)


def _write(value: Amount, nothing: bytes = b"max") -> bytes:
    return nothing if value == MAX else b"%d" % value


def _version_2(limits: Limits) -> list[Setting | Attachment]:
    wishes: list[tuple[str, Amount | None]] = [
        ("memory.min", limits.memory_min),
        ("memory.low", limits.memory_low if limits.memory_low is not None else limits.memory_reservation),
        ("memory.high", limits.memory_high),
        ("memory.max", limits.memory),
    ]
    found: list[Setting | Attachment] = [Setting(file, _write(value)) for file, value in wishes if value is not None]
    swap = limits.swap
    if swap is None and limits.memory is not None:
        swap = MAX if limits.memory == MAX else 0
    if swap is not None:
        found.append(Setting("memory.swap.max", _write(swap), _SWAP_HINT, "no-swap"))
    if limits.oom_group is not None:
        found.append(Setting("memory.oom.group", b"1" if limits.oom_group else b"0"))
    return found


def _version_1(limits: Limits) -> list[Setting | Attachment]:
    found: list[Setting | Attachment] = []
    if limits.memory_reservation is not None:
        found.append(Setting("memory.soft_limit_in_bytes", _write(limits.memory_reservation, b"-1")))
    if limits.memory is not None:
        found.append(Setting("memory.limit_in_bytes", _write(limits.memory, b"-1"), _SMALLER))
    if limits.swap is not None or limits.memory is not None:
        found.append(_memory_and_swap(limits))
    if limits.memory_kernel is not None:
        hint = "kernel 5.16 removed the limit of kernel memory; leave out memory_kernel"
        found.append(Setting("memory.kmem.limit_in_bytes", _write(limits.memory_kernel, b"-1"), hint))
    if limits.memory_kernel_tcp is not None:
        found.append(Setting("memory.kmem.tcp.limit_in_bytes", _write(limits.memory_kernel_tcp, b"-1")))
    if limits.swappiness is not None:
        found.append(Setting("memory.swappiness", b"%d" % limits.swappiness))
    if limits.oom_kill_disable is not None:
        found.append(Setting("memory.oom_control", b"1" if limits.oom_kill_disable else b"0"))
    return found


def _memory_and_swap(limits: Limits) -> Setting:
    """Return the setting for version 1, which limits the sum of memory and swap."""
    memory, swap = limits.memory, limits.swap or 0
    if MAX in {memory, limits.swap}:
        return Setting("memory.memsw.limit_in_bytes", b"-1", _SWAP_HINT, "no-swap")
    if memory is not None:
        return Setting("memory.memsw.limit_in_bytes", b"%d" % (int(memory) + int(swap)), _SWAP_HINT, "no-swap")

    def beside(read: Callable[[str], str | None]) -> bytes:
        now = integer(read("memory.limit_in_bytes")) or _NO_LIMIT
        return b"-1" if now >= _NO_LIMIT else b"%d" % (now + int(swap))

    return Setting("memory.memsw.limit_in_bytes", beside, "swap can be limited only together with memory=", "no-swap")


def machine_has_swap() -> bool:
    """Return whether any swap is enabled. Source: /proc/swaps in proc(5)."""
    try:
        with open("/proc/swaps", "rb") as file:
            return len(file.read(4096).splitlines()) > 1
    except OSError:
        return False


def report(read: Callable[[str], str | None], version: int) -> MemoryStats:
    """Return the memory report."""
    return _report_2(read) if version == 2 else _report_1(read)


def _report_2(read: Callable[[str], str | None]) -> MemoryStats:
    from containerkit.cgroup.stats import MemoryStats

    detail, events = flat(read("memory.stat")), flat(read("memory.events"))
    return MemoryStats(
        current_bytes=integer(read("memory.current")),
        peak_bytes=integer(read("memory.peak")),
        limit_bytes=integer(read("memory.max")),
        swap_current_bytes=integer(read("memory.swap.current")),
        swap_limit_bytes=integer(read("memory.swap.max")),
        anonymous_bytes=detail.get("anon"),
        file_bytes=detail.get("file"),
        kernel_bytes=detail.get("kernel"),
        page_faults=detail.get("pgfault"),
        major_page_faults=detail.get("pgmajfault"),
        limit_hits=events.get("max"),
        high_hits=events.get("high"),
        ooms=events.get("oom"),
        oom_kills=events.get("oom_kill"),
        detail=detail,
    )


def _report_1(read: Callable[[str], str | None]) -> MemoryStats:
    from containerkit.cgroup.stats import MemoryStats

    detail, control = flat(read("memory.stat")), flat(read("memory.oom_control"))
    limit = _bounded(integer(read("memory.limit_in_bytes")))
    both = _bounded(integer(read("memory.memsw.limit_in_bytes")))
    return MemoryStats(
        current_bytes=integer(read("memory.usage_in_bytes")),
        peak_bytes=integer(read("memory.max_usage_in_bytes")),
        limit_bytes=limit,
        swap_current_bytes=detail.get("total_swap"),
        swap_limit_bytes=None if both is None else max(0, both - (limit or 0)),
        anonymous_bytes=detail.get("total_rss"),
        file_bytes=detail.get("total_cache"),
        kernel_bytes=integer(read("memory.kmem.usage_in_bytes")),
        page_faults=detail.get("total_pgfault"),
        major_page_faults=detail.get("total_pgmajfault"),
        limit_hits=integer(read("memory.failcnt")),
        ooms=None,
        oom_kills=control.get("oom_kill"),
        detail=detail,
    )


def _bounded(value: int | None) -> int | None:
    return None if value is None or value >= _NO_LIMIT else value
