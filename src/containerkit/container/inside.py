"""Paths inside a container, with methods like those of :mod:`pathlib`."""

from __future__ import annotations

import stat
from errno import EEXIST, ENOENT, ENOTDIR
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Self

from containerkit.container.entries import inside_path
from containerkit.errors import SetupError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from containerkit.container.files import Files

__all__ = ["InsidePath"]

_ABSENT = (ENOENT, ENOTDIR)


class InsidePath:
    """A path in a container, made by ``container.path("/etc")``. Its methods are named as in :class:`pathlib.Path`.

    It raises the same errors as ``container.files``. Two paths are equal if their containers and paths are. It is not
    an :class:`os.PathLike`, because the same path is another file on the host.
    """

    __slots__ = ("_files", "_path")

    def __init__(self, files: Files, path: str | os.PathLike[str]) -> None:
        self._files = files
        self._path = PurePosixPath(inside_path(path))

    def __repr__(self) -> str:
        return f"InsidePath({str(self._path)!r})"

    def __str__(self) -> str:
        return str(self._path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InsidePath) and (self._files.of, self._path) == (other._files.of, other._path)

    def __hash__(self) -> int:
        return hash((self._files.of, self._path))

    def __truediv__(self, other: str | os.PathLike[str]) -> Self:
        return type(self)(self._files, self._path / other)

    # --- Its names

    @property
    def name(self) -> str:
        """The last component."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The last component without its suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The suffix of the last component."""
        return self._path.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """All components."""
        return self._path.parts

    @property
    def parent(self) -> Self:
        """The parent directory."""
        return type(self)(self._files, self._path.parent)

    def joinpath(self, *others: str | os.PathLike[str]) -> Self:
        """Return a path below this one."""
        return type(self)(self._files, self._path.joinpath(*others))

    def with_name(self, name: str) -> Self:
        """Return the path with another last component."""
        return type(self)(self._files, self._path.with_name(name))

    def with_suffix(self, suffix: str) -> Self:
        """Return the path with another suffix."""
        return type(self)(self._files, self._path.with_suffix(suffix))

    # --- Status

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the status of the file, with the ids inside."""
        return self._files.stat(str(self), follow_symlinks=follow_symlinks)

    def lstat(self) -> os.stat_result:
        """Return the status, without following a symlink."""
        return self.stat(follow_symlinks=False)

    def _mode(self, *, follow_symlinks: bool = True) -> int:
        try:
            return self.stat(follow_symlinks=follow_symlinks).st_mode
        except SetupError as error:
            if error.errno in _ABSENT:
                return 0
            raise

    def exists(self) -> bool:
        """Return whether the path exists."""
        return bool(self._mode())

    def is_file(self) -> bool:
        """Return whether it is a regular file or a symlink to one."""
        return stat.S_ISREG(self._mode())

    def is_dir(self) -> bool:
        """Return whether it is a directory or a symlink to one."""
        return stat.S_ISDIR(self._mode())

    def is_symlink(self) -> bool:
        """Return whether it is a symlink."""
        return stat.S_ISLNK(self._mode(follow_symlinks=False))

    def readlink(self) -> PurePosixPath:
        """Return the target of the symlink."""
        return PurePosixPath(self._files.readlink(str(self)))

    def iterdir(self) -> Iterator[Self]:
        """Yield the paths of the entries of a directory, sorted."""
        for name in self._files.listdir(str(self)):
            yield self / name

    # --- Content

    def read_bytes(self) -> bytes:
        """Return the content of the file."""
        return self._files.read(str(self))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the content of the file as text."""
        return self._files.read_text(str(self), encoding)

    def write_bytes(self, data: bytes) -> int:
        """Write bytes to the file, which is created or truncated. Return their number."""
        self._files.write(str(self), data)
        return len(data)

    def write_text(self, data: str, encoding: str = "utf-8") -> int:
        """Write text to the file, which is created or truncated. Return the number of characters."""
        self._files.write(str(self), data.encode(encoding))
        return len(data)

    def touch(self) -> None:
        """Create the file if it is missing."""
        self._files.append(str(self), b"")

    # --- Entries

    def mkdir(self, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make the directory.

        Args:
            mode: its permissions (default 0o777).
            parents: also create missing parents (default False).
            exist_ok: do nothing if it exists (default False).

        Raises:
            SetupError: EEXIST if it exists; ENOENT if the parent is missing.
        """
        found = self._mode(follow_symlinks=False)
        if found and not (exist_ok and self.is_dir()):
            raise SetupError("mkdir", EEXIST, str(self))
        if not parents and not self.parent.is_dir():
            raise SetupError("mkdir", ENOENT, str(self), "pass parents=True")
        self._files.make_directory(str(self), mode=mode)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file or symlink."""
        if stat.S_ISDIR(self._mode(follow_symlinks=False)):
            raise SetupError("unlink", 21, str(self), "use rmdir()")  # EISDIR
        self._files.remove(str(self), missing_ok=missing_ok)

    def rmdir(self) -> None:
        """Remove the directory, which must be empty."""
        if not stat.S_ISDIR(self._mode(follow_symlinks=False)):
            raise SetupError("rmdir", ENOTDIR, str(self))
        self._files.remove(str(self))
