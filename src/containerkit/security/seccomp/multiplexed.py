"""Calls that some architectures also accept through ``socketcall`` and ``ipc``.

A rule for ``connect`` that checks only its own number could be bypassed with ``socketcall(SYS_CONNECT, ...)``. There
the arguments are in memory, where a filter can't see them, so this path is decided by the sub-call alone.

Source: socketcall(2), ipc(2), linux/net.h, linux/ipc.h.
"""

# ruff: noqa: SIM905 - lists of names are easier to read as one text

from __future__ import annotations

from typing import Final

__all__ = ["multiplexed"]

_SOCKETCALL: Final = {
    name: number
    for number, name in enumerate(
        (
            "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown "
            "setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg"
        ).split(),
        1,
    )
}

_IPC: Final = {
    "semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
    "shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
}  # fmt: skip


def multiplexed(name: str, numbers: dict[str, int]) -> tuple[int, int] | None:
    """Return the second path to a call: the number of ``socketcall`` or ``ipc``, and its first argument."""
    for through, sub_calls in (("socketcall", _SOCKETCALL), ("ipc", _IPC)):
        if name in sub_calls and through in numbers:
            return numbers[through], sub_calls[name]
    return None
