"""Directory entries in a container: stat, remove, read symlinks, list."""

from __future__ import annotations

import os
import stat
from errno import EISDIR, ENOENT, ENOTDIR
from typing import TYPE_CHECKING, Any, Final

from containerkit._linux.tree_walk import Trail
from containerkit._native import constants as k
from containerkit.descriptors import lend
from containerkit.errors import SetupError, SpecError
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.plan.program import Program
from containerkit.spec.words import path_inside

if TYPE_CHECKING:
    from containerkit.container.live import Live
    from containerkit.plan.tape import Plan
    from containerkit.spec.command import User

__all__ = ["DIRECTORY_SLOT", "Entries", "Listed", "inside_path"]

Names = list[str]

DIRECTORY_SLOT: Final = Slot("directory")
"""The slot of an open directory."""

_AT_REMOVEDIR: Final = 0x200
_OVERFLOW: Final = 65534
_AT_A_TIME: Final = 128
_DIRECTORY: Final = k.O_RDONLY | k.O_DIRECTORY


class Entries:
    """The methods of ``container.files`` that do not read or write content.

    See :class:`containerkit.container.files.Files`.
    """

    _container: Live

    def _open(self, kept: list[int], path: str, flags: int, *, mode: int = 0, user: User | None = None) -> int:
        raise NotImplementedError

    def _open_below(self, kept: list[int], path: bytes, directory: int, flags: int, mode: int = 0) -> int:
        raise NotImplementedError

    def _plan(self, steps: list[Any]) -> Plan:
        raise NotImplementedError

    def _run(self, program: Program, blocks: dict[str, bytes], directory: int = -1) -> Any:
        raise NotImplementedError

    def stat(self, path: str | os.PathLike[str], *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the status of a path as :func:`os.stat` does, with the ids inside.

        Args:
            path: the path.
            follow_symlinks: whether to follow a symlink (default True).
        """
        flags = k.O_PATH | (0 if follow_symlinks else k.O_NOFOLLOW)
        found = lend(lambda kept: os.fstat(self._open(kept, inside_path(path), flags)))
        values = list(found)
        values[4:6] = self._id(found.st_uid, "uid"), self._id(found.st_gid, "gid")
        names = ("st_atime", "st_mtime", "st_ctime", "st_blksize", "st_blocks", "st_rdev")
        exact = {name: getattr(found, name) for name in (*names, "st_atime_ns", "st_mtime_ns", "st_ctime_ns")}
        return os.stat_result(values, exact)

    def _id(self, number: int, which: str) -> int:
        """Return the id inside; 65534 for an unmapped one. Source: user_namespaces(7)."""
        with open(f"/proc/{self._container.pid}/{which}_map", encoding="utf-8") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
        for first, outside, count in ranges:
            if outside <= number < outside + count:
                return first + number - outside
        return _OVERFLOW

    def readlink(self, path: str | os.PathLike[str]) -> str:
        """Return the target of a symlink."""

        def read(kept: list[int]) -> str:
            fd = self._open(kept, inside_path(path), k.O_PATH | k.O_NOFOLLOW)
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                raise SetupError("readlink", 22, inside_path(path), "it is not a symlink")  # EINVAL
            return os.readlink("", dir_fd=fd)

        return lend(read)

    def remove(self, path: str | os.PathLike[str], *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Remove a file, a symlink itself, or a directory.

        Args:
            path: the path.
            recursive: whether to remove a directory with its content (default False: only an empty one).
            missing_ok: whether a missing path is no error (default False).

        Raises:
            SetupError: ENOENT for a missing path, ENOTEMPTY for a directory that is not empty.
        """
        where = inside_path(path)
        if where == "/":
            raise SpecError("files.remove: path: '/' is the root filesystem itself")
        try:
            lend(lambda kept: self._remove(kept, where, recursive=recursive))
        except SetupError as error:
            if missing_ok and error.errno == ENOENT:
                return
            raise

    def _remove(self, kept: list[int], path: str, *, recursive: bool) -> None:
        above, _, name = path.rpartition("/")
        parent = self._open(kept, above or "/", _DIRECTORY)
        raw = os.fsencode(name)
        try:
            self._unlink(parent, [raw])
        except SetupError as error:
            if error.errno not in (EISDIR, ENOTDIR):
                raise SetupError("unlink", error.errno or 0, path, error.hint) from None
        else:
            return
        if recursive:
            lend(lambda opened: self._empty(opened, parent, raw))
        try:
            self._unlink(parent, [raw], _AT_REMOVEDIR)
        except SetupError as error:
            hint = "pass recursive=True to remove what is in it" if not recursive else error.hint
            raise SetupError("rmdir", error.errno or 0, path, hint) from None

    def _empty(self, opened: list[int], parent: int, name: bytes) -> None:
        """Remove the content of a directory without recursion, long paths, or following symlinks."""
        trail = Trail(parent, opened, open_at=self._open_directory)
        trail.enter(name)
        while trail.names:
            below = next(self._one_below(trail.fd), None)
            if below is not None:
                trail.enter(below)
                continue
            left = trail.leave()
            if trail.names:
                self._unlink(trail.fd, [left], _AT_REMOVEDIR)

    def _one_below(self, directory: int) -> Any:
        """Remove all entries except directories, and yield the names of the directories."""
        with os.scandir(directory) as entries:
            found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
        files = [name for name, is_directory in found if not is_directory]
        for start in range(0, len(files), _AT_A_TIME):
            self._unlink(directory, files[start : start + _AT_A_TIME])
        yield from (name for name, is_directory in found if is_directory)

    def _open_directory(self, kept: list[int], name: bytes, directory: int) -> int:
        return self._open_below(kept, name, directory, _DIRECTORY | k.O_NOFOLLOW)

    def _unlink(self, directory: int, names: list[bytes], flags: int = 0) -> None:
        steps = [calls.call("unlinkat", DIRECTORY_SLOT, name, flags, target=os.fsdecode(name)) for name in names]
        self._run(Program(self._plan(steps)), {}, directory)


class Listed:
    """The method ``list``. In the class of the other methods its name would hide the type ``list`` in annotations."""

    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]:
        """Return the names in a directory, sorted."""
        raise NotImplementedError

    def list(self, path: str | os.PathLike[str] = "/") -> Names:
        """Return the names in a directory, sorted: :meth:`listdir`."""
        return self.listdir(path)


def inside_path(path: str | os.PathLike[str]) -> str:
    """Return an absolute, normalised path inside.

    Raises:
        SpecError: the path is invalid.
    """
    return path_inside(os.fspath(path) if isinstance(path, os.PathLike) else path, "path")
