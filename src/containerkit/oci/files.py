"""Files that are read whole, without the layers of buffers and text that ``open`` adds."""

from __future__ import annotations

import os

__all__ = ["read"]

_CHUNK = 65536


def read(path: str, directory: int | None = None) -> bytes:
    """Return a file's content.

    Args:
        path: the file.
        directory: a descriptor of the directory to which a relative path is relative.

    Raises:
        OSError: it can't be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        content = os.read(fd, _CHUNK)
        if content:
            while chunk := os.read(fd, _CHUNK):
                content += chunk
    finally:
        os.close(fd)
    return content
