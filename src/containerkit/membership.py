"""Which control groups a container and its runs are in.

A container with limits has a group of its own; a one-shot run has just that. In a container each ``exec`` gets a leaf
within it, so that what it used can be told from what the others did. Processes join in the child, before the first
instruction of the command.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import CleanupError, StateError
from containerkit.payload import GROUP, NOTHING_TO_JOIN, Joining

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup import CGroup, Limits
    from containerkit.process import Process

__all__ = ["SLOT_PREFIX", "Membership", "account"]

SLOT_PREFIX: Final = "cgroup "
"""The slots of the tasks files of version 1 are called ``cgroup 0``, ``cgroup 1``, ..."""

_REPORTED: Final = ("memory", "io", "pids", "cpu")
_ROUNDS: Final = 100

_swept: list[int] = []
_sweeping = threading.Lock()


def _sweep_once() -> None:
    """Remove what killed owners left where this process makes its groups, the first time that it makes one."""
    from containerkit.cgroup import sweep

    with _sweeping:
        if os.getpid() in _swept:
            return
        _swept.append(os.getpid())
    sweep(everywhere=False)


class Membership:
    """The group of one container; closed by :meth:`end`, which may be called twice.

    Args:
        limits: what it may use.

    Raises:
        SpecError, UnsupportedError, SetupError: as for :meth:`containerkit.CGroup.create`.
    """

    def __init__(self, limits: Limits) -> None:
        from containerkit.cgroup import CGroup

        _sweep_once()
        self.group: CGroup = CGroup.create(limits=limits)
        self._leaves_ready = False
        self._freezer: CGroup | None = None
        self._lock = threading.Lock()

    def leaf(self, init: int) -> CGroup:
        """Make a leaf for one run.

        Args:
            init: the pid of PID 1. On version 2 a group that hands controllers on has no processes of its own, so it
                moves to a leaf before the first run does.
        """
        with self._lock:
            unified = self.group.unified
            if not self._leaves_ready and unified is not None and unified.available():
                self.group.create_leaf("init").add(init)
            self._leaves_ready = True
        return self.group.create_leaf(controllers=_REPORTED)

    def freezer(self, members: Callable[[], list[int]]) -> CGroup:
        """Return the group to freeze: its own where that can, else one that all processes are moved to.

        Args:
            members: tells the processes of the container.
        """
        if self.group.can_freeze:
            return self.group
        with self._lock:
            if self._freezer is None:
                self._freezer = gather(("freezer",), members)
            return self._freezer

    def end(self) -> None:
        """Remove the groups, once all processes have ended.

        Raises:
            CleanupError: one could not be removed, and why.
        """
        left: list[str] = []
        for group in (self._freezer, self.group):
            if group is None:
                continue
            try:
                group.remove()
            except CleanupError as error:
                left += error.left
        if left:
            raise CleanupError(tuple(left))


def gather(controllers: tuple[str, ...], members: Callable[[], list[int]], limits: Limits | None = None) -> CGroup:
    """Make a group and move all processes of a container into it, until none is left outside.

    Raises:
        StateError: they multiply faster than they can be moved.
    """
    from containerkit.cgroup import CGroup

    group = CGroup.create(limits=limits, controllers=controllers)
    for _ in range(_ROUNDS):
        outside = set(members()) - group.processes()
        if not outside:
            return group
        for pid in outside:
            _move(group, pid)
    group.remove()
    raise StateError("the processes of the container multiply faster than they can be moved to a group")


def _move(group: CGroup, pid: int) -> None:
    from containerkit.errors import SetupError

    try:
        group.add(pid)
    except SetupError as error:
        if error.errno != 3:  # ESRCH: it has ended meanwhile
            raise


def joining(group: CGroup | None) -> Joining:
    """Return how many files a child writes to in order to join a group, and whether it is born into one."""
    if group is None:
        return NOTHING_TO_JOIN
    return Joining(len(group.join_files()), group.directory_fd is not None)


def inputs(group: CGroup | None) -> dict[str, int]:
    """Return the slots by which a child joins a group."""
    if group is None:
        return {}
    slots = {f"{SLOT_PREFIX}{number}": fd for number, fd in enumerate(group.join_files())}
    if group.directory_fd is not None:
        slots[GROUP.name] = group.directory_fd
    return slots


def account(process: Process, group: CGroup) -> None:
    """Tell a process that has ended what its group says of it: what it used, and whether memory was why it ended."""
    used: Any = group.usage()
    assert process.usage is not None
    process.usage = attrs.evolve(
        process.usage,
        memory_peak_bytes=used.memory_peak_bytes,
        throttled_s=None if used.throttled_us is None else used.throttled_us / 1e6,
        group=used,
    )
    if used.oom_killed and process.cause in ("signal", "exit"):
        process.cause = "oom"
