"""Kills a process and its descendants without a control group."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final

from containerkit._linux import procfs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["kill_tree"]

_PASSES: Final = 20  # each pass finds processes forked during the one before; found ones are stopped and can't fork
_LONGEST_S: Final = 0.3
"""The maximum time, because processes may multiply faster than they are found."""


def kill_tree(pid: int, pidfd: int) -> None:
    """Stop, then kill, the descendants of a process and its session, but not the process itself.

    A process that left the session and whose parent has ended can't be found. Only a control group (``limits``) covers
    it.

    Args:
        pid: a process that leads a session.
        pidfd: a pidfd of the same process. After it was reaped its number may belong to another process.

    Side effects: signals, sent through pidfds that were opened before the process was looked at.
    """
    tree = _Tree(pid, pidfd)
    try:
        deadline = time.monotonic() + _LONGEST_S
        for _ in range(_PASSES):
            if not tree.stop_new(deadline):
                break
        tree.kill()
    finally:
        tree.close()


class _Tree:
    """The descendants of a process that were found: a pidfd for each number."""

    def __init__(self, root: int, root_pidfd: int) -> None:
        self._root = root
        self._found = {root: root_pidfd}

    def stop_new(self, deadline: float) -> bool:
        """Stop processes of the tree that were not seen yet. Return whether there were any and there is time left."""
        any_new = False
        for pid in chain(_descendants(self._root), _session(self._root)):
            if time.monotonic() > deadline:
                return False
            if pid in self._found:
                continue
            any_new = True
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            # The number may have been reused, so the pidfd's process is checked again.
            if not self._belongs(pid):
                os.close(pidfd)
                continue
            self._found[pid] = pidfd
            _send(pidfd, signal.SIGSTOP)
        return any_new

    def _belongs(self, pid: int) -> bool:
        try:
            status = procfs.stat(pid)
        except ProcessLookupError:
            return False
        if status.session == self._root and self._is_itself(self._root):
            return True
        return status.ppid in self._found and self._is_itself(status.ppid)

    def _is_itself(self, number: int) -> bool:
        """Return whether a found process still has its pid. The pid can't be reused before the process is reaped."""
        try:
            signal.pidfd_send_signal(self._found[number], 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # alive, and not a child
            return True
        return True

    def kill(self) -> None:
        """Kill all found processes."""
        for pid, pidfd in self._found.items():
            if pid != self._root:
                _send(pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close the pidfds."""
        for pid, pidfd in self._found.items():
            if pid != self._root:
                os.close(pidfd)


def _descendants(root: int) -> Iterator[int]:
    """Yield the descendants of a process, one by one, because with many of them each costs time."""
    found = [root]
    for each in found:  # the list grows during the loop
        try:
            children = procfs.children(each)
        except ProcessLookupError:
            continue
        found += children
        yield from children


def _session(root: int) -> Iterator[int]:
    for pid in procfs.pids():
        session = 0
        with suppress(ProcessLookupError):
            session = procfs.stat(pid).session
        yield pid if session == root else root  # the caller checks the time for each of them


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
