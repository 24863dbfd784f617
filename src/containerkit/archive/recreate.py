"""Create the directories of a stack of layers. The caller places the files in them."""

from __future__ import annotations

import os
import stat
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from containerkit._linux.tree_walk import Trail
from containerkit.archive.attributes import is_kept
from containerkit.archive.longpath import attribute, attributes

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.archive.view import Found, Parts, View

__all__ = ["copy_metadata", "recreate"]


def recreate(
    view: View,
    start: Parts,
    root: int,
    place: Callable[[Found, bytes, int], None],
    *,
    lenient: bool = False,
    finish: Callable[[Parts, int], None] = lambda _parts, _directory: None,
) -> None:
    """Create all directories below a directory of a view, and place everything else in them.

    The attributes of a directory are set last, because filling it changes them.

    Args:
        view: the stack of layers.
        start: the directory in it.
        root: a descriptor of the directory to fill.
        place: creates each file. Its arguments: the file that was found, its name, a descriptor of the directory.
        lenient: as for :func:`copy_metadata`.
        finish: called for each directory before its mode is set, with its path in the view and its descriptor.

    Raises:
        OSError: something can't be read or created.
    """

    def complete(directory: int) -> None:
        finish(tuple(parts), directory)
        copy_metadata(directory, view.find(tuple(parts)), lenient=lenient)

    parts = list(start)
    waiting = [view.entries(start)[::-1]]
    with Trail(root) as trail:
        while True:
            while waiting[-1]:
                name, found = waiting[-1].pop()
                if not found.is_directory:
                    place(found, name, trail.fd)
                    continue
                os.mkdir(name, 0o700, dir_fd=trail.fd)
                trail.enter(name)
                parts.append(name)
                waiting.append(view.entries(tuple(parts))[::-1])
            waiting.pop()
            if not waiting:
                complete(root)
                return
            trail.leave(complete)
            parts.pop()


def copy_metadata(target: int, own: Found | None, *, lenient: bool = False) -> None:
    """Give a copy the owner, attributes, mode and times of its original. With a single id, that user owns everything.

    Args:
        target: a descriptor of the copy.
        own: the original. None changes nothing.
        lenient: whether attributes that the caller may not set are left out. Default False.

    Raises:
        PermissionError: an attribute can't be set.
    """
    if own is None:
        return
    status = own.status
    with suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid)
    for name in attributes(own.path):
        if is_kept(name):
            with suppress(PermissionError) if lenient else nullcontext():
                os.setxattr(target, name, attribute(own.path, name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
