"""Opening beneath a folder, and writing a filesystem out: what an extractor needs beyond the standard library."""

from __future__ import annotations

import os
from errno import EAGAIN
from typing import Final

from containerkit._native import constants as k
from containerkit._native.calls import openat2

__all__ = ["BENEATH", "open_beneath", "sync_filesystem"]

BENEATH: Final = k.RESOLVE_BENEATH | k.RESOLVE_NO_SYMLINKS | k.RESOLVE_NO_MAGICLINKS


def open_beneath(directory: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open a path that neither leaves ``directory`` nor goes through any symbolic link.

    Args:
        directory: descriptor of the folder.
        path: relative path without a NUL.
        flags: as for open(2); close-on-exec is added.
        mode: permission bits of a file that is made.

    Returns:
        A new descriptor.

    Raises:
        OSError: as for openat2(2): ELOOP for a link on the way, EXDEV for a way out.

    Source: openat2(2).
    """
    while True:
        try:
            return openat2(directory, path, flags | os.O_CLOEXEC, mode, BENEATH)
        except OSError as error:
            if error.errno != EAGAIN:  # a rename raced with the walk
                raise


def sync_filesystem(descriptor: int) -> None:
    """Write what the filesystem of an open file holds in memory to its disk.

    Source: syncfs(2).
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syncfs(ctypes.c_int(descriptor)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
