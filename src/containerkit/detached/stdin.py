"""The standard input of a detached container's command, which its keeper holds.

Source: pidfd_getfd(2): it takes the permission to trace the keeper, which the same user has.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError, StateError

if TYPE_CHECKING:
    from containerkit.detached.container import Detached

__all__ = ["stdin_of"]

_PIDFD_GETFD: Final = 438  # the same on all machines


def stdin_of(one: Detached) -> int | None:
    """Return a descriptor that is the other side of the command's standard input, or of its terminal.

    Returns:
        None where it has neither; else a descriptor, the caller's to close.

    Raises:
        StateError: it does not run.
        SetupError: the kernel refused it.
    """
    status, run, _ = one.looked_at()
    if status not in ("running", "paused"):
        raise StateError(f"{one!r}: it does not run")
    if int(run["stdin"]) < 0:
        return None
    pidfd = os.pidfd_open(int(run["keeper"]))
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fd = int(libc.syscall(_PIDFD_GETFD, pidfd, int(run["stdin"]), 0))
    finally:
        os.close(pidfd)
    if fd < 0:
        raise SetupError("pidfd_getfd", ctypes.get_errno(), f"keeper {run['keeper']}", "only its user, or root, can")
    return fd
