"""How a process joins its control groups before the first instruction of the command."""

from __future__ import annotations

from containerkit._native import constants as k
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.timens import Clock

GROUP: Final = Slot("cgroup")
"""The directory of a version 2 control group."""


class Joining(NamedTuple):
    """How a process joins its control groups before the first instruction of the command.

    If a group is out of memory, the kernel may kill a process in it, and with it every other process that shares its
    memory. So a process that shares the caller's memory must not be in a group with a memory limit. The files of
    such groups are opened outside, and written to when the process runs the sealed init.

    Attributes:
        old: the number of version 1 groups that it joins. The slots of their directories are ``cgroup 0``, ``cgroup
            1``, ...
        alone: the numbers of those with a memory limit. The others are joined before the clone, so that ``pids.max``
            can refuse it.
        new: whether it joins a version 2 group, whose directory is in the slot ``cgroup``.
        late: whether that group has a memory limit already (a live container), or may have one (the container of
            another owner). It is then joined through its file. Joining by the clone saves an RCU grace period.
        limit: the text for ``memory.max`` of that group if it has no limit yet, or an empty string.
    """

    old: int = 0
    alone: tuple[int, ...] = ()
    new: bool = False
    late: bool = False
    limit: bytes = b""

    @property
    def group(self) -> Slot | None:
        """The group into which the process is cloned."""
        return GROUP if self.new and not self.late else None

    def outside(self) -> list[Operation]:
        """Return the operations before the clone, in a process that shares the caller's memory."""
        steps: list[Operation] = []
        for number in range(self.old):
            opened, *written = self._tasks(number)
            steps += [opened] if number in self.alone else [opened, *written]
        return [*steps, *[opened for opened, *_ in self._unified()]]

    def inside(self) -> list[Operation]:
        """Return the operations of a process with its own memory."""
        files = [*map(self._tasks, self.alone), *self._unified()]
        return [step for _, *written in files for step in written]

    def clock(self, clock: Clock) -> Clock:
        """Return the operations of ``clock`` and those that join the groups, for a process with its own memory."""
        return clock._replace(after=(*self.inside(), *clock.after))

    def _tasks(self, number: int) -> list[Operation]:
        """Write to ``tasks``, which moves a thread without a grace period; ``0`` is the writer. Source: cgroups(7)."""
        return _entry(Slot(f"cgroup {number}"), b"tasks", b"0", Slot(f"tasks {number}"), _GROUP_HINT)

    def _unified(self) -> list[list[Operation]]:
        found: list[list[Operation]] = []
        if self.new and self.late:
            found.append(_entry(GROUP, b"cgroup.procs", b"0", Slot("procs"), _GROUP_HINT))
        if self.limit:
            found.append(_entry(GROUP, b"memory.max", self.limit, Slot("memory.max")))
        return found


def _entry(directory: Slot, name: bytes, value: bytes, at: Slot, hint: str = "") -> list[Operation]:
    """Return the operations that open a file of a group, and those that write to it."""
    target = name.decode()
    opened = calls.open_at(directory, name, k.O_WRONLY | k.O_CLOEXEC, at, target=target, hint=hint)
    return [opened, calls.write(at, value, target, hint), calls.close(at)]


NOTHING_TO_JOIN: Final = Joining()


_GROUP_HINT: Final = "the group was removed, or this real-time process needs cpu_rt_runtime_us in a version 1 cpu group"
