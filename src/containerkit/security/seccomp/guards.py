"""Rules that come before those of any filter. They prevent what an unprivileged process can do to the host.

A program with a set-user-ID bit runs as its owner, regardless of the user that starts it. If a container writes files
that have owners of the host, such a program would serve any user of the host. :func:`without_set_id_bits` refuses the
bits there. Without a pid and an ipc namespace the kernel lets a process limit and schedule all others of its user, and
share memory and queues with them. :func:`only_own_processes` refuses that.
"""

from __future__ import annotations

import os
from errno import ENOSYS
from functools import lru_cache
from stat import S_ISGID, S_ISUID
from typing import Final

import attrs

from containerkit.security.seccomp.profile import ALLOW, Action, Condition, Rule, Seccomp

__all__ = ["only_own_processes", "without_set_id_bits"]

_SET_ID: Final = S_ISUID | S_ISGID
_MAKES_FILE: Final = os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)
"""The flags with which ``open`` uses its mode. Without them the register can contain anything."""

_MODES: Final = {
    "chmod": 1,
    "fchmod": 1,
    "creat": 1,
    "mkdir": 1,
    "mknod": 1,
    "fchmodat": 2,
    "fchmodat2": 2,
    "mkdirat": 2,
    "mknodat": 2,
}
"""The calls that always have a mode, with the index of that argument."""

_OPENING: Final = {"open": 1, "openat": 2}
"""The calls whose mode follows their flags, with the index of the flags."""

_SETS_ATTRIBUTE: Final = ("setxattr", "lsetxattr", "fsetxattr", "setxattrat")
_UNUSED: Final = 5
"""The argument of ``openat2`` that the kernel ignores. A secret in it lets one call pass."""

_PID: Final = 0xFFFFFFFF
"""The kernel reads a pid, and the kind of id, as 32 bits."""

_SCHEDULES: Final = ("sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler")
_PRIORITIES: Final = {"setpriority": 0, "ioprio_set": 1}
"""``PRIO_PROCESS``, ``IOPRIO_WHO_PROCESS``: the other kinds are a process group and all processes of a user."""

_FOUND_BY_NAME: Final = (
    *("shmget", "shmat", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl"),
    *("mq_open", "mq_unlink"),
)
"""What all processes of an ipc namespace can access by a number or a name."""


def _has_bits(argument: int, bits: int) -> Condition:
    return Condition(argument=argument, op="masked_ne", value=0, mask=bits)


def _is_not(argument: int, value: int) -> Condition:
    return Condition(argument=argument, op="masked_ne", value=value, mask=_PID)


@lru_cache(maxsize=64)
def without_set_id_bits(seccomp: Seccomp, *, attributes: bool = False, passing: int | None = None) -> Seccomp:
    """Return a filter that also refuses to give a file a set-user-ID or set-group-ID bit.

    A mode with one of the bits fails with ``EPERM``. The mode of ``openat2`` is in memory, where a filter can't see it,
    so it fails with ``ENOSYS``: programs fall back to ``openat``, as on a kernel before Linux 5.6.

    Args:
        seccomp: the filter, which decides everything else.
        attributes: whether to refuse extended attributes as well. Their names are in memory. With ``CAP_SETFCAP`` one
            of them gives a file capabilities that the host's kernel honours. Without it the kernel refuses that one.
        passing: a secret. ``openat2`` is allowed if this is its sixth argument.

    Source: chmod(2), open(2), openat2(2), mknod(2), capabilities(7); RestrictSUIDSGID= in systemd.exec(5).
    """
    denied = Action.errno()
    rules = [Rule(names=(name,), action=denied, when=(_has_bits(mode, _SET_ID),)) for name, mode in _MODES.items()]
    rules += [
        Rule(names=(name,), action=denied, when=(_has_bits(flags + 1, _SET_ID), _has_bits(flags, _MAKES_FILE)))
        for name, flags in _OPENING.items()
    ]
    if passing is not None:
        known = Condition(argument=_UNUSED, value=passing)
        rules.append(Rule(names=("openat2",), action=ALLOW, when=(known,)))
    rules.append(Rule(names=("openat2",), action=Action.errno(ENOSYS)))
    if attributes:
        rules.append(Rule(names=_SETS_ATTRIBUTE, action=denied))
    return attrs.evolve(seccomp, rules=(*rules, *seccomp.rules))


@lru_cache(maxsize=64)
def only_own_processes(seccomp: Seccomp) -> Seccomp:
    """Return a filter that also refuses, with ``EPERM``, calls that affect processes which the caller did not start.

    Limits, schedulers and priorities can be set only for the calling thread, which is pid 0, because a filter can't
    know which other pids belong to the caller. Reading them is allowed. System V IPC and opening POSIX queues are
    refused. Landlock restricts signals and operations that need ptrace access.

    Args:
        seccomp: the filter, which decides everything else.

    Source: prlimit(2), sched_setaffinity(2), sched(7), setpriority(2), ioprio_set(2), sysvipc(7), mq_overview(7).
    """
    denied = Action.errno()
    stranger = _is_not(0, 0)
    changes = Condition(argument=2, op="ne", value=0)  # otherwise no limit is changed
    rules = [
        Rule(names=("prlimit64",), action=denied, when=(stranger, changes)),
        Rule(names=_SCHEDULES, action=denied, when=(stranger,)),
        Rule(names=_FOUND_BY_NAME, action=denied),
    ]
    for name, one_process in _PRIORITIES.items():
        rules += [Rule(names=(name,), action=denied, when=(test,)) for test in (_is_not(0, one_process), _is_not(1, 0))]
    return attrs.evolve(seccomp, rules=(*rules, *seccomp.rules))
