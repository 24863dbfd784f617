"""The kernel's counters of the control group and of the processors during a run."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import UnsupportedError
from containerkit.measure.result import PressureTimes

if TYPE_CHECKING:
    from containerkit.cgroup import CGroup

__all__ = ["Meters"]

_RESOURCES: Final = ("cpu", "memory", "io")
_SYSTEM: Final = "/sys/devices/system/cpu"


class Meters:
    """Reads counters at the start and at the end of a run.

    Args:
        group: the container's group.
        cores: the processors of the run; empty for all.
    """

    def __init__(self, group: CGroup, cores: tuple[int, ...]) -> None:
        self._group = group
        self._cores = cores or _all_cores()
        self._per_core = self._per_core_us()
        self._heat = self._throttles()
        self._stalls = self._pressure() or {}
        self._frequencies: list[float] = []
        self.look()

    def look(self) -> None:
        """Sample the frequency, which has no counter."""
        seen = [found for number in self._cores if (found := _number(number, "cpufreq/scaling_cur_freq")) is not None]
        if seen:
            self._frequencies.append(sum(seen) / len(seen) / 1000)

    def read(self) -> dict[str, Any]:
        """Return the fields of a measurement."""
        self.look()
        heat = self._throttles()
        samples = self._frequencies
        return {
            "cpu_per_core_s": self._per_core_s(),
            "thermal_throttles": None if heat is None or self._heat is None else heat - self._heat,
            "frequency_mhz": sum(samples) / len(samples) if samples else None,
            "pressure": self._since(),
        }

    def _since(self) -> dict[str, PressureTimes] | None:
        now = self._pressure()
        if now is None:
            return None
        since: dict[str, PressureTimes] = {}
        for resource, after in now.items():
            before = self._stalls.get(resource, PressureTimes(some_s=0, full_s=0))
            full = None if after.full_s is None else after.full_s - (before.full_s or 0)
            since[resource] = PressureTimes(some_s=after.some_s - before.some_s, full_s=full)
        return since

    def _per_core_us(self) -> tuple[int, ...] | None:
        cpu = self._group.stats().cpu
        return None if cpu is None else cpu.per_cpu_us

    def _per_core_s(self) -> dict[int, float] | None:
        now = self._per_core_us()
        if now is None or self._per_core is None:
            return None
        pairs = enumerate(zip(now, self._per_core, strict=True))
        return {number: (after - before) / 1e6 for number, (after, before) in pairs if after > before}

    def _throttles(self) -> int | None:
        counts = [_number(number, "thermal_throttle/core_throttle_count") for number in self._cores]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _pressure(self) -> dict[str, PressureTimes] | None:
        found: dict[str, PressureTimes] = {}
        with contextlib.suppress(UnsupportedError):  # not version 2, or not supported by the kernel
            for resource in _RESOURCES:
                pressure = getattr(self._group.pressure, resource)
                full = None if pressure.full is None else pressure.full.total_us / 1e6
                found[resource] = PressureTimes(some_s=pressure.some.total_us / 1e6, full_s=full)
        return found or None


def _all_cores() -> tuple[int, ...]:
    from containerkit.measure.topology import Topology

    return tuple(processor.number for processor in Topology.read().processors)


def _number(core: int, name: str) -> int | None:
    try:
        with open(f"{_SYSTEM}/cpu{core}/{name}", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
