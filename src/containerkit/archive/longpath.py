"""Access files whose absolute path is longer than the kernel accepts at once.

A layer can be nearly as deep as the kernel allows (PATH_MAX, 4,096 bytes), and the path of the store comes before it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from containerkit._linux.tree_walk import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["attribute", "attributes", "has_attribute", "lstat", "names", "open_file", "reached", "readlink"]

_SHORT: Final = 4000
_FILE: Final = os.O_RDONLY | os.O_CLOEXEC


@contextmanager
def reached(path: bytes) -> Iterator[tuple[int | None, bytes]]:
    """Yield a path that is short enough, and the descriptor of the directory to which it is relative (None: unchanged).

    Source: path_resolution(7), open(2).
    """
    if len(path) < _SHORT:
        yield None, path
        return
    *above, last = chunks(path)
    at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for piece in above:
            below = os.open(piece, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            os.close(at)
            at = below
        yield at, last
    finally:
        os.close(at)


def lstat(path: bytes) -> os.stat_result:
    """Return the status of a file. A symlink is not followed."""
    if len(path) < _SHORT:
        return os.lstat(path)
    with reached(path) as (at, name):
        return os.lstat(name, dir_fd=at)


def readlink(path: bytes) -> bytes:
    """Return the target of a symlink."""
    with reached(path) as (at, name):
        return os.readlink(name, dir_fd=at)


def names(path: bytes) -> list[bytes]:
    """Return the names in a directory."""
    if len(path) < _SHORT:
        return os.listdir(path)
    with reached(path) as (at, name):
        descriptor = os.open(name, _FILE | os.O_DIRECTORY, dir_fd=at)
    try:
        return [os.fsencode(entry) for entry in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def open_file(path: bytes) -> BinaryIO:
    """Open a file for reading."""
    with reached(path) as (at, name):
        return cast("BinaryIO", os.fdopen(os.open(name, _FILE, dir_fd=at), "rb"))


def attribute(path: bytes, name: str) -> bytes:
    """Return an extended attribute. A symlink is not followed."""
    if len(path) < _SHORT:
        return os.getxattr(path, name, follow_symlinks=False)
    with reached(path) as (at, last):
        return os.getxattr(_place(at, last), name, follow_symlinks=False)


def has_attribute(path: bytes, name: str) -> bool:
    """Return whether a file has an extended attribute. A symlink is not followed."""
    try:
        attribute(path, name)
    except OSError:
        return False
    return True


def attributes(path: bytes) -> list[str]:
    """Return the names of the extended attributes. A symlink is not followed."""
    with reached(path) as (at, last):
        return os.listxattr(_place(at, last), follow_symlinks=False)


def _place(at: int | None, name: bytes) -> bytes:
    return name if at is None else b"/proc/self/fd/%d/%s" % (at, name)
