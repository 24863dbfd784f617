"""Pressure stall information of a group: how much time its tasks lost waiting for a resource.

Source: Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
import select
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final, Literal, Self

import attrs

from containerkit.cgroup.directory import refused
from containerkit.cgroup.quantities import whole
from containerkit.cgroup.statfiles import pressure_lines
from containerkit.cgroup.stats import Pressure, PressureShare
from containerkit.errors import SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from types import TracebackType

    from containerkit.cgroup.directory import Directory

__all__ = ["PressureReader", "PressureTrigger", "TriggerWatch", "parse_pressure"]

Resource = Literal["cpu", "memory", "io"]

_HINT: Final = "boot with psi=1 on a kernel with CONFIG_PSI, and mount a cgroup2"


def parse_pressure(text: str | None) -> Pressure | None:
    """Return the content of a pressure file; None without a ``some`` line."""
    found = {
        name: PressureShare(
            avg10=values["avg10"], avg60=values["avg60"], avg300=values["avg300"], total_us=int(values["total"])
        )
        for name, values in pressure_lines(text)
    }
    return Pressure(some=found["some"], full=found.get("full")) if "some" in found else None


@attrs.frozen(kw_only=True)
class PressureTrigger:
    """When to be woken for pressure: stalls of so much time within a window.

    Args:
        resource: ``"cpu"``, ``"memory"`` or ``"io"``.
        share: ``"some"``, at least one task stalled, or ``"full"``, all of them.
        stall_us: the sum of stalls in microseconds, 1 or more and at most the window.
        window_us: the window in microseconds, 500000 to 10000000. Without CAP_SYS_RESOURCE the kernel takes
            multiples of 2000000 only.

    Raises:
        SpecError: a value out of range.
    """

    resource: Resource = attrs.field()
    share: Literal["some", "full"] = attrs.field(default="some")
    stall_us: int = attrs.field(default=100_000)
    window_us: int = attrs.field(default=2_000_000)

    def __attrs_post_init__(self) -> None:
        if self.resource not in {"cpu", "memory", "io"}:
            raise SpecError(f"resource: {self.resource!r} is none of cpu, memory, io")
        if self.share not in {"some", "full"}:
            raise SpecError(f"share: {self.share!r} is none of some, full")
        whole(self.window_us, "window_us", 500_000, 10_000_000)
        whole(self.stall_us, "stall_us", 1, self.window_us)


class TriggerWatch:
    """A trigger that is set. It owns its descriptor, which poll(2) reports by POLLPRI; closing unsets the trigger."""

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

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is so much pressure; False when the time is up first.

        Args:
            timeout_s: seconds. Default forever.

        Raises:
            StateError: it is closed, or the group is gone.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLPRI)
        for _, what in poll.poll(None if timeout_s is None else timeout_s * 1000):
            if what & select.POLLERR:
                raise StateError("trigger: the group is gone")
            return True
        return False

    def close(self) -> None:
        """Unset the trigger. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PressureReader:
    """The pressure of a group, read anew each time."""

    __slots__ = ("_directory", "_path")

    def __init__(self, directory: Directory | None, path: str) -> None:
        self._directory = directory
        self._path = path

    def __repr__(self) -> str:
        return f"<PressureReader {self._path}>"

    @property
    def cpu(self) -> Pressure:
        """Waiting for a processor."""
        return self._read("cpu")

    @property
    def memory(self) -> Pressure:
        """Waiting for memory: reclaim, refaults, swap."""
        return self._read("memory")

    @property
    def io(self) -> Pressure:
        """Waiting for block devices."""
        return self._read("io")

    def _read(self, resource: str) -> Pressure:
        found = None if self._directory is None else parse_pressure(self._directory.read(f"{resource}.pressure"))
        if found is None:
            raise UnsupportedError("read", EOPNOTSUPP, f"{self._path}/{resource}.pressure", _HINT)
        return found

    def trigger(self, trigger: PressureTrigger) -> TriggerWatch:
        """Set a trigger.

        Raises:
            UnsupportedError: the kernel has no pressure of groups here.
            SetupError: it does not take the trigger.

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
