"""The freezer stops all processes of a group and lets them continue.

Source: cgroup.freeze in Documentation/admin-guide/cgroup-v2.rst;
Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from containerkit.cgroup.directory import refused
from containerkit.cgroup.statfiles import flat, freezer_frozen
from containerkit.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.controllers import Attachment, Setting
    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - the interface of controllers
    """Return nothing: a new group is not frozen."""
    return []


def report(read: Callable[[str], str | None], version: int) -> bool:
    """Return whether every process has stopped."""
    if version == 2:
        return bool(flat(read("cgroup.events")).get("frozen"))
    return freezer_frozen(read("freezer.state"))


def freeze(part: Directory, timeout: float) -> None:
    """Stop the processes and wait until they have stopped.

    Raises:
        StateError: a process has not stopped in time. The group is thawed again.
    """
    deadline = time.monotonic() + timeout
    if not (_freeze_2(part, deadline) if part.version == 2 else _freeze_1(part, deadline)):
        thaw(part)
        raise StateError(f"freeze {part.path}: not all processes stopped within {timeout} s; it is thawed again")


def thaw(part: Directory) -> None:
    """Let the processes continue."""
    _write(part, *(("cgroup.freeze", b"0") if part.version == 2 else ("freezer.state", b"THAWED")))


def _write(part: Directory, file: str, value: bytes) -> None:
    try:
        part.write(file, value)
    except OSError as error:
        raise refused("write", error, f"{value.decode()} to {part.path}/{file}") from None


def _freeze_2(part: Directory, deadline: float) -> bool:
    """Freeze the group, and sleep until the kernel reports that cgroup.events has changed."""
    fd = part.open_file("cgroup.events", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        _write(part, "cgroup.freeze", b"1")
        while True:
            if flat(os.pread(fd, 4096, 0).decode("ascii", "replace")).get("frozen"):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
    finally:
        os.close(fd)


def _freeze_1(part: Directory, deadline: float) -> bool:
    """Freeze the group and check again and again. On version 1 the kernel updates the state only when it is read."""
    _write(part, "freezer.state", b"FROZEN")
    pause = 0.0001
    while not freezer_frozen(part.read("freezer.state")):
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        _write(part, "freezer.state", b"FROZEN")  # writing it again freezes processes forked in the meantime
    return True
