"""Version 1's cpuacct controller counts processor time and has no limits. On version 2 cpu.stat has these counts.

Source: Documentation/admin-guide/cgroup-v1/cpuacct.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.controllers import Attachment, Setting
    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.stats import CpuStats


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - the interface of controllers
    """Return nothing: the controller only counts."""
    return []


def report(read: Callable[[str], str | None], version: int) -> CpuStats:  # noqa: ARG001 - version 1 only
    """Return the processor time, without the parts of the report that concern limits."""
    from containerkit.cgroup.controllers.cpu import accounted
    from containerkit.cgroup.stats import CpuStats

    usage, user, system, per_cpu = accounted(read)
    return CpuStats(usage_us=usage, user_us=user, system_us=system, per_cpu_us=per_cpu)
