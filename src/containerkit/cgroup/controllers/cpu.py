"""The cpu controller limits processor time.

Source: "CPU" in Documentation/admin-guide/cgroup-v2.rst; Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cgroup.controllers import Attachment, Setting, unsupported
from containerkit.cgroup.quantities import MAX
from containerkit.cgroup.statfiles import flat, integer, integers

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.quantities import Amount
    from containerkit.cgroup.stats import CpuStats

PERIOD_US: Final = 100_000
LEAST_QUOTA_US: Final = 1_000
LONGEST_PERIOD_US: Final = 1_000_000
_NO_BANDWIDTH: Final = "it needs a kernel with CONFIG_CFS_BANDWIDTH"
_BURST: Final = "a burst needs a quota (cpus= or cpu_quota_us=) and must not exceed it"
_REAL_TIME: Final = "the parent group has no real-time budget left; see sched_rt_runtime_us"


def shares_of(weight: int) -> int:
    """Convert a weight to version 1's shares, as the kernel does (``sched_weight_from_cgroup``)."""
    return max(2, (weight * 1024 + 50) // 100)


def weight_of(shares: int) -> int:
    """Convert shares to version 2's weight, as the kernel does (``sched_weight_to_cgroup``)."""
    return min(10000, max(1, (shares * 100 + 512) // 1024))


def quota_and_period(limits: Limits) -> tuple[Amount | None, int | None]:
    """Return the quota and the period in microseconds.

    The kernel accepts no quota below a millisecond, so a small fraction of a processor gets a longer period.
    """
    period = limits.cpu_period_us
    if limits.cpus is None:
        return limits.cpu_quota_us, period
    chosen = period or PERIOD_US
    if limits.cpus * chosen < LEAST_QUOTA_US and period is None:
        chosen = LONGEST_PERIOD_US
    return max(LEAST_QUOTA_US, round(limits.cpus * chosen)), chosen


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that apply the limits."""
    found = _version_2(limits) if version == 2 else _version_1(limits)
    if limits.cpu_burst_us is not None:
        file = "cpu.max.burst" if version == 2 else "cpu.cfs_burst_us"
        found.append(Setting(file, b"%d" % limits.cpu_burst_us, _BURST))
    if limits.cpu_idle is not None:
        found.append(Setting("cpu.idle", b"1" if limits.cpu_idle else b"0", "an idle group needs kernel 5.15"))
    return found


def _version_2(limits: Limits) -> list[Setting | Attachment]:
    if limits.cpu_rt_runtime_us is not None or limits.cpu_rt_period_us is not None:
        raise unsupported("cpu_rt_runtime_us", version=2)
    found: list[Setting | Attachment] = []
    quota, period = quota_and_period(limits)
    if quota is not None or period is not None:
        # The file accepts the quota alone. To change the period alone, the current quota must be written too.
        if quota is None:
            found.append(Setting("cpu.max", lambda read: _keep_quota(read, period or PERIOD_US), _NO_BANDWIDTH))
        else:
            tail = b"" if period is None else b" %d" % period
            found.append(Setting("cpu.max", str(quota).encode() + tail, _NO_BANDWIDTH))
    weight = limits.cpu_weight if limits.cpu_shares is None else weight_of(limits.cpu_shares)
    if weight is not None:
        found.append(Setting("cpu.weight", b"%d" % weight))
    return found


def _keep_quota(read: Callable[[str], str | None], period: int) -> bytes:
    return f"{(read('cpu.max') or MAX).split()[0]} {period}".encode()


def _version_1(limits: Limits) -> list[Setting | Attachment]:
    found: list[Setting | Attachment] = []
    quota, period = quota_and_period(limits)
    if period is not None and (period != PERIOD_US or limits.cpus is None or limits.cpu_period_us is not None):
        found.append(Setting("cpu.cfs_period_us", b"%d" % period, _NO_BANDWIDTH))
    if quota is not None:
        found.append(Setting("cpu.cfs_quota_us", b"-1" if quota == MAX else b"%d" % quota, _NO_BANDWIDTH))
    shares = limits.cpu_shares if limits.cpu_weight is None else shares_of(limits.cpu_weight)
    if shares is not None:
        found.append(Setting("cpu.shares", b"%d" % shares))
    hint = f"{_REAL_TIME}; the kernel needs CONFIG_RT_GROUP_SCHED"
    if limits.cpu_rt_period_us is not None:
        found.append(Setting("cpu.rt_period_us", b"%d" % limits.cpu_rt_period_us, hint))
    if limits.cpu_rt_runtime_us is not None:
        found.append(Setting("cpu.rt_runtime_us", b"%d" % limits.cpu_rt_runtime_us, hint))
    return found


def report(read: Callable[[str], str | None], version: int) -> CpuStats:
    """Return the report. Files of cpuacct are read too if the hierarchy has both controllers."""
    from containerkit.cgroup.stats import CpuStats

    stat = flat(read("cpu.stat"))
    throttled, burst = stat.get("throttled_usec"), stat.get("burst_usec")
    if version == 1:  # nanoseconds, and other names
        throttled, burst = _micro(stat.get("throttled_time")), _micro(stat.get("burst_time"))
    usage, user, system = stat.get("usage_usec"), stat.get("user_usec"), stat.get("system_usec")
    per_cpu = None
    if usage is None:
        usage, user, system, per_cpu = accounted(read)
    return CpuStats(
        usage_us=usage,
        user_us=user,
        system_us=system,
        per_cpu_us=per_cpu,
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled_us=throttled,
        bursts=stat.get("nr_bursts"),
        burst_us=burst,
    )


def _micro(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 1000


def accounted(
    read: Callable[[str], str | None],
) -> tuple[int | None, int | None, int | None, tuple[int, ...] | None]:
    """Return the usage, user time, system time and times of each processor from cpuacct, in microseconds."""
    per_cpu = tuple(value // 1000 for value in integers(read("cpuacct.usage_percpu"))) or None
    return (
        _micro(integer(read("cpuacct.usage"))),
        _micro(integer(read("cpuacct.usage_user"))),
        _micro(integer(read("cpuacct.usage_sys"))),
        per_cpu,
    )
