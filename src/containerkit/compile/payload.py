"""The last part of a plan: a process inside becomes the command, or joins a running container."""

from __future__ import annotations

from containerkit._native import constants as k
from containerkit.compile import process
from containerkit.compile.joining import NOTHING_TO_JOIN, Joining
from containerkit.compile.timens import NO_CLOCK, joined_clock
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.tape import Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from containerkit.spec.command import Command

__all__ = [
    "be_root",
    "become",
    "exec_plan",
    "files_plan",
    "rest_plan",
    "strip",
]

_PID: Final = Slot("pid")
_OWNER: Final = Slot("owner")
_TARGET: Final = Slot("target")
_STOPPED: Final = "the container has stopped"


def be_root() -> list[Operation]:
    """Return the operations that make a process root of its user namespace. Only root keeps privileges at an exec."""
    return [calls.call("setresgid", 0, 0, 0, target="gid 0"), calls.call("setresuid", 0, 0, 0, target="uid 0")]


def become(
    command: Command,
    *,
    sets_groups: bool,
    dies_with_parent: bool = False,
    gate: int | None = None,
    held: bool = False,
) -> list[Operation]:
    """Return the operations by which a process in the sealed init becomes a command.

    It already has its session and standard streams.

    Args:
        command: the command.
        sets_groups: whether its user namespace lets it set supplementary groups.
        dies_with_parent: whether it gets SIGKILL when the thread that started it ends, because there is no init.
        gate: where it waits for PID 1: as late as possible, but before it looks up a path or installs a filter that may
            forbid waiting. Until PID 1 has unmounted the old root, ``..`` of the new root leads to the old one.
        held: whether it then waits for its argv; :func:`rest_plan` returns the remaining operations.
    """
    confinement = command.confinement
    waiting = [] if gate is None else [calls.await_release(gate=gate)]
    # All operations that need privileges, or calls that a filter may forbid, come before the filter.
    early = not confinement.no_new_privs
    alone = strip(command, held=held, kept=[_OWNER] if early and dies_with_parent else [])
    steps = [
        *confinement.before_user(keep=command.user.uid != 0 and bool(confinement.capabilities.permitted)),
        *([*waiting, alone, *confinement.early_labels_and_landlock()] if early else ()),
        *process.credentials(command.user, may_set_groups=sets_groups),
        *(() if early else waiting),
        *process.place(command),
        *confinement.after_user(),
    ]
    if dies_with_parent:
        steps += [*calls.die_with_owner(_OWNER), calls.close(_OWNER)]
    steps += [calls.reset_signals(), *(() if early else [alone])]
    if held:
        return [*steps, *(_limits_and_filter(command) if _can_sleep(command) else ()), calls.hold()]
    return [*steps, *process.announce(command), *_limits_and_filter(command), *process.execute(command)]


def strip(command: Command, *, held: bool = False, kept: Iterable[Slot] = ()) -> Operation:
    """Return the operation that closes all descriptors except the command's own and those to keep."""
    return calls.strip(Slot("image"), [*process.passed(command), *command.confinement.kept, *kept], itself=held)


def _limits_and_filter(command: Command) -> list[Operation]:
    """Set the limits after all steps that open files, because new descriptors may have numbers above the limit."""
    confinement = command.confinement
    return [*confinement.labels_and_landlock(), *process.limits_and_priority(command), *confinement.last()]


def _can_sleep(command: Command) -> bool:
    """Return whether it can wait after its filter is installed. A custom filter may forbid that."""
    return command.confinement.seccomp in ("default", None)


def rest_plan(command: Command) -> Plan:
    """Return the remaining operations of a held command, when its argv is known."""
    dress = () if _can_sleep(command) else _limits_and_filter(command)
    return Plan((*process.announce(command), *dress, *process.execute(command)))


def exec_plan(
    command: Command, kinds: int, *, sets_groups: bool, joins: Joining = NOTHING_TO_JOIN, direct: bool = False
) -> Plan:
    """Return the plan that runs a command in a running container.

    Inputs (slots): ``target``, a pidfd of its init; ``stdin``, ``stdout``, ``stderr``; ``caller's proc``; ``time``, a
    descriptor of its time namespace, if that differs; ``image``, the init.

    Args:
        command: what to run.
        kinds: the ``CLONE_NEW*`` of the namespaces in which it differs from the caller.
        sets_groups: as for :func:`become`.
        joins: how it joins its control groups.
        direct: whether the calling thread clones the command into the pid namespace by itself (``_native.JOIN``).
    """
    clock = joins.clock((joined_clock(Slot("time")) if kinds & k.CLONE_NEWTIME else NO_CLOCK).adjusted(command))
    joined = kinds & ~(k.CLONE_NEWTIME | (k.CLONE_NEWPID if direct else 0))
    cloned = [
        calls.clone(k.CLONE_PARENT | k.CLONE_FILES, "command", pid=_PID, group=joins.group, target="command"),
        calls.release(),
        calls.leave(),
        calls.await_release("command"),
    ]
    steps = [
        *((calls.setns(_TARGET, k.CLONE_NEWPID, "the container's pid namespace", _STOPPED),) if direct else ()),
        calls.call("umask", 0),
        *joins.outside(),
        calls.setns(_TARGET, joined, "the container's namespaces", _STOPPED),
        *(() if direct else cloned),
        *(be_root() if kinds & k.CLONE_NEWUSER else ()),
        *process.session(command),
        *clock.operations(process.passed(command), board=direct),
        *become(command, sets_groups=sets_groups),
    ]
    return Plan(tuple(steps))


def files_plan(kinds: int, operations: list[Operation], *, user: bool) -> Plan:
    """Return the plan that opens or changes files of a running container, as its root.

    Args:
        kinds: as for :func:`exec_plan`; only the mount and user namespace are joined.
        operations: the operations. The caller gets the descriptors that they open.
        user: whether the container has a user namespace of its own.
    """
    wanted = kinds & (k.CLONE_NEWNS | k.CLONE_NEWUSER)
    steps = [calls.call("umask", 0), calls.setns(Slot("target"), wanted, "the container", "the container has stopped")]
    if user:
        steps += be_root()
    return Plan((*steps, *operations, calls.leave()))
