"""The control groups of a container and of its commands.

A container with limits has a group of its own. A one-shot run has only that. In a container each ``exec`` gets a leaf
in the group, so that its usage can be measured separately. Processes join in the child, before the first instruction of
the command.
"""

from __future__ import annotations

import contextlib
import os
from _thread import allocate_lock
from errno import ENOMEM, ESRCH

from containerkit.compile.joining import GROUP, NOTHING_TO_JOIN, Joining
from containerkit.errors import CleanupError, SetupError, StateError
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Final, Protocol

    from containerkit.cgroup import CGroup, Limits
    from containerkit.process.result import Cause, Usage
    from containerkit.spec.mount import Mount

    class Ended(Protocol):
        """The interface of an ended process for this module."""

        usage: Usage | None
        cause: Cause | None


__all__ = [
    "SLOT_PREFIX",
    "Freezer",
    "Membership",
    "account",
    "inputs",
    "joining",
    "joining_first",
    "throttled_us",
]

SLOT_PREFIX: Final = "cgroup "
"""The slots of the directories of version 1 are called ``cgroup 0``, ``cgroup 1``, ..."""

_REPORTED: Final = ("memory", "io", "pids", "cpu")
"""The controllers of a leaf."""

_UNCOUNTED: Final = ("cpuset", "devices", "hugetlb", "misc", "net_cls", "net_prio", "perf_event", "rdma")
"""Version 1 hierarchies in which a run is in the container's group itself. They count nothing for a single run, and a
cpuset with child groups can't be made smaller."""

_ROUNDS: Final = 100
_RETRIED: Final = 4
"""The maximum number of leaves to try to remove again when the next one is made."""

_swept: list[int] = []
_sweeping = allocate_lock()


def _after_fork() -> None:
    global _sweeping  # noqa: PLW0603 - another thread of the parent may hold it, and that thread does not exist here
    _sweeping = allocate_lock()


os.register_at_fork(after_in_child=_after_fork)


def _sweep_once() -> None:
    """Remove groups of killed owners, the first time that this process makes a group."""
    if _swept and _swept[-1] == os.getpid():
        return
    from containerkit.cgroup import sweep

    with _sweeping:
        if os.getpid() in _swept:
            return
        with contextlib.suppress(CleanupError):  # files of others must not prevent a start; gc() reports them
            sweep(everywhere=False, timeout=2.0)
        _swept.append(os.getpid())


class Membership:
    """The group of one container, from :meth:`create` until :meth:`end`, which may be called twice."""

    def __init__(self) -> None:
        self._made: list[CGroup] = []
        self._heir: tuple[int, int, frozenset[str]] | None = None
        self._shared: CGroup | None = None
        self._leaves: list[CGroup] = []
        self._used: list[tuple[CGroup, int]] = []
        self._lock = allocate_lock()

    @property
    def group(self) -> CGroup:
        """The group."""
        return self._made[0]

    def create(self, limits: Limits) -> None:
        """Create the group.

        Raises:
            SpecError, UnsupportedError, SetupError: as for :meth:`containerkit.CGroup.create`.
        """
        from containerkit.cgroup import CGroup

        _sweep_once()
        CGroup.create(limits=limits, into=self._made)

    def delegate(self, mounts: Iterable[Mount], uid: int, gid: int) -> None:
        """Give the group to a user if one of the mounts makes it writable.

        Raises:
            SetupError: the kernel refused it.
        """
        shown: set[str] = set()
        for mount in mounts:
            if mount.type in {"cgroup", "cgroup2"} and not mount.readonly:
                shown.update(name for name, _ in mount.options) if mount.type == "cgroup" else shown.add("")
        if shown:
            self._heir = uid, gid, frozenset(shown)
            self._give_group(self.group)

    def _give_group(self, group: CGroup) -> None:
        if self._heir is None:
            return
        from containerkit.cgroup.create import delegate

        uid, gid, shown = self._heir
        for part in group.parts:
            if shown & (part.names or {""}):
                delegate(part, uid, gid)

    def inputs(self) -> dict[str, int]:
        """Return the slots by which the first process joins the group."""
        return inputs(self.group)

    def lift_memory_limit(self, joins: Joining) -> None:
        """Remove the memory limit of the new group until its first process sets it.

        Raises:
            SetupError: the kernel refused it.
        """
        if joins.limit and self.group.unified is not None:
            try:
                self.group.unified.write("memory.max", b"max")
            except OSError as error:
                raise SetupError("write", error.errno or 0, f"max to {self.group.path}/memory.max") from None

    def check_started(self) -> None:
        """Check whether the kernel killed the starting process because it exceeded the memory limit.

        Raises:
            SetupError: it did.
        """
        if self.group.oom_kills:
            hint = "the memory limit is too low for the start itself: raise memory= in the Limits"
            raise SetupError("start", ENOMEM, f"in {self.group.path}", hint)

    def shared(self, init: int) -> CGroup:
        """Return the group for PID 1 and for commands without a leaf.

        Args:
            init: the pid of PID 1. On version 2 a group that enables controllers for its children can't contain
                processes, so they are in a leaf.
        """
        with self._lock:
            if self._shared is None:
                self._shared = self._make_room(init)
            return self._shared

    def for_first(self) -> CGroup:
        """Return the group for processes that all start together, when there is no PID 1 yet that could be moved."""
        with self._lock:
            if self._shared is None:
                self._shared = self._make_room(None)
            return self._shared

    def _make_room(self, init: int | None) -> CGroup:
        unified = self.group.unified
        if unified is None or not unified.available().intersection(_REPORTED):
            return self.group
        leaf = self.group.create_leaf("init", without=_UNCOUNTED, into=self._leaves)
        if init is None:
            return leaf
        try:
            leaf.add(init)
        except SetupError as error:
            leaf.retire()
            if error.errno == ESRCH:
                raise StateError("the container has stopped") from None
            raise
        return leaf

    def leaf(self, init: int) -> CGroup:
        """Make a leaf for one command. ``init`` is as for :meth:`shared`."""
        self.shared(init)
        self._remove_used()
        leaf = self.group.create_leaf(controllers=_REPORTED, without=_UNCOUNTED, into=self._leaves)
        self._give_group(leaf)
        return leaf

    def retire(self, leaf: CGroup, oom_kills: int = 0) -> None:
        """Remove a leaf. If a command has left processes behind in it, it stays until they have ended.

        A leaf that an interrupted caller does not retire is removed by :meth:`end`.
        """
        leaf.close()
        if self.group.remove_leaf(leaf.name, oom_kills):
            self._forget(leaf)
        else:
            self._used.append((leaf, oom_kills))

    def _forget(self, leaf: CGroup) -> None:
        with contextlib.suppress(ValueError):  # the leaf of another process's container
            self._leaves.remove(leaf)

    def _remove_used(self) -> None:
        """Try again to remove leaves, because an ended process still counts for a moment."""
        for _ in range(min(_RETRIED, len(self._used))):
            try:
                leaf, oom_kills = self._used.pop(0)
            except IndexError:  # another thread did it first
                return
            if self.group.remove_leaf(leaf.name, oom_kills):
                self._forget(leaf)
            else:
                self._used.append((leaf, oom_kills))

    def end(self) -> None:
        """Kill the processes in the group, and remove it.

        Raises:
            CleanupError: it could not be removed, and why.
        """
        for leaf in self._leaves:
            leaf.close()
        for group in self._made:
            group.remove(kill=True)


class Freezer:
    """Pauses the processes of a container. :meth:`end` releases it, and may be called twice.

    PID 1 is not paused, because it ends the container when its owner ends, even if the container is paused.

    Args:
        group: the group of the container, or None.
        members: returns the processes of the container.
    """

    def __init__(self, group: CGroup | None, members: Callable[[], Iterable[int]]) -> None:
        self._group = group
        self._members = members
        self._gathered: CGroup | None = None
        self._aside: CGroup | None = None

    def freeze(self, init: int | None) -> None:
        """Freeze the processes, and return when they are frozen.

        Args:
            init: the pid of PID 1, or None if the container has none.

        Raises:
            StateError: processes multiply faster than they can be moved, or one does not freeze.
            UnsupportedError: no freezer is available.
        """
        from containerkit.cgroup import CGroup

        group = self._group
        if group is None or not group.can_freeze:
            group = self._move_into_one_group(init)
        elif init is not None and self._aside is None:
            aside = CGroup.create(controllers=("freezer",) if group.unified is None else ())
            try:
                aside.add(init)
            except BaseException:
                aside.retire()
                raise
            self._aside = aside
        group.freeze()

    def thaw(self) -> None:
        """Thaw the processes."""
        group = self._gathered or self._group
        if group is not None:
            group.thaw()

    def _move_into_one_group(self, init: int | None) -> CGroup:
        """Move all processes into one group, until none is left outside."""
        from containerkit.cgroup import CGroup

        if self._gathered is None:
            self._gathered = CGroup.create(controllers=("freezer",))
        group = self._gathered
        for _ in range(_ROUNDS):
            outside = set(self._members()) - group.processes() - {init}
            if not outside:
                return group
            for pid in outside:
                try:
                    group.add(pid)
                except SetupError as error:
                    if error.errno != ESRCH:  # else it has ended in the meantime
                        raise
        raise StateError("the processes of the container multiply faster than they can be moved to a group")

    def end(self) -> None:
        """Remove its groups, once all processes have ended.

        Raises:
            CleanupError: one could not be removed, and why.
        """
        left: list[str] = []
        for group in (self._gathered, self._aside):
            try:
                if group is not None:
                    group.remove(kill=True)
            except CleanupError as error:
                left += error.left
        if left:
            raise CleanupError(tuple(left))


def joining(group: CGroup | None, within: CGroup | None = None) -> Joining:
    """Return the :class:`Joining` of a child for a group.

    Args:
        group: the group.
        within: the group of the running container to which it belongs.
    """
    if group is None:
        return NOTHING_TO_JOIN
    late = within is not None and (not within.owned or _limits_memory(within.limits))
    return Joining(len(group.join_directories()), group.limiting_memory(), group.directory_fd is not None, late)


def _limits_memory(limits: Limits) -> bool:
    return limits.memory is not None or any(name.startswith("memory.") for name, _ in limits.unified or ())


def joining_first(group: CGroup) -> Joining:
    """Return how the first process joins a group. It sets the memory limit of version 2 after it has joined.

    It is created in the group, and shares the caller's memory until it runs the sealed init.
    """
    unified = group.unified
    most = (unified.read("memory.max") or "").strip() if unified is not None else ""
    return joining(group)._replace(limit=b"" if most in {"", "max"} else most.encode())


def inputs(group: CGroup | None) -> dict[str, int]:
    """Return the slots by which a child joins a group."""
    if group is None:
        return {}
    slots = {f"{SLOT_PREFIX}{number}": fd for number, fd in enumerate(group.join_directories())}
    if group.directory_fd is not None:
        slots[GROUP.name] = group.directory_fd
    return slots


def throttled_us(group: CGroup) -> int | None:
    """Return how long the processor limit has throttled a container, or None without a limit."""
    limits = group.limits
    if limits.cpus is None and limits.cpu_quota_us is None and "cpu.max" not in dict(limits.unified or ()):
        return None
    from containerkit.cgroup import usage

    return usage.throttled_us(group.parts)


def account(process: Ended, group: CGroup, within: CGroup | None = None, before_us: int | None = None) -> int:
    """Add the data of its group to an ended process: its usage, and whether it was killed for lack of memory.

    Args:
        process: the process.
        group: its own group.
        within: the container's group if its own group is a leaf of that.
        before_us: :func:`throttled_us` of that at the start of the process.

    Returns:
        How many processes of the group were killed for lack of memory.
    """
    used: Any = group.usage()
    limit = (group if within is None else within).limits.memory
    most = limit if isinstance(limit, int) else None
    if within is not None:
        used = _corrected_by_parent(used, within, most, before_us)
    assert process.usage is not None
    process.usage = evolve(
        process.usage,
        memory_peak_bytes=used.memory_peak_bytes,
        memory_limit_bytes=most,
        throttled_us=used.throttled_us,
        group=used,
    )
    if used.oom_killed and process.cause in ("signal", "exit"):
        process.cause = "oom"
    return used.oom_kills or 0


def _corrected_by_parent(used: Any, within: CGroup, most: int | None, before_us: int | None) -> Any:
    """Return the report of a leaf, corrected by that of the group above if the limit applies there."""
    if most is not None and (used.memory_peak_bytes or 0) > most:
        # Memory that the limit above refused was charged to the leaf, so the peak of the group above is the right
        # value.
        peak = min(used.memory_peak_bytes, within.usage().memory_peak_bytes or most)
        used = evolve(used, memory_peak_bytes=peak)
    now_us = throttled_us(within)
    if now_us is None:
        return used
    # A limit that was set in the meantime is not counted, because it may have throttled other commands before.
    return evolve(used, throttled_us=None if before_us is None else now_us - before_us)
