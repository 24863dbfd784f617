"""Ends a process with all that it has started, where no control group holds them together."""

from __future__ import annotations

import os
import signal

from containerkit._linux import procfs

__all__ = ["kill_tree"]

_PASSES = 20  # each finds what was forked during the one before; those that are found are stopped and fork no more


def kill_tree(pid: int) -> None:
    """Stop, then kill, all who come from a process and all of its session, but not the process itself.

    One that left the session and whose parent has ended can't be told from what others have started: only a control
    group (``limits``) holds that too.

    Args:
        pid: a process that leads a session and was not waited for yet, so that the number is still its own.

    Side effects: signals, sent through pidfds that were opened before the process was looked at.
    """
    found: dict[int, int] = {}
    try:
        for _ in range(_PASSES):
            if not _stop_new(pid, found):
                break
        for pidfd in found.values():
            _send(pidfd, signal.SIGKILL)
    finally:
        for pidfd in found.values():
            os.close(pidfd)


def _stop_new(root: int, found: dict[int, int]) -> bool:
    """Stop who belongs to the tree and was not seen yet; tell whether there was any."""
    new = [pid for pid in (*_descendants(root), *_session(root)) if pid not in found]
    for pid in new:
        if pid in found:
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        # The number may be another's by now: what the pidfd holds is looked at again.
        if not _belongs(pid, root, found):
            os.close(pidfd)
            continue
        found[pid] = pidfd
        _send(pidfd, signal.SIGSTOP)
    return bool(new)


def _belongs(pid: int, root: int, found: dict[int, int]) -> bool:
    try:
        status = procfs.stat(pid)
    except ProcessLookupError:
        return False
    return pid != root and (root in (status.session, status.ppid) or status.ppid in found)


def _descendants(root: int) -> list[int]:
    try:
        return procfs.descendants(root)
    except ProcessLookupError:
        return []


def _session(root: int) -> list[int]:
    members = []
    for pid in procfs.pids():
        try:
            if pid != root and procfs.stat(pid).session == root:
                members.append(pid)
        except ProcessLookupError:
            continue
    return members


def _send(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return
