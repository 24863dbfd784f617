"""The plan of a start, from its parts."""

from __future__ import annotations

from errno import EPERM
from functools import partial

from containerkit import _native
from containerkit._native import constants as k
from containerkit.compile.contents import (
    covered_paths,
    last_mounts,
    mounts_sys_last,
    own_mounts,
    standard_mounts,
    sys_mount,
    volumes,
    working_directory,
)
from containerkit.compile.dev import close_for_writing
from containerkit.compile.facts import ROOT, UPPER, Start
from containerkit.compile.namespaces import identity, made_network, network_maker, outside, owner, proc_maker
from containerkit.compile.payload import be_root, become
from containerkit.compile.process import given, passed, session
from containerkit.compile.root import own_name, pivot, protect, root, unmount_old_root
from containerkit.compile.timens import NO_CLOCK, Clock, clock, clock_alone, exec_enters_time
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.tape import Plan
from containerkit.security.confinement import PROC

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.facts import Host, Mode
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec

__all__ = ["start_plan", "why_not_held"]

OWNER_FD, REPORT_FD, UPPER_FD = 3, 4, 5
"""The descriptor numbers in init of the owner's pidfd, the pipe for the report, and the writable layer."""
_F_DUPFD_CLOEXEC: Final = 1030


def start_plan(spec: Spec, host: Host, mode: Mode) -> Plan:
    """Return the plan of a start.

    Inputs (slots): ``staging``, ``holder``, ``view`` of :class:`containerkit.start.staging.Staging`; ``owner``, a
    pidfd of the caller, and ``caller's proc``; ``image``, the init; ``report``; ``stdin``, ``stdout``, ``stderr``;
    ``join KIND`` for each namespace that is joined; ``cgroup N`` and ``cgroup`` for the groups. Named blocks:
    ``uid_map`` and ``gid_map``.

    Raises:
        SpecError: the caller can't start this description.
    """
    return plan(Start(spec, host, mode))


def plan(start: Start) -> Plan:
    """Return the whole plan."""
    steps = [
        calls.call("umask", 0),
        *start.host.joins.outside(),
        *outside(start),
        *owner(start),
        *inside(start),
        *payload(start),
        *proc_maker(start),
        *network_maker(start),
    ]
    return Plan(tuple(steps))


def inside(start: Start) -> list[Operation]:
    """Return the operations of stage 2 until it is in its root."""
    # These operations need no mapped ids, so they run while stage 1 maps them.
    steps = [*identity(start), calls.await_release()]
    steps[0] = steps[0]._replace(label="inside")
    if start.names.user != "host":
        steps += be_root()
    if start.joins_alone:
        steps += join_alone(start)
    if start.joins_later and start.is_new("cgroup"):
        steps.append(calls.unshare(k.CLONE_NEWCGROUP, "cgroup namespace"))
    if start.assembles:
        steps += root(start)
        steps += own_name(start)
        steps += standard_mounts(start)
        if not mounts_sys_last(start):
            steps += sys_mount(start)
        steps += volumes(start)
        steps += own_mounts(start)
        steps += close_for_writing(start.spec)
        steps += working_directory(start)
        steps += covered_paths(start)
        steps += pivot()
        if mounts_sys_last(start):  # the kernel's wait for it passes while the network namespace is made
            steps += [*unmount_old_root(), *last_mounts(start), *protect(start)]
        elif not start.clones_command:
            steps += [*unmount_old_root(), *protect(start)]
        steps.append(calls.close(ROOT))
    return steps if start.joins_alone else [*steps, *made_network(start)]


def join_alone(start: Start) -> list[Operation]:
    """Join the groups once the process has its own memory. From here on, memory is charged to the groups."""
    kept = () if start.mode.command is None else given(start.mode.command)
    return [
        *clock_alone(start).before,
        *made_network(start),
        calls.enter(Slot("image"), kept, board=start.mode.held),
        *start.host.joins.inside(),
    ]


def payload(start: Start) -> list[Operation]:
    """Return the operations by which stage 2 becomes the init, the command, or both."""
    command = start.mode.command
    way = clock(start)
    if command is None:
        return become_init(start, way)
    kept = passed(command)
    become_command = partial(become, command, sets_groups=start.host.sets_groups)
    if not start.clones_command:
        entering = way.adjusted(command).operations(kept)
        return [*session(command), *entering, *become_command(dies_with_parent=not start.mode.init)]
    # The kernel sets the OOM score of all processes that share memory, so such a command first enters the init alone.
    alone = NO_CLOCK.adjusted(command)
    gate = calls.PAYLOAD_GATE
    waiting = [calls.await_release(gate=gate)] if alone.after else []
    process = [
        *session(command),
        *([*waiting, *alone.operations(kept)] if alone.after else ()),
        *become_command(gate=None if waiting else gate, held=start.mode.held),
    ]
    # The command is set up while the old root is unmounted, and passes the gate after that.
    return [
        *way.operations(given(command), board=start.mode.held),
        calls.clone(0, "command", pid=Slot("command"), target="command"),
        *([*unmount_old_root(), *protect(start)] if start.assembles and not mounts_sys_last(start) else ()),
        *close_others(start),
        calls.release(gate),
        calls.become_init(Slot("image"), b"run", UPPER_FD),
        process[0]._replace(label="command"),
        *process[1:],
    ]


def close_others(start: Start) -> list[Operation]:
    """Keep the owner's pidfd and the pipe for the report.

    Close all descriptors through which programs of the caller can be found.

    A container with ``CAP_SYS_PTRACE`` can read ``/proc/1/fd``. Only pipes, a pidfd and the init stay there.
    """
    steps = [
        calls.call("setsid", tolerate=(EPERM,)),
        calls.call("dup3", Slot("owner"), OWNER_FD, 0, target="owner"),
        calls.call("dup3", Slot("report"), REPORT_FD, 0, target="report"),
        calls.call("close_range", 0, 2, 0, target="standard streams"),
        calls.call("close_range", UPPER_FD, 2**32 - 1, k.CLOSE_RANGE_CLOEXEC),
    ]
    if start.mode.command is not None and start.mode.command.confinement.writes_proc:
        steps.append(calls.call("close", PROC, target=PROC.name))  # the slot still belongs to the command
    return steps


def become_init(start: Start, clock: Clock) -> list[Operation]:
    """Keep only the descriptors that an init without a command needs, and become that init."""
    steps = [calls.call("setsid", tolerate=(EPERM,))]
    if start.mode.reads_upper and start.spec.rootfs.in_memory:
        # Its number may be that of the owner's pidfd; the caller's own descriptors have high numbers.
        steps.append(calls.call("fcntl", UPPER, _F_DUPFD_CLOEXEC, _native.LOWEST, target="upper layer", result=UPPER))
    steps += clock.operations() if clock.after or clock.entered else clock.before
    steps.append(calls.call("dup3", Slot("owner"), OWNER_FD, 0, target="owner"))
    first = REPORT_FD
    if start.mode.reads_upper and start.spec.rootfs.in_memory:
        steps.append(calls.call("dup3", UPPER, UPPER_FD, 0, target="upper layer"))
        steps.append(calls.call("close_range", REPORT_FD, REPORT_FD, 0))
        first = UPPER_FD + 1
    steps += [
        calls.call("close_range", 0, 2, 0),
        calls.call("close_range", first, 2**32 - 1, k.CLOSE_RANGE_CLOEXEC),
    ]
    return [*steps, calls.become_init(Slot("image"), b"stay", first)]


def why_not_held(spec: Spec, command: Command) -> str | None:
    """Return why commands of this container can't be held before their exec, or None if they can.

    Until its exec a held command shares the caller's memory. So no other process may be in its namespaces, and it may
    do nothing that needs an address space of its own.
    """
    names = spec.namespaces
    confinement = command.confinement
    reasons = {
        "it does not have its own mount namespace": names.mount != "new",
        "it does not have its own pid namespace": names.pid != "new",
        "it joins a user namespace": names.user not in ("new", "host"),
        "it joins a time namespace": names.time not in ("new", "host"),
        "its clocks are set": spec.time_offsets is not None,
        "this kernel does not enter a time namespace at an exec": names.time == "new" and not exec_enters_time(),
        "its commands may gain privileges (no_new_privs=False)": not confinement.no_new_privs,
        "its commands have an oom_score_adj": confinement.oom_score_adj is not None,
        "its filter asks a supervisor": confinement.notifies,
        "its commands get descriptors": bool(command.pass_fds or command.sockets),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)
