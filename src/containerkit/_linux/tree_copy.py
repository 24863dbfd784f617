"""Copy whole trees into and out of a container, of any depth.

Only the caller's functions open files inside (see :mod:`containerkit.container.files`). Files of the host are
opened here, by descriptor and without following symlinks.
"""

from __future__ import annotations

import os
import stat
from errno import ENXIO
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from containerkit._linux.tree_walk import Trail, walk
from containerkit.descriptors import keep, lend

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    _Opener: TypeAlias = Callable[[list[int], bytes, int], int]

__all__ = ["Inside", "copy_in", "copy_out", "copy_rest"]

_CHUNK: Final = 1024 * 1024
_PLACE: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_OUT: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_IN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Inside(Protocol):
    """Opens and creates files in a container, by name below an open directory.

    Opened descriptors are appended to a list of the caller, see :func:`containerkit.descriptors.lend`.
    """

    def open_directory(self, kept: list[int], path: bytes, directory: int) -> int:
        """Open a directory. Symlinks are resolved inside."""

    def make_directory_at(self, name: bytes, directory: int, mode: int) -> None:
        """Create a directory, unless something with this name exists."""

    def make_symlink(self, name: bytes, directory: int, content: bytes) -> None:
        """Create a symlink, unless something with this name exists."""

    def new_file(self, kept: list[int], name: bytes, directory: int, mode: int) -> int:
        """Open a regular file for writing. It is created or truncated."""


def copy_rest(source: int, target: int) -> None:
    """Copy the rest of one file to another, which is new. Holes stay holes: a file of any size may be all hole.

    Source: lseek(2), "Seeking file data and holes".
    """
    size = os.fstat(source).st_size
    if os.fstat(source).st_blocks * 512 >= size:
        _copy(source, target)
        return
    while (begin := _next_data(source)) is not None:
        end = os.lseek(source, begin, os.SEEK_HOLE)
        os.lseek(source, begin, os.SEEK_SET)
        os.lseek(target, begin, os.SEEK_SET)
        _copy(source, target, end - begin)
    os.ftruncate(target, size)


def _next_data(source: int) -> int | None:
    try:
        return os.lseek(source, os.lseek(source, 0, os.SEEK_CUR), os.SEEK_DATA)
    except OSError as error:
        if error.errno != ENXIO:
            raise
        return None


def _copy(source: int, target: int, most: int = 1 << 63) -> None:
    while most and (chunk := os.read(source, min(_CHUNK, most))):
        most -= len(chunk)
        view = memoryview(chunk)
        while view:
            view = view[os.write(target, view) :]


def copy_out(source: int, inside: str, target: str, open_below: _Opener) -> tuple[str, ...]:
    """Copy an open file or directory of a container to a new path on the host.

    Args:
        source: the descriptor.
        inside: the path inside.
        target: the path on the host. An existing file or symlink is neither followed nor replaced.
        open_below: opens a file or directory of the container for reading. Its arguments are the list for the
            descriptor, the name and the directory that contains it. It follows no symlinks.

    Returns:
        The paths inside that were left out, because they are neither files nor directories.

    Raises:
        FileExistsError: the target exists.
    """
    status = os.fstat(source)
    above, _, name = target.rstrip("/").rpartition("/")

    def copy(kept: list[int], below: list[int], copied: list[int]) -> tuple[str, ...]:
        place = keep(kept, os.open, above or ("/" if target.startswith("/") else "."), _PLACE)
        if not stat.S_ISDIR(status.st_mode):
            return () if _file_out(source, status, os.fsencode(name), place) else (inside,)
        trail, outside = Trail(source, below, open_at=open_below), Trail(place, copied)
        return tuple(_tree_out(trail, outside, os.fsencode(name), inside.rstrip("/"), open_below))

    return lend(lambda kept: lend(lambda below: lend(lambda copied: copy(kept, below, copied))))


def _file_out(source: int, status: os.stat_result, name: bytes, place: int) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    create = partial(os.open, dir_fd=place)
    lend(lambda kept: copy_rest(source, keep(kept, create, name, _OUT, status.st_mode & 0o777)))
    return True


def _tree_out(trail: Trail, outside: Trail, name: bytes, inside: str, open_below: _Opener) -> list[str]:
    """Copy the current directory of ``trail`` to ``name`` in the current directory of ``outside``."""
    left: list[str] = []
    paths, levels = [inside], [_begin(trail, outside, name)]
    while True:
        modes, names = levels[-1]
        while names:
            entry = names.pop()
            path = f"{paths[-1]}/{os.fsdecode(entry)}"
            kind = os.stat(entry, dir_fd=trail.fd, follow_symlinks=False).st_mode
            if stat.S_ISDIR(kind):
                # The entry may have been replaced: then it can't be opened, or is not a directory.
                trail.enter(entry)
                paths.append(path)
                levels.append(_begin(trail, outside, entry))
                break
            if not (stat.S_ISREG(kind) and _entry_out(entry, trail.fd, outside.fd, open_below)):
                left.append(path)
        else:
            levels.pop()
            paths.pop()
            outside.leave(lambda fd, mode=modes: os.fchmod(fd, mode))  # type: ignore[misc] # mypy does not infer a lambda with a default
            if not levels:
                return left
            trail.leave()


def _entry_out(name: bytes, directory: int, place: int, open_below: _Opener) -> bool:
    def copy(kept: list[int]) -> bool:
        source = open_below(kept, name, directory)
        return _file_out(source, os.fstat(source), name, place)

    return lend(copy)


def _begin(trail: Trail, outside: Trail, name: bytes) -> tuple[int, list[bytes]]:
    """Create the copy of a directory and enter it. Return its final mode, and its entries."""
    mode = os.fstat(trail.fd).st_mode & 0o777
    os.mkdir(name, 0o700, dir_fd=outside.fd)
    outside.enter(name)
    return mode, sorted((os.fsencode(entry) for entry in os.listdir(trail.fd)), reverse=True)


def copy_in(source: str, target: int, inside: Inside) -> None:
    """Copy the content of a host directory to an open directory of a container.

    Args:
        source: the path on the host. Symlinks are copied as symlinks. Devices, FIFOs and sockets are left out.
        target: descriptor of the directory inside.
        inside: opens and creates files there.
    """

    def copy(kept: list[int], below: list[int], made: list[int]) -> None:
        goal = Trail(target, made, open_at=inside.open_directory, by_name=True)
        for trail, _, others in walk(keep(kept, os.open, source, _PLACE), below):
            if trail.names:
                while len(goal.names) >= len(trail.names):
                    goal.leave()
                inside.make_directory_at(trail.names[-1], goal.fd, os.fstat(trail.fd).st_mode & 0o777)
                goal.enter(trail.names[-1])
            for name in others:
                _one_in(trail.fd, name, goal.fd, inside)

    lend(lambda kept: lend(lambda below: lend(lambda made: copy(kept, below, made))))


def _one_in(directory: int, name: bytes, goal: int, inside: Inside) -> None:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        inside.make_symlink(name, goal, os.readlink(name, dir_fd=directory))
    elif stat.S_ISREG(status.st_mode):

        def copy(kept: list[int]) -> None:
            source = keep(kept, partial(os.open, dir_fd=directory), name, _IN)
            copy_rest(source, inside.new_file(kept, name, goal, status.st_mode & 0o777))

        lend(copy)
