"""Walk directories of any depth by descriptor, without long paths and recursion, with few open descriptors."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import ESTALE
from functools import partial
from itertools import chain

from containerkit.descriptors import Closing, close_all, keep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

__all__ = ["DIRECTORY", "Trail", "chunks", "remove", "walk"]

DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_BYTES: Final = 4000  # below PATH_MAX, 4096


def _open_at(kept: list[int], name: bytes, directory: int) -> int:
    return keep(kept, partial(os.open, dir_fd=directory), name, DIRECTORY)


class Trail(Closing):
    """The directories from a root down to the current directory of a walk.

    Only the nearest few are open. A closed directory is opened again on the way back, and must be the same one. So a
    tree that is moved during the walk can't lead the walk elsewhere. (While a directory is open, the kernel keeps its
    parents in memory, so their inode numbers do not change, even on overlayfs.)

    It owns the descriptors that it has opened. :meth:`close` closes them. The caller keeps the root's descriptor.

    Args:
        root: descriptor of the directory where the walk begins.
        kept: an empty list for the descriptors that it opens, see :func:`containerkit.descriptors.lend`. Default: its
            own list.
        most_open: the maximum number of open descriptors in addition to the root's, at least 1. Default 16.
        open_at: opens a path below a directory. Its arguments are the list for the descriptor, the path and the
            directory. It returns the descriptor. Default: open(2) without following symlinks.
        by_name: whether ``open_at`` follows symlinks, so that a parent must be found by its path, not by ``..``.

    Attributes:
        names: the names from the root to the current directory.
    """

    def __init__(
        self,
        root: int,
        kept: list[int] | None = None,
        *,
        most_open: int = 16,
        open_at: Callable[[list[int], bytes, int], int] = _open_at,
        by_name: bool = False,
    ) -> None:
        self._root = root
        self._ids: list[tuple[int, int]] = []  # of the closed directories, which are always the outermost ones
        self._kept: list[int] = [] if kept is None else kept  # the open directories, below the closed ones
        self.names: list[bytes] = []
        self._most = max(most_open, 1)
        self._open_at = open_at
        self._by_name = by_name

    def __repr__(self) -> str:
        return f"<Trail fd={self._root}: {len(self.names)} deep, {len(self._kept)} open>"

    @property
    def fd(self) -> int:
        """Descriptor of the current directory, valid until the next move."""
        return self._kept[-1] if self._kept else self._root

    @property
    def path(self) -> bytes:
        """The path from the root to the current directory, for messages."""
        return b"/".join(self.names)

    def close(self) -> None:
        """Close all descriptors except the root's. May be called twice."""
        close_all(self._kept)
        del self._ids[:], self.names[:]

    def enter(self, name: bytes) -> int:
        """Enter a directory and return its descriptor.

        Raises:
            OSError: as for open(2): ELOOP or ENOTDIR if it is not a directory.
        """
        self._open_at(self._kept, name, self.fd)
        self.names.append(name)
        if len(self._kept) > self._most:
            self._ids.append(_identity(self._kept[0]))
            self._drop(0)
        return self.fd

    def leave(self, finish: Callable[[int], object] | None = None) -> bytes:
        """Return to the parent directory. After an error only :meth:`close` may be called.

        Args:
            finish: called with the descriptor of the directory that is left, after its parent has been opened again.

        Returns:
            The name of the directory that is left, in its parent.

        Raises:
            OSError: ESTALE if it was moved elsewhere in the meantime.
        """
        child, name = self.fd, self.names.pop()
        if len(self._kept) == 1 and self._ids:
            self._reopen(child)
        if finish is not None:
            finish(child)
        self._drop(-1)
        return name

    def _drop(self, index: int) -> None:
        fd = self._kept[index]
        del self._kept[index]
        os.close(fd)

    def _reopen(self, child: int) -> None:
        """Open the parent of the only open directory, and put it first."""
        if self._by_name:
            self._open_by_names()
        else:
            self._open_at(self._kept, b"..", child)
        if self._ids[-1] != _identity(self._kept[-1]):
            raise OSError(ESTALE, "the directory was moved during the walk", os.fsdecode(self.path))
        self._ids.pop()
        self._kept.reverse()

    def _open_by_names(self) -> None:
        at = self._root
        for piece in chunks(self.path):
            below = self._open_at(self._kept, piece, at)
            if at != self._root:
                self._drop(-2)
            at = below


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def chunks(path: bytes) -> Iterator[bytes]:
    """Split a relative path into pieces that are short enough for the kernel, each relative to the one before.

    Source: path_resolution(7), "PATH_MAX".
    """
    while len(path) > _CHUNK_BYTES:
        end = path.rfind(b"/", 0, _CHUNK_BYTES)
        if end <= 0:
            break  # a single name that is too long: the kernel will refuse it
        yield path[:end]
        path = path[end:].lstrip(b"/")
    yield path


def walk(root: int, kept: list[int] | None = None) -> Iterator[tuple[Trail, list[bytes], list[bytes]]]:
    """Yield each directory below a root from the top, as ``os.walk`` does, at any depth.

    Args:
        root: the descriptor of the root.
        kept: see :class:`Trail`.

    Yields:
        The trail, whose current directory it is; the names of the directories in it, which the caller may remove from
        the list; and all other names in it. Symlinks are never followed.
    """
    with Trail(root, kept) as trail:
        levels: list[list[bytes]] = []
        while True:
            entries = list(chain.from_iterable(map(os.scandir, (trail.fd,))))  # in C like keep(), so none stays open
            found = sorted((os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries)
            directories = [name for name, is_directory in found if is_directory]
            yield trail, directories, [name for name, is_directory in found if not is_directory]
            levels.append(directories[::-1])
            while not levels[-1]:
                levels.pop()
                if not levels:
                    return
                trail.leave()
            trail.enter(levels[-1].pop())


def remove(name: bytes, directory: int, *, ignore_errors: bool = False) -> None:
    """Remove a file, or a directory with its content, at any depth. No symlink is followed.

    Args:
        name: the name.
        directory: descriptor of the directory that contains it.
        ignore_errors: whether to ignore errors and remove what can be removed. Default False.

    Raises:
        OSError: something can't be removed.

    Source: unlink(2), rmdir(2).
    """
    with Trail(directory) as trail:
        levels: list[list[bytes]] = [[name]]
        while True:
            if levels[-1]:
                below = levels[-1].pop()
                try:
                    if _unlink(below, trail.fd):
                        continue
                    _open_up(below, trail.fd)
                    trail.enter(below)
                except OSError:
                    if not ignore_errors:
                        raise
                    continue
                levels.append([os.fsencode(entry) for entry in os.listdir(trail.fd)])
                continue
            levels.pop()
            if not levels:
                return
            empty = trail.leave()
            with suppress(*([OSError] if ignore_errors else [])):
                os.rmdir(empty, dir_fd=trail.fd)


def _open_up(name: bytes, directory: int) -> None:
    """Let the owner search a directory and write to it, which is about to be removed. Root need not be let."""
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if os.geteuid() != status.st_uid or os.geteuid() == 0 or status.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        return
    fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
    finally:
        os.close(fd)


def _unlink(name: bytes, directory: int) -> bool:
    """Remove a file of any type except a directory. Return whether it was removed."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True
