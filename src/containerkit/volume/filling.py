"""Copies a directory of an image into an empty volume.

Only one process does that at a time. Others wait until the volume is complete. If that process is killed, the next one
that uses the volume removes the incomplete copy, and begins again.
"""

from __future__ import annotations

import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from containerkit.archive.longpath import open_file, readlink
from containerkit.archive.recreate import copy_metadata, recreate
from containerkit.archive.view import View
from containerkit.errors import SetupError
from containerkit.start import userns_helper
from containerkit.start.removal import remove_tree
from containerkit.volume.place import FILLING, locked

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.archive.view import Found
    from containerkit.image import Image

__all__ = ["complete", "fill"]

_CHUNK = 1 << 20


def fill(image: Image, target: str, data: str, users: Callable[[], list[str]]) -> bool:
    """Copy the directory of an image at a path; see :meth:`containerkit.volume.Volume.fill`.

    Args:
        image: the image.
        target: the path in the image.
        data: the directory of the volume's files.
        users: returns the ids of the containers that use the volume.
    """
    lowers = tuple(image.rootfs(volumes=False).lowers)
    place = os.path.dirname(data)
    mark = os.path.join(place, FILLING)
    with locked(place, fcntl.LOCK_EX):
        _remove_incomplete(data, mark, users)
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            return bool(userns_helper.call(_fill, lowers, target, data))
        finally:
            os.unlink(mark)


def complete(data: str, users: Callable[[], list[str]]) -> None:
    """Wait until a volume is not being filled. Remove the files that a killed process has copied.

    Args:
        data, users: as for :func:`fill`.
    """
    place = os.path.dirname(data)
    mark = os.path.join(place, FILLING)
    if os.path.exists(mark):
        with locked(place, fcntl.LOCK_EX):
            _remove_incomplete(data, mark, users)


def _remove_incomplete(data: str, mark: str, users: Callable[[], list[str]]) -> None:
    if os.path.exists(mark):
        if not users():  # they may have written to it
            userns_helper.call(_empty, Path(data))
        os.unlink(mark)


def _fill(directorys: tuple[str, ...], target: str, data: str) -> bool:
    view = View(directorys)
    start = view.resolve(os.fsencode(target))
    found = view.find(start)
    if found is None or not found.is_directory or os.listdir(data):
        return False
    root = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        recreate(view, start, root, _one, lenient=True)
    except OSError as error:
        _empty(Path(data))
        hint = "the size of the volume, or the disk, is exhausted" if error.errno in (28, 122) else ""
        raise SetupError("copy", error.errno or 0, f"{target} of the image to {data}", hint) from None
    finally:
        os.close(root)
    return True


def _empty(data: Path) -> None:
    for path in data.iterdir():
        remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _one(found: Found, name: bytes, directory: int) -> None:
    mode = found.status.st_mode
    if stat.S_ISLNK(mode):
        os.symlink(readlink(found.path), name, dir_fd=directory)
        with suppress(PermissionError):
            os.chown(name, found.status.st_uid, found.status.st_gid, dir_fd=directory, follow_symlinks=False)
    elif stat.S_ISREG(mode):
        with open_file(found.path) as source:
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                while piece := source.read(_CHUNK):
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(new, rest) :]
                copy_metadata(new, found, lenient=True)
            finally:
                os.close(new)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(name, stat.S_IMODE(mode), dir_fd=directory)
        with suppress(PermissionError):
            os.chown(name, found.status.st_uid, found.status.st_gid, dir_fd=directory)
