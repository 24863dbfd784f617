"""Ends a process with all that it has started, where no control group holds them together."""

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

_PASSES: Final = (
    20  # each finds what was forked during the one before; those that are found are stopped and fork no more
)
_LONGEST_S: Final = 0.3
"""What multiplies faster than it is found must not keep a timeout waiting."""


def kill_tree(pid: int, pidfd: int) -> None:
    """Stop, then kill, all who come from a process and all of its session, but not the process itself.

    One that left the session and whose parent has ended can't be told from what others have started: only a control
    group (``limits``) holds that too.

    Args:
        pid: a process that leads a session.
        pidfd: the same process: when it is reaped, its number may be another's, and nobody belongs to it any more.

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
    """Who comes from a process, as far as they were found: a pidfd for each number."""

    def __init__(self, root: int, root_pidfd: int) -> None:
        self._root = root
        self._found = {root: root_pidfd}

    def stop_new(self, deadline: float) -> bool:
        """Stop who belongs to the tree and was not seen yet; tell whether there was any, and is time for more."""
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
            # The number may be another's by now: what the pidfd holds is looked at again.
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
        """Whether one that was found has its number still: as long as it was not reaped, nobody else has."""
        try:
            signal.pidfd_send_signal(self._found[number], 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # alive, and somebody else's
            return True
        return True

    def kill(self) -> None:
        """Kill all who were found."""
        for pid, pidfd in self._found.items():
            if pid != self._root:
                _send(pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close what was opened."""
        for pid, pidfd in self._found.items():
            if pid != self._root:
                os.close(pidfd)


def _descendants(root: int) -> Iterator[int]:
    """Yield who comes from a process, one by one: where there are many, each is dear."""
    found = [root]
    for each in found:  # it grows on the way
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
        yield pid if session == root else root  # the caller looks at the time whoever it is


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
