"""The last stretch of a plan: how a process inside becomes a command, and how one joins a container that is alive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit import command as commands
from containerkit import plan
from containerkit._native import constants as k
from containerkit.plan import Operation, Plan, Slot
from containerkit.security.confinement import PROC

if TYPE_CHECKING:
    from containerkit.command import Command

__all__ = [
    "GROUP",
    "NOTHING_TO_JOIN",
    "NO_CLOCK",
    "Clock",
    "Joining",
    "be_root",
    "become",
    "exec_plan",
    "files_plan",
    "joined_clock",
    "rest_plan",
]

_PID: Final = Slot("pid")


class Clock(NamedTuple):
    """How a process comes into a time namespace.

    By leaving for a new one, which the exec that follows enters (Linux 6.3), or by joining one.

    Attributes:
        steps: the operations; none to stay where it is.
        alone: they take an address space of one's own. So does setns(2) to a time namespace; and /proc/self belongs to
            the machine's root while the memory is shared with a process that is not dumpable.
        needs: slots whose descriptors the steps use.
    """

    steps: tuple[Operation, ...] = ()
    alone: bool = False
    needs: tuple[Slot, ...] = ()

    def operations(self, *, kept: tuple[Slot, ...] = ()) -> list[Operation]:
        """Return them all; ``kept`` are slots whose descriptors are needed afterwards."""
        if not self.alone:
            return list(self.steps)
        stay_open = [plan.call("fcntl", slot, 2, 0, target=slot.name) for slot in (*self.needs, *kept)]  # F_SETFD
        return [*stay_open, plan.enter(Slot("image")), *self.steps]

    def adjusted(self, command: Command) -> Clock:
        """Return it with what else of a command takes an address space of one's own."""
        more = command.confinement.adjust()
        return self._replace(steps=(*self.steps, *more), alone=True, needs=(*self.needs, PROC)) if more else self


NO_CLOCK: Final = Clock()


def joined_clock(namespace: Slot) -> Clock:
    """Return the way into an existing time namespace."""
    hint = "its owner alone can join it: join its user namespace as well"
    steps = (plan.setns(namespace, k.CLONE_NEWTIME, "time namespace", hint),)
    return Clock(steps=steps, alone=True, needs=(namespace,))


def be_root() -> list[Operation]:
    """Return the operations that make a process root of its user namespace: an exec keeps root's rights only."""
    return [plan.call("setresgid", 0, 0, 0, target="gid 0"), plan.call("setresuid", 0, 0, 0, target="uid 0")]


def become(
    command: Command,
    *,
    sets_groups: bool,
    clock: Clock = NO_CLOCK,
    dies_with_parent: bool = False,
    gate: int | None = None,
    held: bool = False,
) -> list[Operation]:
    """Return the operations by which a process inside becomes a command.

    Args:
        command: what it becomes.
        sets_groups: whether its user namespace lets it set supplementary groups.
        clock: how it comes into its time namespace.
        dies_with_parent: no init watches over it: it gets SIGKILL when the thread that started it ends.
        gate: where it waits for PID 1: as late as it can, before a filter may keep it from waiting.
        held: it waits for its words then; :func:`rest_plan` is what is left to do.
    """
    waiting = [] if gate is None else [plan.await_release(gate=gate)]
    early = clock.alone or not command.confinement.no_new_privs
    confinement = command.confinement
    closing = commands.close_the_rest(command.pass_fds)
    steps = commands.session(command)
    if early:
        steps += waiting
    if clock.alone:
        steps += closing
    steps += [*confinement.first(), *clock.operations()]
    steps += [
        *confinement.before_user(keep=command.user.uid != 0 and bool(confinement.capabilities.permitted)),
        *commands.credentials(command.user, may_set_groups=sets_groups),
        *commands.place(command),
        *closing,
        *confinement.after_user(),
    ]
    if dies_with_parent:
        steps.append(plan.prctl("die with the parent", k.PR_SET_PDEATHSIG, 9))
    steps += [plan.reset_signals(), *(() if early else waiting)]
    if held:
        return [*steps, *(_dress(command) if _can_sleep(command) else ()), plan.hold()]
    return [*steps, *_dress(command), *commands.execute(command)]


def _dress(command: Command) -> list[Operation]:
    """The limits come after all that opens files: the numbers of new descriptors may lie beyond them."""
    confinement = command.confinement
    return [*confinement.walls(), *commands.surroundings(command), *confinement.last()]


def _can_sleep(command: Command) -> bool:
    """Whether it can be held behind its filter: one that somebody has written may not let it."""
    return command.confinement.seccomp in ("default", None)


def rest_plan(command: Command) -> Plan:
    """Return what is left to do for a command that was held, once its words are known."""
    return Plan((*(() if _can_sleep(command) else _dress(command)), *commands.execute(command)))


GROUP: Final = Slot("cgroup")
"""The directory of a version 2 control group."""


class Joining(NamedTuple):
    """How a process comes into its control groups, before the first instruction of the command.

    Attributes:
        old: how many groups of version 1 it joins; the slots of their directories are ``cgroup 0``, ``cgroup 1``, ...
        born: whether it is cloned into a version 2 group, in the slot ``cgroup``.
        late: others are in the group, who may have used up its memory: it joins when it shares its own with nobody any
            more. The kernel may choose it to make room, and would end the caller with it until then.
    """

    old: int = 0
    born: bool = False
    late: bool = False

    def operations(self) -> list[Operation]:
        """Return the operations of the process that is about to clone. ``0`` is the writer. Source: cgroups(7)."""
        files = self._files()
        if self.late:
            return [opened for opened, _ in files]
        return [step for opened, written in files for step in (opened, *written)]

    def clock(self, clock: Clock) -> Clock:
        """Return what is done in an address space of one's own, with the joining if it is late."""
        if not self.late:
            return clock
        files = self._files()
        writes = [step for _, written in files for step in written]
        needs = [opened.result for opened, _ in files if opened.result is not None]
        return clock._replace(steps=(*writes, *clock.steps), alone=True, needs=(*clock.needs, *needs))

    def _files(self) -> list[tuple[Operation, list[Operation]]]:
        """How each file is opened, and written to. A thread moves through ``tasks`` without a grace period."""
        places = [(Slot(f"cgroup {number}"), b"tasks") for number in range(self.old)]
        if self.born and self.late:
            places.append((GROUP, b"cgroup.procs"))
        files: list[tuple[Operation, list[Operation]]] = []
        for number, (directory, name) in enumerate(places):
            at, target = Slot(f"tasks {number}"), name.decode()
            flags = k.O_WRONLY | k.O_CLOEXEC
            opened = plan.open_at(directory, name, flags, at, target=target, hint=_GROUP_HINT)
            files.append((opened, [plan.write(at, b"0", target, _GROUP_HINT), plan.close(at)]))
        return files

    @property
    def group(self) -> Slot | None:
        """What the clone is to be born into."""
        return GROUP if self.born and not self.late else None


NOTHING_TO_JOIN: Final = Joining()
_GROUP_HINT: Final = (
    "the group is gone; or a real-time process joins a cpu group of version 1 without cpu_rt_runtime_us"
)


def exec_plan(command: Command, kinds: int, *, sets_groups: bool, joins: Joining = NOTHING_TO_JOIN) -> Plan:
    """Return the plan that runs a command in a container that is alive.

    Inputs (slots): ``target``, a pidfd of its init; ``stdin``, ``stdout``, ``stderr``; ``caller's proc``; ``time``, a
    descriptor of its time namespace, where that differs; ``image``, the init.

    Args:
        command: what to run.
        kinds: the ``CLONE_NEW*`` of the namespaces in which it differs from the caller.
        sets_groups: as for :func:`become`.
        joins: how it comes into its control groups.
    """
    clock = joins.clock((joined_clock(Slot("time")) if kinds & k.CLONE_NEWTIME else NO_CLOCK).adjusted(command))
    steps = [
        plan.call("umask", 0),
        *joins.operations(),
        plan.setns(Slot("target"), kinds & ~k.CLONE_NEWTIME, "the container's namespaces", "the container has stopped"),
        plan.clone(k.CLONE_PARENT | k.CLONE_FILES, "command", pid=_PID, group=joins.group, target="command"),
        plan.release(),
        plan.leave(),
        plan.await_release("command"),
        *(be_root() if clock.alone and kinds & k.CLONE_NEWUSER else ()),
        *become(command, sets_groups=sets_groups, clock=clock),
    ]
    return Plan(tuple(steps))


def files_plan(kinds: int, operations: list[Operation], *, user: bool) -> Plan:
    """Return the plan that does something with the files of a live container, as its root, for the caller.

    Args:
        kinds: as for :func:`exec_plan`; only the mount and user namespace are joined.
        operations: what to do; descriptors that they open are the caller's.
        user: whether the container has a user namespace of its own.
    """
    wanted = kinds & (k.CLONE_NEWNS | k.CLONE_NEWUSER)
    steps = [plan.call("umask", 0), plan.setns(Slot("target"), wanted, "the container", "the container has stopped")]
    if user:
        steps += be_root()
    return Plan((*steps, *operations, plan.leave()))
