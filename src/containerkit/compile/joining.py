"""How a process comes into its control groups, before the first instruction of the command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._native import constants as k
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot

if TYPE_CHECKING:
    from containerkit.compile.timens import Clock

GROUP: Final = Slot("cgroup")
"""The directory of a version 2 control group."""


class Joining(NamedTuple):
    """How a process comes into its control groups, before the first instruction of the command.

    When a group is out of memory the kernel may end a process in it, and with it every other that shares its memory. So
    nobody is in a group with a memory limit while it still shares the caller's: such files are opened outside, and
    written to once the process is in the sealed init.

    Attributes:
        old: how many groups of version 1 it joins; the slots of their directories are ``cgroup 0``, ``cgroup 1``, ...
        alone: the numbers of those that limit memory. The others are joined before the clone, which ``pids.max``
            may then refuse.
        new: whether it joins a version 2 group, whose directory is in the slot ``cgroup``.
        late: that group has a memory limit already, as a live container's has, or may have one, as that of another
            owner's: it is joined by its file, and not by the clone, which is faster by an RCU grace period.
        limit: what is written to ``memory.max`` of that group when it has none before: empty for nothing.
    """

    old: int = 0
    alone: tuple[int, ...] = ()
    new: bool = False
    late: bool = False
    limit: bytes = b""

    @property
    def group(self) -> Slot | None:
        """What the clone is to be born into."""
        return GROUP if self.new and not self.late else None

    def outside(self) -> list[Operation]:
        """Return the operations of the process that is about to clone, which shares the caller's memory."""
        steps: list[Operation] = []
        for number in range(self.old):
            opened, *written = self._tasks(number)
            steps += [opened] if number in self.alone else [opened, *written]
        return [*steps, *[opened for opened, *_ in self._unified()]]

    def inside(self) -> list[Operation]:
        """Return the operations of a process that shares its memory with nobody."""
        files = [*map(self._tasks, self.alone), *self._unified()]
        return [step for _, *written in files for step in written]

    def clock(self, clock: Clock) -> Clock:
        """Return what is done in an address space of one's own, with the joining."""
        return clock._replace(after=(*self.inside(), *clock.after))

    def _tasks(self, number: int) -> list[Operation]:
        """A thread moves through ``tasks`` without a grace period; ``0`` is the writer. Source: cgroups(7)."""
        return _entry(Slot(f"cgroup {number}"), b"tasks", b"0", Slot(f"tasks {number}"), _GROUP_HINT)

    def _unified(self) -> list[list[Operation]]:
        found: list[list[Operation]] = []
        if self.new and self.late:
            found.append(_entry(GROUP, b"cgroup.procs", b"0", Slot("procs"), _GROUP_HINT))
        if self.limit:
            found.append(_entry(GROUP, b"memory.max", self.limit, Slot("memory.max")))
        return found


def _entry(directory: Slot, name: bytes, value: bytes, at: Slot, hint: str = "") -> list[Operation]:
    """Return how a file of a group is opened, then how it is written to."""
    target = name.decode()
    opened = calls.open_at(directory, name, k.O_WRONLY | k.O_CLOEXEC, at, target=target, hint=hint)
    return [opened, calls.write(at, value, target, hint), calls.close(at)]


NOTHING_TO_JOIN: Final = Joining()


_GROUP_HINT: Final = (
    "the group is gone; or a real-time process joins a cpu group of version 1 without cpu_rt_runtime_us"
)
