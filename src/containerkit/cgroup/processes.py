"""The processes of a group: list them, kill them, wait for the last one, and remove the groups."""

from __future__ import annotations

import os
import select
import signal as signals
import time
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING

from containerkit.cgroup.statfiles import flat
from containerkit.errors import CleanupError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from containerkit.cgroup.directory import Directory

__all__ = ["kill", "processes", "remove", "wait_empty", "walk"]

_ROUNDS = 100
"""How often to search for new processes if no freezer is available. A pids limit stops a fork bomb earlier."""


def walk(part: Directory) -> Iterator[Directory]:
    """Yield the groups below a directory, the deepest first. Each one is closed when the next is requested.

    It does not recurse and holds at most two descriptors, because groups can be nested thousands of levels deep.
    """
    waiting = [part.groups() if part.has_groups() else []]
    here = part
    try:
        while True:
            if waiting[-1]:
                try:
                    below = here.open(waiting[-1].pop())
                except OSError:  # it has been removed in the meantime
                    continue
                if here is not part:
                    here.close()
                here = below
                waiting.append(here.groups() if here.has_groups() else [])
                continue
            waiting.pop()
            if not waiting:
                return
            try:
                above = part if len(waiting) == 1 else here.above()
            except OSError:  # it can't be opened; the later removal reports it
                return
            done, here = here, above
            try:
                yield done
            finally:
                done.close()
    finally:
        if here is not part:
            here.close()


def processes(parts: Iterable[Directory]) -> frozenset[int]:
    """Return the pids in these directories and below them. Processes without a pid in this namespace are left out."""
    found: set[int] = set()
    for part in parts:
        found.update(part.processes())
        for below in walk(part):
            found.update(below.processes())
    return frozenset(found - {0})


def kill(parts: tuple[Directory, ...], signal: int) -> None:
    """Send a signal to every process in these directories and below them."""
    last = parts[-1]
    if signal == signals.SIGKILL and last.version == 2:
        try:
            last.write("cgroup.kill", b"1")
        except OSError:  # kernel 5.13 and before
            pass
        else:
            _thaw_old(parts)
            # This does not reach a process that was put into a version 1 hierarchy only.
            if not processes(parts[:-1]) - processes(parts[-1:]):
                return
    _signal_all(parts, signal)


def _thaw_old(parts: Iterable[Directory]) -> None:
    """Thaw version 1's freezer, because a frozen task dies only when it runs again. Version 2 lets frozen tasks die."""
    for part in parts:
        if "freezer" in part.names:
            for below in walk(part):
                _try(below, "freezer.state", b"THAWED")
            _try(part, "freezer.state", b"THAWED")


def _try(part: Directory, file: str, value: bytes) -> None:
    try:
        part.write(file, value)
    except OSError:  # the group has been removed
        return


def _signal_all(parts: tuple[Directory, ...], signal: int) -> None:
    """Send a signal through pidfds, so that a reused pid is never hit. The group is frozen, so that none can fork."""
    freezer = next((part for part in reversed(parts) if part.exists("cgroup.freeze") or "freezer" in part.names), None)
    file, frozen, thawed = (
        ("freezer.state", b"FROZEN", b"THAWED") if freezer and freezer.version == 1 else ("cgroup.freeze", b"1", b"0")
    )
    was_frozen = freezer is not None and (freezer.read(file) or "").strip().encode() in {frozen, b"FREEZING"}
    if freezer is not None:
        _try(freezer, file, frozen)
    try:
        sent: set[int] = set()
        for _ in range(_ROUNDS):
            fresh = processes(parts) - sent
            if not fresh:
                break
            _send(fresh, signal, lambda: processes(parts))
            sent |= fresh
            if signal != signals.SIGKILL:
                break
    finally:
        if freezer is not None and (signal == signals.SIGKILL or not was_frozen):
            _try(freezer, file, thawed)
            if signal == signals.SIGKILL:
                _thaw_old(parts)


def _send(pids: frozenset[int], signal: int, members: Callable[[], frozenset[int]]) -> None:
    """Open a pidfd of each process, check again which of them are members, and send the signal to those."""
    pidfds: dict[int, int] = {}
    try:
        for pid in pids:
            try:
                pidfds[pid] = os.pidfd_open(pid)
            except OSError:
                continue
        still = members()
        for pid, pidfd in pidfds.items():
            if pid in still:
                try:
                    signals.pidfd_send_signal(pidfd, signal)
                except OSError:
                    continue
    finally:
        for pidfd in pidfds.values():
            os.close(pidfd)


def wait_empty(parts: tuple[Directory, ...], timeout: float | None) -> bool:
    """Wait until no process is in these directories or below them. Return False if the timeout expires first."""
    deadline = None if timeout is None else time.monotonic() + timeout
    if parts[-1].version == 2 and not _wait_unpopulated(parts[-1], deadline):
        return False
    pause = 0.0002
    while True:
        there = processes(parts)
        if not there:
            return True
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return False
        if not _wait_any_end(there, left):
            # No process can be waited for: it is being reaped, or its pid belongs to another namespace.
            time.sleep(pause if left is None else min(pause, left))
            pause = min(pause * 2, 0.05)


def _wait_unpopulated(part: Directory, deadline: float | None) -> bool:
    """Wait for ``populated 0`` in cgroup.events. The kernel wakes poll(2) with POLLPRI when the file changes."""
    try:
        fd = part.open_file("cgroup.events", os.O_RDONLY)
    except OSError:  # the root group has no such file
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while True:
            try:
                text = os.pread(fd, 4096, 0).decode("ascii", "replace")
            except OSError as error:
                if error.errno == ENODEV:  # another process has removed the group, so it was empty
                    return True
                raise
            if not flat(text).get("populated"):
                return True
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poll.poll(None if left is None else left * 1000)
    finally:
        os.close(fd)


def _wait_any_end(pids: frozenset[int], timeout: float | None) -> bool:
    """Wait until one of these processes ends. Return False if none can be waited for, or the timeout expires."""
    poll = select.poll()
    pidfds: list[int] = []
    try:
        for pid in pids:
            try:
                pidfds.append(os.pidfd_open(pid))
            except OSError:
                return False
            poll.register(pidfds[-1], select.POLLIN)
        # A process that has ended is still listed for a moment. Return, so that the caller pauses.
        if poll.poll(0):
            return False
        return bool(poll.poll(None if timeout is None else timeout * 1000))
    finally:
        for pidfd in pidfds:
            os.close(pidfd)


def remove(parts: tuple[Directory, ...], timeout: float) -> None:
    """Remove these directories and all groups below them. Wait for processes that are still ending.

    Raises:
        CleanupError: something remained when the timeout expired.
    """
    deadline = time.monotonic() + timeout
    if not wait_empty(parts, timeout):
        pids = " ".join(map(str, sorted(processes(parts)))) or "of another pid namespace"
        raise CleanupError(tuple(f"group {part.path} with processes {pids}" for part in parts))
    pause = 0.0002
    left = [*parts]
    while left:
        left = [part for part in left if not _removed(part)]
        if left and time.monotonic() > deadline:
            raise CleanupError(tuple(f"group {part.path}" for part in left))
        if left:
            # A task counts as a member until it has been switched out for the last time, shortly after it was reaped.
            time.sleep(pause)
            pause = min(pause * 2, 0.05)


def _removed(part: Directory) -> bool:
    try:
        for below in walk(part):
            below.remove_self()
        part.remove_self()
    except OSError as error:
        if error.errno == EBUSY:
            return False
        raise CleanupError((f"group {part.path}: {error.strerror}",)) from None
    return True
