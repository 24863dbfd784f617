"""The measurements of a run, as data."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs

__all__ = ["Measurement", "PressureTimes", "Termination"]

Termination = Literal["cputime", "cputime-soft", "walltime", "memory", "killed"]
"""Why a run was ended before it ended by itself."""

_ROUNDED: Final = 6


@attrs.frozen(kw_only=True)
class PressureTimes:
    """How long processes of the run waited for a resource, in seconds: at least one of them, and all of them at once.

    Source: Documentation/accounting/psi.rst.
    """

    some_s: float
    full_s: float | None = None


@attrs.frozen(kw_only=True)
class Measurement:
    """The measurements of a run. A field is None if the machine does not report it.

    Attributes:
        argv: the program and its arguments.
        returncode: its exit status, or the negative number of the signal that ended it.
        termination: which limit ended it: ``"cputime"``, ``"cputime-soft"``, ``"walltime"``, ``"memory"``, or
            ``"killed"`` by :meth:`RunExecutor.stop`; None when it ended by itself.
        started_at: when it was started, ISO 8601 in UTC.
        wall_s: seconds from its start to its end.
        cpu_s, cpu_user_s, cpu_system_s: seconds of processor time of all its processes, also of those that nobody
            waited for.
        cpu_per_core_s: the same for each processor, by its number.
        memory_peak_bytes: the peak memory of all its processes together, including page cache and files in memory.
        oom_kills: how many of its processes the kernel killed for memory.
        pids_peak: the most processes and threads at a time.
        io_read_bytes, io_write_bytes: from and to block devices.
        throttled_s: for how long a limit on processor time held it back.
        thermal_throttles: how often its processors were slowed for heat meanwhile.
        frequency_mhz: of its processors, the mean of what was seen.
        pressure: by ``"cpu"``, ``"memory"`` and ``"io"``.
        cores, memory_nodes: the processors and memory nodes that it was allotted.
    """

    argv: tuple[str, ...]
    returncode: int
    termination: Termination | None = None
    started_at: str
    wall_s: float
    cpu_s: float
    cpu_user_s: float | None = None
    cpu_system_s: float | None = None
    cpu_per_core_s: dict[int, float] | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    pids_peak: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    throttled_s: float | None = None
    thermal_throttles: int | None = None
    frequency_mhz: float | None = None
    pressure: dict[str, PressureTimes] | None = None
    cores: tuple[int, ...] | None = None
    memory_nodes: tuple[int, ...] | None = None

    @property
    def exit_signal(self) -> int | None:
        """The signal that ended it; None when it ended by itself."""
        return -self.returncode if self.returncode < 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        plain: dict[str, Any] = attrs.asdict(self, value_serializer=lambda _, __, value: _plain(value))
        if self.cpu_per_core_s is not None:
            plain["cpu_per_core_s"] = {str(number): _plain(value) for number, value in self.cpu_per_core_s.items()}
        return plain

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        import json

        return json.dumps(self.to_dict())


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _ROUNDED)
    return list(value) if isinstance(value, tuple) else value
