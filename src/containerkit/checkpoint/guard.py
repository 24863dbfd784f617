"""Watch the owner of a container in place of its init, as a checkpoint requires.

An init has a pidfd of its owner, and ends with the owner. CRIU can't save this pidfd, because the owner is not a
process of the container. So the init replaces the pidfd with a pipe. Until the container ends, a guard process has
pidfds of both, and kills the init when the owner ends. The guard runs the same sealed program in another mode.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from errno import ETIMEDOUT
from functools import partial
from typing import Final

from containerkit import _native
from containerkit.compile.start import OWNER_FD
from containerkit.descriptors import keep
from containerkit.errors import SetupError, StateError
from containerkit.process.process import kill_and_reap
from containerkit.start.context import own_pidfd

__all__ = ["LET_GO", "SHUT", "Guard", "finish_checkpoint", "replace_owner"]

LET_GO, SHUT = 60, 61
"""The signals before and after a checkpoint: ``CK_LET_GO`` and ``CK_SHUT`` in ``native.h``."""

_GUARDED_FD: Final = 4
_LONGEST_S: Final = 20.0
_LOOK_AGAIN_S: Final = 0.002


class Guard:
    """A guard process. It ends with the container, or by :meth:`close`."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._pidfds: list[int] = []

    def watch(self, init: int) -> None:
        """Start it, unless it already runs.

        Args:
            init: a pidfd of the container's init.

        Raises:
            SetupError: it can't be started.
        """
        if self._pids:
            return
        actions = [(os.POSIX_SPAWN_DUP2, own_pidfd(), OWNER_FD), (os.POSIX_SPAWN_DUP2, init, _GUARDED_FD)]
        image = f"/proc/self/fd/{_native.init_image()}"
        spawn = partial(os.posix_spawn, file_actions=actions, setsigmask=signal.valid_signals())
        try:
            keep(self._pids, spawn, image, ["containerkit", "guard"], {})
            keep(self._pidfds, os.pidfd_open, self._pids[0])
        except OSError as error:
            raise SetupError("posix_spawn", error.errno or 0, "the process that watches the owner") from None

    def close(self) -> None:
        """End it. May be called twice."""
        if self._pids and not self._pidfds:  # a signal handler raised in between
            with suppress(ProcessLookupError):
                keep(self._pidfds, os.pidfd_open, self._pids[0])
        self._pids.clear()
        while self._pidfds:
            kill_and_reap(self._pidfds.pop())


def replace_owner(pid: int, pidfd: int) -> str:
    """Make an init replace its owner's pidfd with a pipe.

    Args:
        pid, pidfd: of the init.

    Returns:
        The key of the pipe, as CRIU names it.

    Raises:
        StateError: the container has stopped.
        SetupError: the init did not reply.
    """
    place = f"/proc/{pid}/fd/{OWNER_FD}"
    deadline = time.monotonic() + _LONGEST_S
    try:
        before = os.stat(place).st_ino
        signal.pidfd_send_signal(pidfd, LET_GO)
        while True:
            link = os.readlink(place)
            if link.startswith("pipe:") and os.stat(place).st_ino != before:
                return link
            if time.monotonic() > deadline:
                raise SetupError(
                    "checkpoint", ETIMEDOUT, f"init {pid}", "it does not answer; it may be stopped or frozen"
                )
            time.sleep(_LOOK_AGAIN_S)
    except (FileNotFoundError, ProcessLookupError):
        raise StateError("checkpoint: the container has stopped") from None


def finish_checkpoint(pidfd: int) -> None:
    """Tell an init that the checkpoint or the restore is over. Has no effect if it has ended."""
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, SHUT)
