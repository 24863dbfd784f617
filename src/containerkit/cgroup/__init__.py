"""Control groups of version 1, version 2 and both at once: limits, reports, events.

::

    with CGroup.create("job", Limits(memory="256M", pids=64, cpus=1.5)) as group:
        group.add(pid)
        group.stats().memory.peak_bytes

It can be used alone. The start of a container uses :meth:`CGroup.attach_files`.
"""

from __future__ import annotations

from containerkit.cgroup.limits import Limits
from containerkit.late import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.cgroup.device_rules import DeviceRule, IOLimit
    from containerkit.cgroup.events import Event, Events
    from containerkit.cgroup.group import CGroup
    from containerkit.cgroup.perf import PerfCounters
    from containerkit.cgroup.pressure import PressureTrigger
    from containerkit.cgroup.quantities import parse_size
    from containerkit.cgroup.stats import GroupUsage, Pressure, Stats
    from containerkit.cgroup.sweeping import sweep

__all__ = [
    "CGroup",
    "DeviceRule",
    "Event",
    "Events",
    "GroupUsage",
    "IOLimit",
    "Limits",
    "PerfCounters",
    "Pressure",
    "PressureTrigger",
    "Stats",
    "parse_size",
    "sweep",
]

_LATE = {
    "CGroup": "group",
    "DeviceRule": "device_rules",
    "Event": "events",
    "Events": "events",
    "IOLimit": "device_rules",
    "PerfCounters": "perf",
    "Pressure": "stats",
    "PressureTrigger": "pressure",
    "Stats": "stats",
    "GroupUsage": "stats",
    "parse_size": "quantities",
    "sweep": "sweeping",
}

__getattr__, __dir__ = lazy(globals(), _LATE)
