"""Volumes as tar archives, by the reader and writer of image layers, so an archive can't write outside the volume."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Final

from containerkit._native import constants as k
from containerkit._native.calls_seam import syscall
from containerkit.archive.compression import Plain
from containerkit.archive.extract import Extraction, extract
from containerkit.archive.limits import UnpackLimits
from containerkit.archive.tarwrite import TreeWriter, Writing
from containerkit.errors import CleanupError, SetupError
from containerkit.start import userns_helper
from containerkit.start.removal import remove_tree
from containerkit.start.userns_helper import Lent
from containerkit.volume.place import changing

__all__ = ["export", "replace"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_EXCHANGE: Final = 2
_UNBOUND: Final = UnpackLimits(bytes=1 << 62, entries=1 << 40, ratio=1 << 30)
"""The limits of an archive: none, because a backup belongs to the user and may be as large as the disk."""


def export(data: str, path: str | os.PathLike[str]) -> None:
    """Write a directory to an archive."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        userns_helper.call(_export, data, Lent(fd))
    finally:
        os.close(fd)


def _export(data: str, fd: int) -> None:
    root = os.open(data, _FOLDER)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            writer = TreeWriter(file, Writing())
            writer.add_tree(root)
            writer.close()
    finally:
        os.close(root)


def replace(data: str, path: str | os.PathLike[str]) -> None:
    """Replace the files of a directory by those of an archive: all of them or, if that fails or is killed, none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    new = f"{data}.{os.urandom(4).hex()}"
    try:
        with changing():
            try:
                userns_helper.call(_unpack, new, Lent(fd))
                _exchange(new, data)
            except BaseException as error:
                remove_tree(Path(new))
                if isinstance(error, OSError) and not isinstance(error, SetupError):
                    raise SetupError("rename", error.errno or 0, data, "the volume is unchanged") from None
                raise
            if not remove_tree(Path(new)):
                raise CleanupError((new,))
    finally:
        os.close(fd)


def _exchange(one: str, other: str) -> None:
    """Exchange two directories. Source: rename(2), RENAME_EXCHANGE."""
    syscall("renameat2", k.AT_FDCWD, os.fsencode(one), k.AT_FDCWD, os.fsencode(other), _EXCHANGE, target=other)


def _unpack(new: str, fd: int) -> None:
    os.mkdir(new, 0o755)
    os.chmod(new, 0o755)
    root = os.open(new, _FOLDER)
    try:
        how = Extraction.for_user(whiteouts="apply", limits=_UNBOUND)
        with os.fdopen(os.dup(fd), "rb") as file, Plain(file, "archive", limits=_UNBOUND) as stream:
            extract(stream, root, hashlib.sha256(), how, stream.compressed)
    finally:
        os.close(root)
