"""What a container has changed, read from the writable layer of its root."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Change", "changes", "listed"]


@attrs.frozen
class Change:
    """One difference between a container's root and what lies below it.

    Attributes:
        path: absolute, as inside.
        kind: ``"added"``, ``"changed"`` or ``"deleted"``. A folder that was replaced (made opaque) is ``"changed"``.
    """

    path: str
    kind: str


_FILE: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"


def changes(upper: int, lowers: tuple[int, ...], *, prefix: str = "", marks: bool = False) -> Iterator[Change]:
    """Yield what the upper folder of an overlay adds, changes and deletes, in the order of the paths.

    Args:
        upper: a descriptor of the upper folder.
        lowers: descriptors of the lower folders, topmost first; they tell an addition from a change.
        prefix: the path inside where the overlay is mounted.
        marks: files whose names begin with ``.wh.`` are marks of fuse-overlayfs, too.

    Nothing is followed out of the folders: every step is by descriptor, links are never walked.
    Source: the kernel's filesystems/overlayfs.rst, whiteouts and opaque directories.
    """
    device = os.fstat(upper).st_dev
    for name in sorted(os.listdir(upper)):
        if marks and name.startswith(_FILE):
            hidden = name.removeprefix(_FILE)
            if any(_exists(hidden, lower) for lower in lowers) and name != _OPAQUE:
                yield Change(f"{prefix}/{hidden}", "deleted")
            continue
        status = os.stat(name, dir_fd=upper, follow_symlinks=False)
        if status.st_dev != device:
            continue  # something is mounted there
        path = f"{prefix}/{name}"
        below = any(_exists(name, lower) for lower in lowers)
        if _is_whiteout(name, upper, status):
            if below:
                yield Change(path, "deleted")
            continue
        folder = stat.S_ISDIR(status.st_mode)
        if not below:
            yield Change(path, "added")
        elif not folder or _is_opaque(name, upper, marks=marks) or not _same_metadata(name, status, lowers):
            yield Change(path, "changed")
        if folder:
            yield from _inside(name, upper, lowers, path, marks=marks)


def listed(how: tuple[str, bool], upper: int, *lowers: int | str) -> list[Change]:
    """Return the same as a list, given the lower folders by descriptor or path.

    Args:
        how: ``prefix`` and ``marks`` as for :func:`changes`.
        upper: a descriptor of the upper folder.
        lowers: the lower folders, topmost first.
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


def _inside(name: str, upper: int, lowers: tuple[int, ...], path: str, *, marks: bool) -> Iterator[Change]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    opened: list[int] = []
    try:
        opened.append(os.open(name, flags, dir_fd=upper))
        for lower in () if _is_opaque(name, upper, marks=marks) else lowers:
            try:
                opened.append(os.open(name, flags, dir_fd=lower))
            except OSError:
                continue  # not there, or no folder: this layer says nothing about what lies inside
        yield from changes(opened[0], tuple(opened[1:]), prefix=path, marks=marks)
    finally:
        for fd in opened:
            os.close(fd)


def _exists(name: str, folder: int) -> bool:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return not _is_whiteout(name, folder, status)


def _is_whiteout(name: str, folder: int, status: os.stat_result) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == 0
    if stat.S_ISREG(status.st_mode) and status.st_size == 0:
        return _attribute(name, folder, "overlay.whiteout") is not None
    return False


def _is_opaque(name: str, folder: int, *, marks: bool) -> bool:
    if marks and os.access(f"{name}/{_OPAQUE}", os.F_OK, dir_fd=folder, follow_symlinks=False):
        return True
    return _attribute(name, folder, "overlay.opaque") == b"y"


def _attribute(name: str, folder: int, attribute: str) -> bytes | None:
    path = f"/proc/self/fd/{folder}/{name}"
    for space in ("user", "trusted"):
        try:
            return os.getxattr(path, f"{space}.{attribute}", follow_symlinks=False)
        except OSError:
            continue
    return None


def _same_metadata(name: str, status: os.stat_result, lowers: tuple[int, ...]) -> bool:
    """Whether a folder was copied up only because something inside it changed."""
    for lower in lowers:
        try:
            other = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except OSError:
            continue
        return other.st_mode == status.st_mode and (other.st_uid % 65536) == (status.st_uid % 65536)
    return False
