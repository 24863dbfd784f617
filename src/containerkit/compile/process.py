"""The operations by which a process becomes the command: session, limits, user, working directory, exec."""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOTDIR, EPERM
from struct import pack

from containerkit._native import constants as k
from containerkit._native.names import RESOURCES
from containerkit.errors import SpecError
from containerkit.plan import calls
from containerkit.plan.operation import ARGV, ENVP, Block, Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.spec.command import Command, User

__all__ = [
    "announce",
    "credentials",
    "execute",
    "given",
    "limits_and_priority",
    "passed",
    "place",
    "session",
    "socket_slot",
]


_TIOCSCTTY: Final = 0x540E


_STANDARD: Final = (Slot("stdin"), Slot("stdout"), Slot("stderr"))


_USER_HINT: Final = "the id is not mapped in the container's user namespace: see uid_mappings and gid_mappings"


_SEARCHED_ON: Final = (ENOENT, ENOTDIR, EACCES)


def socket_slot(number: int) -> Slot:
    """Return the slot of the listening socket that commands inherit under a number."""
    return Slot(f"socket {number}")


def session(command: Command) -> list[Operation]:
    """Return the operations that give a process a session and its standard streams."""
    steps = [calls.call("setsid")]
    if command.terminal:
        steps += [
            calls.call("ioctl", Slot("stdin"), _TIOCSCTTY, 0, target="controlling terminal"),
            # The user can then open it by its name. Its group stays tty.
            calls.call("fchown", Slot("stdin"), command.user.uid, 2**32 - 1, target="terminal", hint=_USER_HINT),
        ]
    for number, slot in enumerate(_STANDARD):
        steps.append(calls.call("dup3", slot, number, 0, target=slot.name))
    for number in command.sockets:
        slot = socket_slot(number)
        steps.append(calls.call("dup3", slot, number, 0, target=slot.name))
    return steps


def limits_and_priority(command: Command) -> list[Operation]:
    """Return the operations that set limits and priority, which remain in effect without privileges."""
    steps = [
        calls.call(
            "prlimit64",
            0,
            RESOURCES[name],
            Block(pack("=QQ", soft, hard)),
            0,
            target=f"{name} {soft}:{hard}",
            hint="raising a hard limit needs CAP_SYS_RESOURCE outside",
        )
        for name, soft, hard in command.rlimits
    ]
    if command.nice is not None:
        steps.append(
            calls.call(
                "setpriority", 0, 0, command.nice, target=f"nice {command.nice}", hint="lower needs CAP_SYS_NICE"
            )
        )
    return steps


def credentials(user: User, *, may_set_groups: bool) -> list[Operation]:
    """Return the operations that change the user of a process.

    Args:
        user: the user.
        may_set_groups: whether the user namespace allows setgroups(2).

    Raises:
        SpecError: groups are given, but can't be set.
    """
    if user.groups and not may_set_groups:
        raise SpecError("user: supplementary groups need a range of ids: add one for this user to /etc/subgid")
    members = Block(pack(f"={len(user.groups)}I", *user.groups))
    return [
        calls.call(
            "setgroups",
            len(user.groups),
            members if user.groups else 0,
            target=str(list(user.groups)),
            tolerate=() if may_set_groups else (EPERM,),
            hint=_USER_HINT,
        ),
        calls.call("setresgid", user.gid, user.gid, user.gid, target=f"gid {user.gid}", hint=_USER_HINT),
        calls.call("setresuid", user.uid, user.uid, user.uid, target=f"uid {user.uid}", hint=_USER_HINT),
    ]


def place(command: Command) -> list[Operation]:
    """Return the operations that set the working directory, as the command's user, and the umask.

    No magic link is followed, so it can't be a directory of the host (CVE-2024-21626).
    """
    how = pack("=QQQ", k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0, k.RESOLVE_NO_MAGICLINKS)
    where = os.fsencode(command.cwd)
    return [
        calls.call(
            "openat2",
            k.AT_FDCWD,
            where,
            Block(how),
            len(how),
            *((0, command.confinement.passing) if command.confinement.passing else ()),
            target=command.cwd,
            result=Slot("cwd"),
            hint="the working directory must be a directory inside",
        ),
        calls.call("fchdir", Slot("cwd"), target=command.cwd),
        calls.close(Slot("cwd")),
        calls.call("umask", command.umask),
    ]


def given(command: Command) -> list[int]:
    """Return the caller's descriptors that a command inherits besides the standard ones, in ascending order."""
    return sorted({fd for fd in command.pass_fds if fd > 2})


def passed(command: Command) -> list[int]:
    """Return all descriptors that a command inherits besides the standard ones, in ascending order."""
    return sorted({*given(command), *command.sockets})


def announce(command: Command) -> list[Operation]:
    """Return the operation that writes the command's pid into ``LISTEN_PID``. Source: sd_listen_fds(3)."""
    return [calls.own_pid(command.pid_variable)] if command.pid_variable else []


def execute(command: Command) -> list[Operation]:
    """Return the operations that try each path of the program."""
    *others, last = command.candidates
    name = os.fsdecode(command.argv[0])
    steps = [calls.call("execve", path, ARGV, ENVP, target=name, tolerate=_SEARCHED_ON) for path in others]
    return [*steps, calls.call("execve", last, ARGV, ENVP, target=name)]
