"""The measurements of a run, as data."""

from __future__ import annotations

from typing import Any, Final, Literal

import attrs

__all__ = ["Measurement", "PressureTimes", "Termination"]

Termination = Literal["cputime", "cputime-soft", "walltime", "memory", "killed"]
"""Why a run was ended."""

_ROUNDED: Final = 6


@attrs.frozen(kw_only=True)
class PressureTimes:
    """The time in seconds that processes of the run waited for a resource: some of them, and all of them at once.

    Source: Documentation/accounting/psi.rst.
    """

    some_s: float
    full_s: float | None = None


@attrs.frozen(kw_only=True)
class Measurement:
    """The measurements of a run. A field is None if the machine does not report it.

    Attributes:
        argv: the program and its arguments.
        returncode: its exit status, or the negative number of the signal that killed it.
        termination: which limit ended it: ``"cputime"``, ``"cputime-soft"``, ``"walltime"``, ``"memory"``, or
            ``"killed"`` by :meth:`RunExecutor.stop`; None if it ended by itself.
        started_at: when it was started, ISO 8601 in UTC.
        wall_s: seconds from its start to its end.
        cpu_s, cpu_user_s, cpu_system_s: seconds of processor time of all its processes, including those that were
            never waited for.
        cpu_per_core_s: the same for each processor, by its number.
        memory_peak_bytes: the peak memory of all its processes together, including page cache and files in memory.
        oom_kills: the number of its processes that the kernel killed because memory ran out.
        pids_peak: the maximum number of processes and threads at a time.
        io_read_bytes, io_write_bytes: from and to block devices.
        throttled_s: the time in seconds that a limit on processor time throttled it.
        thermal_throttles: how often its processors were throttled because of heat.
        frequency_mhz: the mean of the sampled frequencies of its processors.
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
        """The signal that killed it; None if it exited."""
        return -self.returncode if self.returncode < 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
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
