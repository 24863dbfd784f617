"""Copy a directory of an image into an empty volume."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from containerkit._linux.tree_walk import Trail
from containerkit.errors import SetupError
from containerkit.image.layers.attributes import is_kept
from containerkit.image.layers.longpath import attribute, attributes, open_file, readlink
from containerkit.image.layers.view import View
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from containerkit.image import Image
    from containerkit.image.layers.view import Found, Parts

__all__ = ["fill"]

_CHUNK = 1 << 20


def fill(image: Image, target: str, data: str) -> bool:
    """Copy what an image has at a path; see :meth:`containerkit.volume.Volume.fill`."""
    root = image.rootfs(volumes=False)
    return bool(userns_helper.call(_fill, tuple(root.lowers), target, data))


def _fill(folders: tuple[str, ...], target: str, data: str) -> bool:
    view = View(folders)
    start = view.resolve(os.fsencode(target))
    found = view.find(start)
    if found is None or not found.is_directory or os.listdir(data):
        return False
    root = os.open(data, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy(view, start, root)
    except OSError as error:
        _empty(Path(data))
        hint = "the size of the volume, or the disk, is exhausted" if error.errno in (28, 122) else ""
        raise SetupError("copy", error.errno or 0, f"{target} of the image to {data}", hint) from None
    finally:
        os.close(root)
    return True


def _empty(data: Path) -> None:
    from containerkit.image.store.locks import remove_tree

    for path in data.iterdir():
        remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _copy(view: View, start: Parts, root: int) -> None:
    parts = list(start)
    waiting = [view.names(start)[::-1]]
    with Trail(root) as trail:
        while True:
            while waiting[-1]:
                name = waiting[-1].pop()
                found = view.find((*parts, name))
                if found is None:
                    continue
                if not found.is_directory:
                    _one(found, name, trail.fd)
                    continue
                os.mkdir(name, 0o700, dir_fd=trail.fd)
                trail.enter(name)
                parts.append(name)
                waiting.append(view.names(tuple(parts))[::-1])
            waiting.pop()
            own = view.find(tuple(parts))
            assert own is not None
            if not waiting:
                _dress(root, own)
                return
            trail.leave(lambda folder, own=own: _dress(folder, own))  # type: ignore[misc] # mypy does not infer a lambda with a default
            parts.pop()


def _one(found: Found, name: bytes, folder: int) -> None:
    mode = found.status.st_mode
    if stat.S_ISLNK(mode):
        os.symlink(readlink(found.path), name, dir_fd=folder)
        with suppress(PermissionError):
            os.chown(name, found.status.st_uid, found.status.st_gid, dir_fd=folder, follow_symlinks=False)
    elif stat.S_ISREG(mode):
        with open_file(found.path) as source:
            new = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                while piece := source.read(_CHUNK):
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(new, rest) :]
                _dress(new, found)
            finally:
                os.close(new)
    elif stat.S_ISFIFO(mode):
        os.mkfifo(name, stat.S_IMODE(mode), dir_fd=folder)
        with suppress(PermissionError):
            os.chown(name, found.status.st_uid, found.status.st_gid, dir_fd=folder)


def _dress(target: int, own: Found) -> None:
    """Give a copy the owner, attributes, mode and times of its original. With a single id, all is that user's."""
    status = own.status
    with suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid)
    for name in attributes(own.path):
        if is_kept(name):
            with suppress(PermissionError):
                os.setxattr(target, name, attribute(own.path, name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
