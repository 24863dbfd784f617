"""Open files below a directory, and sync a filesystem: system calls that the standard library does not have."""

from __future__ import annotations

import os
from errno import EAGAIN
from typing import Final

from containerkit._linux.tree_walk import chunks
from containerkit._native import constants as k
from containerkit._native.calls import openat2

__all__ = ["BENEATH", "is_on_same_mount", "open_beneath", "sync_filesystem"]

BENEATH: Final = k.RESOLVE_BENEATH | k.RESOLVE_NO_SYMLINKS | k.RESOLVE_NO_MAGICLINKS


def open_beneath(directory: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open a path below ``directory`` without following any symlink.

    Args:
        directory: descriptor of the directory.
        path: a relative path without a NUL, of any length.
        flags: as for open(2); close-on-exec is added.
        mode: permission bits of a new file.

    Returns:
        A new descriptor.

    Raises:
        OSError: as for openat2(2): ELOOP for a symlink in the path, EXDEV for a path that leads out.

    Source: openat2(2).
    """
    *above, last = chunks(path)
    at = directory
    try:
        for piece in above:
            below = _open(at, piece, os.O_PATH | os.O_DIRECTORY)
            if at != directory:
                os.close(at)
            at = below
        return _open(at, last, flags, mode)
    finally:
        if at != directory:
            os.close(at)


def is_on_same_mount(directory: int, path: bytes) -> bool:
    """Return whether a path below ``directory`` crosses no symlink and no mount point.

    Source: openat2(2), RESOLVE_NO_XDEV.
    """
    try:
        os.close(_open(directory, path, os.O_PATH | os.O_DIRECTORY, resolve=BENEATH | k.RESOLVE_NO_XDEV))
    except OSError:
        return False
    return True


def _open(directory: int, path: bytes, flags: int, mode: int = 0, resolve: int = BENEATH) -> int:
    while True:
        try:
            return openat2(directory, path, flags | os.O_CLOEXEC, mode, resolve)
        except OSError as error:
            if error.errno != EAGAIN:  # EAGAIN: a concurrent rename disturbed the resolution
                raise


def sync_filesystem(descriptor: int) -> None:
    """Write the cached data of an open file's filesystem to its disk.

    Source: syncfs(2).
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(ctypes.c_int(descriptor)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
