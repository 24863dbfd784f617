"""How a process enters the sealed init and its time namespace. Source: time_namespaces(7)."""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.compile.facts import JOIN_PREFIX
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.security.confinement import PROC
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from containerkit.compile.facts import Start
    from containerkit.spec.command import Command


def clock(start: Start) -> Clock:
    """Return how the payload enters its time namespace, and the init if it does not run it yet."""
    return clock_alone(start)._replace(entered=start.joins_alone)


def clock_alone(start: Start) -> Clock:
    """Return how a process enters its time namespace and the init. Source: time_namespaces(7)."""
    if start.is_joined("time"):
        return joined_clock(Slot(JOIN_PREFIX + "time"))
    if not start.is_new("time"):
        return NO_CLOCK
    steps = [calls.unshare(k.CLONE_NEWTIME, "time namespace")]
    at = Slot("timens")
    if start.spec.time_offsets:
        offsets = start.spec.time_offsets.encode()
        steps += [
            calls.open_at(k.AT_FDCWD, b"/proc/self/timens_offsets", k.O_WRONLY, at),
            calls.write(at, offsets, "time offsets", "the offset would make a clock negative"),
            calls.close(at),
        ]
    if not exec_enters_time():
        steps += [
            calls.open_at(PROC, b"self/ns/time_for_children", k.O_RDONLY, at),
            calls.setns(at, k.CLONE_NEWTIME, "time namespace"),
            calls.close(at),
        ]
        return Clock(after=tuple(steps))
    return Clock(after=tuple(steps), again=True) if start.spec.time_offsets else Clock(before=tuple(steps))


def exec_enters_time() -> bool:
    """Return whether an exec enters the time namespace that the process has unshared (Linux 6.3).

    On older kernels it stays outside. It can then neither start threads nor vfork, which would share memory across both
    namespaces.
    """
    numbers = os.uname().release.split("-")[0].split(".")
    return [int(number) for number in numbers[:2] if number.isdecimal()] >= [6, 3]


class Clock(NamedTuple):
    """How a process enters the sealed init and its time namespace.

    Attributes:
        before: the operations that come first. The next exec enters an unshared time namespace (Linux 6.3).
        after: the operations that need their own address space, such as setns(2) to a time namespace. They also need
            it for /proc/self, which root of the host owns while memory is shared with a process that is not dumpable.
        again: whether another exec of the init enters the unshared namespace.
        entered: whether the process is already in the init.
    """

    before: tuple[Operation, ...] = ()
    after: tuple[Operation, ...] = ()
    again: bool = False
    entered: bool = False

    def operations(self, kept: Iterable[int] = (), *, board: bool = False) -> list[Operation]:
        """Return all operations. The arguments are those of :func:`containerkit.plan.calls.enter`."""
        entering = calls.enter(Slot("image"), kept, board=board)
        first = [] if self.entered else [*self.before, entering]
        return [*first, *self.after, *([entering] if self.again else [])]

    def adjusted(self, command: Command) -> Clock:
        """Return a copy with more operations that need their own address space."""
        return self._replace(after=(*self.after, *command.confinement.adjust()))


NO_CLOCK: Final = Clock()


def joined_clock(namespace: Slot) -> Clock:
    """Return how to enter an existing time namespace."""
    hint = "only its owner can join it: join its user namespace as well"
    return Clock(after=(calls.setns(namespace, k.CLONE_NEWTIME, "time namespace", hint),))
