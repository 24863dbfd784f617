"""Find and remove the groups of killed owners."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING

from containerkit._linux.cgroupfs import offered_controllers, read_hierarchies
from containerkit.cgroup.directory import Directory, OpenedDirectory
from containerkit.cgroup.hierarchy import Tree
from containerkit.cgroup.owner import PREFIX, Owner
from containerkit.cgroup.processes import kill, remove, walk
from containerkit.errors import CleanupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sweep"]


def sweep(*, everywhere: bool = True, timeout: float = 10.0) -> tuple[str, ...]:
    """Remove the groups of owners that have ended. Processes that are still in them are killed.

    A group is recognised by its name, which contains the owner's pid, start time and pid namespace. Groups of live
    owners, of other pid namespaces, and of other programs are left alone. So are groups below a directory that the
    caller may not write to: they belong to another user, whose own sweep removes them.

    Args:
        everywhere: whether to search every hierarchy completely. False searches only where this process creates its own
            groups, which lists one directory for each hierarchy. If that finds one, everything is searched.
        timeout: how long to wait for the processes of each group, in seconds. Default 10.

    Returns:
        The paths of the removed groups.

    Raises:
        CleanupError: processes did not end, or the kernel refused a removal. Everything else has been removed.
    """
    removed: list[str] = []
    left: list[str] = []
    if everywhere or any(True for base in Tree.current().bases for _ in _stale(base, set())):
        for root in _roots():
            try:
                _sweep_below(root, removed, left, timeout)
            finally:
                root.close()
    if left:
        raise CleanupError(tuple(left))
    return tuple(removed)


def _roots() -> Iterator[Directory]:
    """Yield the root of every hierarchy, including those that are not mounted but still have a group."""
    hierarchies = read_hierarchies()
    seen = {name for hierarchy in hierarchies for name in hierarchy.controllers}
    for name, number in offered_controllers().items():
        if number and name not in seen:
            from containerkit.cgroup.private import companions, mount_privately

            together = companions(name)
            seen.update(together)
            with contextlib.suppress(UnsupportedError):
                yield mount_privately(together)
    for hierarchy in hierarchies:
        if hierarchy.name:
            continue
        try:
            fd = os.open(hierarchy.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        yield OpenedDirectory(fd, hierarchy.mountpoint, hierarchy.version, hierarchy.controllers)


def _stale(part: Directory, alive: set[Owner]) -> Iterator[str]:
    """Yield the child groups whose owner has ended."""
    for name in part.groups():
        owner = Owner.of(name) if name.startswith(PREFIX) else None
        if owner is None or owner in alive:
            continue
        if owner.is_gone():
            yield name
        else:
            alive.add(owner)


def _sweep_below(root: Directory, removed: list[str], left: list[str], timeout: float) -> None:
    for part in itertools.chain(walk(root), (root,)):
        if not os.access(".", os.W_OK, dir_fd=part.fd, effective_ids=True):
            continue
        for name in list(_stale(part, set())):
            try:
                group = part.open(name)
            except OSError:  # another sweep removed it first
                continue
            try:
                kill((group,), 9)
                remove((group,), timeout)
                removed.append(group.path)
            except CleanupError as error:
                left += error.left
            finally:
                group.close()
