"""``tmpcopyup``: a tmpfs that starts with a copy of the directory that it covers.

The runtime fills it before it is attached. The covered directory is opened without following a symlink out of the root
filesystem. Everything is made on descriptors of the new filesystem, which no other process can reach yet.
"""

from __future__ import annotations

import os
from stat import S_ISDIR, S_ISLNK, S_ISREG

from containerkit._native import constants as k
from containerkit.oci import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["filled_tmpfs", "new_tmpfs"]

_CHUNK = 1 << 20


def filled_tmpfs(root: int, target: str, data: Sequence[tuple[str, str | None]], attributes: int) -> int:
    """Return a detached tmpfs with a copy of the directory ``target`` of the root filesystem.

    Args:
        root: the root filesystem.
        target: the directory. If it does not exist, the tmpfs is empty.
        data: the options of the tmpfs.
        attributes: ``MOUNT_ATTR_*``.

    Raises:
        StepError: it can't be made.
        OSError: something could not be copied, for example because the tmpfs is full.
    """
    try:
        source = kernel.open_inside(root, target, k.O_RDONLY | k.O_DIRECTORY)
    except OSError:
        return new_tmpfs(list(data), attributes, target)
    try:
        status = os.fstat(source)
        options = [("mode", f"{status.st_mode & 0o7777:o}"), ("uid", str(status.st_uid)), ("gid", str(status.st_gid))]
        named = {name for name, _ in data}
        tree = new_tmpfs([*data, *[pair for pair in options if pair[0] not in named]], attributes, target)
        try:
            top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
            try:
                _copy_tree(source, top)
            finally:
                os.close(top)
        except BaseException:
            os.close(tree)
            raise
    finally:
        os.close(source)
    return tree


def new_tmpfs(data: Sequence[tuple[str, str | None]], attributes: int, target: str) -> int:
    """Return a detached tmpfs.

    Args:
        data: its options; None marks a flag.
        attributes: ``MOUNT_ATTR_*``.
        target: its purpose, for errors.

    Raises:
        StepError: it can't be made.
    """
    try:
        context = kernel.call("fsopen", b"tmpfs\0", k.FSOPEN_CLOEXEC)
        try:
            for name, value in data:
                command = k.FSCONFIG_SET_FLAG if value is None else k.FSCONFIG_SET_STRING
                word: int | bytes = 0 if value is None else os.fsencode(value) + b"\0"
                kernel.call("fsconfig", context, command, name.encode() + b"\0", word, 0)
            kernel.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0)
            return kernel.call("fsmount", context, k.FSMOUNT_CLOEXEC, attributes)
        finally:
            os.close(context)
    except OSError as error:
        raise kernel.refused(str(error.filename), error, f"tmpfs on {target}") from None


def _copy_tree(source: int, sink: int) -> None:
    """Copy the content of a directory. The directories to enter are on a list, so any depth is possible."""
    waiting = [b""]
    entered: list[tuple[bytes, os.stat_result]] = []
    while waiting:
        path = waiting.pop()
        above = kernel.open_inside(source, path, os.O_RDONLY | os.O_DIRECTORY, plain=True)
        try:
            below = kernel.open_inside(sink, path, os.O_RDONLY | os.O_DIRECTORY, plain=True)
            try:
                for name, status in _copy_directory(above, below):
                    inner = path + b"/" + name if path else name
                    waiting.append(inner)
                    entered.append((inner, status))
            finally:
                os.close(below)
        finally:
            os.close(above)
    for path, status in reversed(entered):  # they are complete now, so their times stay
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=sink, follow_symlinks=False)


def _copy_directory(source: int, sink: int) -> list[tuple[bytes, os.stat_result]]:
    """Copy the entries of a directory without descending. Return the directories that were made."""
    made = []
    for name in map(os.fsencode, os.listdir(source)):
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        if S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=sink)
            os.chown(name, status.st_uid, status.st_gid, dir_fd=sink, follow_symlinks=False)
            continue
        if S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=sink)
            made.append((name, status))
        elif S_ISREG(status.st_mode):
            _copy_file(name, source, sink)
        else:
            os.mknod(name, status.st_mode, status.st_rdev, dir_fd=sink)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=sink, follow_symlinks=False)
        os.chmod(name, status.st_mode & 0o7777, dir_fd=sink)
        os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=sink, follow_symlinks=False)
    return made


def _copy_file(name: bytes, source: int, sink: int) -> None:
    reading = kernel.open_regular(source, name, plain=True)
    try:
        writing = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=sink)
        try:
            while _pump(reading, writing):
                pass
            for key in os.listxattr(reading):
                if key.startswith(("security.capability", "trusted.")):  # tmpfs has no user attributes
                    os.setxattr(writing, key, os.getxattr(reading, key))
        finally:
            os.close(writing)
    finally:
        os.close(reading)


def _pump(reading: int, writing: int) -> int:
    content = os.read(reading, _CHUNK)
    left = content
    while left:
        left = left[os.write(writing, left) :]
    return len(content)
