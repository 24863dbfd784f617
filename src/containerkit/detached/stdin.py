"""The standard input of a detached container's command, which its keeper holds.

Source: pidfd_getfd(2), which requires the permission to trace the keeper. The same user has it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from errno import EBADF

from containerkit.errors import SetupError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.detached.container import Detached

__all__ = ["end_input", "stdin_of"]

_PIDFD_GETFD: Final = 438  # the same on all machines


def stdin_of(one: Detached) -> int | None:
    """Return a descriptor of the other side of the command's standard input, or of its terminal.

    Returns:
        A descriptor, which the caller must close; None if it has neither.

    Raises:
        StateError: it is not running.
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
        if fd >= 0 and not (one.entry.is_kept() and one.last_run.get("run") == run["run"]):
            os.close(fd)  # the keeper has ended, and its pid may belong to another process
            raise StateError(f"{one!r}: it does not run")
    finally:
        os.close(pidfd)
    if fd < 0 and ctypes.get_errno() == EBADF:  # it was closed
        return None
    if fd < 0:
        raise SetupError("pidfd_getfd", ctypes.get_errno(), f"keeper {run['keeper']}", "only its user, or root, can")
    return fd


def end_input(one: Detached) -> None:
    """Let the keeper close the command's standard input, so that the command reads the end of file.

    Raises:
        StateError: it is not running, or has no pipe as standard input; a terminal can't be closed.
    """
    status, run, _ = one.looked_at()
    if status not in ("running", "paused"):
        raise StateError(f"{one!r}: it does not run")
    if one.keeping.tty or not one.keeping.stdin_open:
        raise StateError(f"{one!r}: it has no pipe as standard input: start it with stdin_open=True, without tty")
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(int(run["keeper"]))
        try:
            if one.entry.is_kept():
                signal.pidfd_send_signal(pidfd, signal.SIGUSR1)
        finally:
            os.close(pidfd)
