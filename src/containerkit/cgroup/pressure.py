"""Pressure stall information of a group: the time that its tasks lost while they waited for a resource.

Source: Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
import select
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final, Literal

import attrs

from containerkit.cgroup.directory import refused
from containerkit.cgroup.quantities import whole
from containerkit.cgroup.statfiles import pressure_lines
from containerkit.cgroup.stats import Pressure, PressureShare
from containerkit.descriptors import Closing
from containerkit.errors import SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.directory import Directory

__all__ = ["PressureReader", "PressureTrigger", "TriggerWatch", "parse_pressure"]

Resource = Literal["cpu", "memory", "io"]

_HINT: Final = "boot with psi=1 on a kernel with CONFIG_PSI, and mount a cgroup2"


def parse_pressure(text: str | None) -> Pressure | None:
    """Parse a pressure file. Return None if it has no ``some`` line."""
    found = {
        name: PressureShare(
            avg10=values["avg10"], avg60=values["avg60"], avg300=values["avg300"], total_us=int(values["total"])
        )
        for name, values in pressure_lines(text)
    }
    return Pressure(some=found["some"], full=found.get("full")) if "some" in found else None


@attrs.frozen(kw_only=True)
class PressureTrigger:
    """A pressure threshold: notify when tasks stalled for this long within the time window.

    Args:
        resource: ``"cpu"``, ``"memory"`` or ``"io"``.
        share: ``"some"`` counts time in which at least one task stalled, ``"full"`` time in which all tasks stalled.
        stall_us: the total stall time in microseconds, at least 1 and at most the window.
        window_us: the window in microseconds, 500000 to 10000000. Without CAP_SYS_RESOURCE the kernel accepts only
            multiples of 2000000.

    Raises:
        SpecError: a value is out of range.
    """

    resource: Resource = attrs.field()
    share: Literal["some", "full"] = attrs.field(default="some")
    stall_us: int = attrs.field(default=100_000)
    window_us: int = attrs.field(default=2_000_000)

    def __attrs_post_init__(self) -> None:
        if self.resource not in {"cpu", "memory", "io"}:
            raise SpecError(f"resource: {self.resource!r} is not one of cpu, memory, io")
        if self.share not in {"some", "full"}:
            raise SpecError(f"share: {self.share!r} is not one of some, full")
        whole(self.window_us, "window_us", 500_000, 10_000_000)
        whole(self.stall_us, "stall_us", 1, self.window_us)


class TriggerWatch(Closing):
    """An active trigger. It owns its descriptor, which poll(2) reports with POLLPRI. Closing it removes the trigger."""

    __slots__ = ("_fd", "trigger")

    def __init__(self, fd: int, trigger: PressureTrigger) -> None:
        self._fd = fd
        self.trigger = trigger

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"<TriggerWatch {self.trigger.resource} {self.trigger.share} {state}>"

    def fileno(self) -> int:
        """Return the descriptor, for poll(2) with POLLPRI."""
        if self._fd < 0:
            raise StateError("trigger: it is closed")
        return self._fd

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the threshold is exceeded. Return False if the timeout expires first.

        Args:
            timeout: in seconds. Default: no timeout.

        Raises:
            StateError: the trigger is closed, or the group no longer exists.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLPRI)
        for _, what in poll.poll(None if timeout is None else timeout * 1000):
            if what & select.POLLERR:
                raise StateError("trigger: the group no longer exists")
            return True
        return False

    def close(self) -> None:
        """Remove the trigger. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class PressureReader:
    """The pressure of a group. Each access reads it again."""

    __slots__ = ("_directory", "_path")

    def __init__(self, directory: Directory | None, path: str) -> None:
        self._directory = directory
        self._path = path

    def __repr__(self) -> str:
        return f"<PressureReader {self._path}>"

    @property
    def cpu(self) -> Pressure:
        """Time lost waiting for a processor."""
        return self._read("cpu")

    @property
    def memory(self) -> Pressure:
        """Time lost waiting for memory: reclaim, refaults, swap."""
        return self._read("memory")

    @property
    def io(self) -> Pressure:
        """Time lost waiting for block devices."""
        return self._read("io")

    def _read(self, resource: str) -> Pressure:
        found = None if self._directory is None else parse_pressure(self._directory.read(f"{resource}.pressure"))
        if found is None:
            raise UnsupportedError("read", EOPNOTSUPP, f"{self._path}/{resource}.pressure", _HINT)
        return found

    def trigger(self, trigger: PressureTrigger) -> TriggerWatch:
        """Activate a trigger.

        Raises:
            UnsupportedError: the kernel does not report the pressure of this group.
            SetupError: the kernel does not accept the trigger.

        Source: "Monitoring for pressure thresholds" in Documentation/accounting/psi.rst.
        """
        file = f"{trigger.resource}.pressure"
        if self._directory is None:
            raise UnsupportedError("open", EOPNOTSUPP, f"{self._path}/{file}", _HINT)
        text = f"{trigger.share} {trigger.stall_us} {trigger.window_us}"
        fd = -1
        try:
            fd = self._directory.open_file(file, os.O_RDWR | os.O_NONBLOCK)
            os.write(fd, text.encode() + b"\0")
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            if error.errno in {ENOENT, EOPNOTSUPP}:
                raise UnsupportedError("open", EOPNOTSUPP, f"{self._path}/{file}", _HINT) from None
            hint = "without CAP_SYS_RESOURCE the window must be a multiple of 2000000" if error.errno == EINVAL else ""
            raise refused("write", error, f"{text} to {self._path}/{file}", hint) from None
        return TriggerWatch(fd, trigger)
