"""The changes of a container, read from the writable layer of its root."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from errno import EMFILE, ENFILE

from containerkit._linux.tree_walk import Trail
from containerkit.typed import Literal, NamedTuple
from containerkit.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

__all__ = ["Change", "ChangeKind", "changes", "listed"]


ChangeKind = Literal["added", "changed", "deleted"]


@frozen
class Change:
    """One difference between a container's root and the layers below it.

    Attributes:
        path: absolute, as inside.
        kind: ``"added"``, ``"changed"`` or ``"deleted"``. A directory that was replaced (made opaque) is ``"changed"``.
    """

    path: str
    kind: ChangeKind


_FILE: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_MOST_OPEN: Final = 64  # descriptors, beside those of the roots


def changes(upper: int, lowers: tuple[int, ...], *, prefix: str = "", marks: bool = False) -> Iterator[Change]:
    """Yield what the upper directory of an overlay adds, changes and deletes, in the order of the paths.

    Args:
        upper: a descriptor of the upper directory.
        lowers: descriptors of the lower directories, topmost first. They distinguish additions from changes.
        prefix: the path inside where the overlay is mounted.
        marks: whether files whose names begin with ``.wh.`` are whiteouts of fuse-overlayfs.

    No path leads out of the directories: every step uses a descriptor, and symlinks are never followed.
    Source: the kernel's filesystems/overlayfs.rst, whiteouts and opaque directories.
    """
    with ExitStack() as stack:
        most_open = max(1, _MOST_OPEN // (1 + len(lowers)))
        top, *below = (stack.enter_context(Trail(fd, most_open=most_open)) for fd in (upper, *lowers))
        levels = [_Level(prefix, _names(upper), below)]
        device = os.fstat(upper).st_dev
        while True:
            level = levels[-1]
            while level.names:
                name = level.names.pop()
                lower_name = name.removeprefix(_FILE) if marks else name
                shown = level.lowers[: _depth(lower_name, [trail.fd for trail in level.lowers])]
                change, enter = _look(name, top.fd, [trail.fd for trail in shown], device, marks=marks)
                path = f"{level.path}/{os.fsdecode(name)}"
                if change:
                    hidden = marks and name.startswith(_FILE)
                    yield Change(f"{level.path}/{os.fsdecode(name.removeprefix(_FILE))}" if hidden else path, change)
                if enter:
                    lowers_there = [] if _is_opaque(name, top.fd, marks=marks) else shown
                    level = _Level(path, [], [trail for trail in lowers_there if _enter(trail, name)])
                    level.names.extend(_names(top.enter(name)))
                    levels.append(level)
            levels.pop()
            if not levels:
                return
            for trail in (top, *level.lowers):
                trail.leave()


class _Level(NamedTuple):
    """A directory that is being compared.

    Attributes:
        path: its path inside.
        names: the entries that are not yet compared, the last name first.
        lowers: the lower directories that contain it. Their trails are positioned there.
    """

    path: str
    names: list[bytes]
    lowers: list[Trail]


def _names(directory: int) -> list[bytes]:
    return sorted((os.fsencode(name) for name in os.listdir(directory)), reverse=True)


def _enter(trail: Trail, name: bytes) -> bool:
    try:
        trail.enter(name)
    except OSError as error:
        if error.errno in (EMFILE, ENFILE):
            raise
        return False  # missing or not a directory: this layer has no entries inside
    return True


def _look(name: bytes, upper: int, lowers: list[int], device: int, *, marks: bool) -> tuple[ChangeKind | None, bool]:
    """Return the kind of a change, if any, and whether to go into a directory."""
    if marks and name.startswith(_FILE):
        deleted = name != _OPAQUE and any(_exists(name.removeprefix(_FILE), lower) for lower in lowers)
        return "deleted" if deleted else None, False
    status = os.stat(name, dir_fd=upper, follow_symlinks=False)
    if status.st_dev != device:
        return None, False  # a filesystem is mounted there
    below = any(_exists(name, lower) for lower in lowers)
    if _is_whiteout(name, upper, status):
        return "deleted" if below else None, False
    directory = stat.S_ISDIR(status.st_mode)
    if not below:
        return "added", directory
    same = directory and not _is_opaque(name, upper, marks=marks) and _same_metadata(name, status, lowers)
    return None if same else "changed", directory


def listed(how: tuple[str, bool], upper: int, *lowers: int | str) -> list[Change]:
    """Return the same as a list, given the lower directories by descriptor or path.

    Args:
        how: ``prefix`` and ``marks`` as for :func:`changes`.
        upper: a descriptor of the upper directory.
        lowers: the lower directories, topmost first.
    """
    with ExitStack() as stack:
        opened: list[int] = []
        for lower in lowers:
            found = lower
            if isinstance(found, str):
                found = os.open(found, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, found)
            opened.append(found)
        return list(changes(upper, tuple(opened), prefix=how[0], marks=how[1]))


def _depth(name: bytes, lowers: list[int]) -> int:
    """Return how many of the lower directories can show a file of this name, until one of them hides the others."""
    for number, lower in enumerate(lowers):
        try:
            status = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except OSError:
            continue
        if _is_whiteout(name, lower, status):
            return number
        if not stat.S_ISDIR(status.st_mode) or _is_opaque(name, lower, marks=False):
            return number + 1
    return len(lowers)


def _exists(name: bytes, directory: int) -> bool:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return not _is_whiteout(name, directory, status)


def _is_whiteout(name: bytes, directory: int, status: os.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return _attribute(name, directory, "overlay.whiteout") is not None
    return False


def _is_opaque(name: bytes, directory: int, *, marks: bool) -> bool:
    if marks and os.access(name + b"/" + _OPAQUE, os.F_OK, dir_fd=directory, follow_symlinks=False):
        return True
    return _attribute(name, directory, "overlay.opaque") == b"y"


def _attribute(name: bytes, directory: int, attribute: str) -> bytes | None:
    path = b"/proc/self/fd/%d/%s" % (directory, name)
    for space in ("user", "trusted"):
        try:
            return os.getxattr(path, f"{space}.{attribute}", follow_symlinks=False)
        except OSError:
            continue
    return None


def _same_metadata(name: bytes, status: os.stat_result, lowers: list[int]) -> bool:
    """Return whether a directory was copied up only because its content changed."""
    for lower in lowers:
        try:
            other = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except OSError:
            continue
        return other.st_mode == status.st_mode and (other.st_uid % 65536) == (status.st_uid % 65536)
    return False
