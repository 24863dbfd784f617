"""Look at the union of layers without mounting it: names, files and symlinks as a container would see them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from containerkit.archive.attributes import IMPLIED
from containerkit.archive.links import Parts, follow
from containerkit.archive.longpath import attribute, lstat, names, open_file, readlink

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Found", "Parts", "View"]


class Found(NamedTuple):
    """A file of a view.

    Attributes:
        path: the path on the host.
        status: its status.
    """

    path: bytes
    status: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)


class View:
    """The union of directories. Paths are resolved component by component, symlinks as inside a container.

    Args:
        directories: topmost first. They must not change in the meantime.
        overlay: whether overlayfs's marks in them are interpreted.

    Source: Documentation/filesystems/overlayfs.rst.
    """

    def __init__(self, directories: Sequence[str], *, overlay: bool = True) -> None:
        self.overlay = overlay
        self._visible: dict[Parts, tuple[bytes, ...]] = {(): tuple(map(os.fsencode, directories))}

    def find(self, parts: Parts) -> Found | None:
        """Return the file at a path without symlinked directories, or None."""
        if not parts:
            top = self._visible[()][0]
            return Found(top, os.stat(top))
        implied: Found | None = None
        for directory in self._directories(parts[:-1]):
            path = directory + b"/" + parts[-1]
            try:
                status = lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if implied is not None and not stat.S_ISDIR(status.st_mode):
                return implied
            if self._is_whiteout(status):
                return None
            if not stat.S_ISDIR(status.st_mode) or not self._has_mark(path, (IMPLIED,)):
                return Found(path, status)
            implied = implied or Found(path, status)
        return implied

    def names(self, parts: Parts) -> list[bytes]:
        """Return the names in a directory, sorted."""
        return [name for name, _ in self.entries(parts)]

    def entries(self, parts: Parts) -> list[tuple[bytes, Found]]:
        """Return the names in a directory, sorted, and the file of each."""
        present: set[bytes] = set()
        for directory in self._directories(parts):
            present.update(names(directory))
        found = ((name, self.find((*parts, name))) for name in sorted(present))
        return [(name, file) for name, file in found if file is not None]

    def resolve(self, path: bytes, *, last: bool = True) -> Parts:
        """Resolve the symlinks of a path from the root. Components that do not exist are kept unchanged.

        Args:
            path: absolute, or relative to the root.
            last: whether to follow a symlink in the last component too.

        Raises:
            ImageError: the symlinks form a loop.

        Source: path_resolution(7).
        """
        return follow((), path, self._link_at, last=last)

    def is_link(self, parts: Parts) -> bool:
        """Return whether there is a symlink at a path without symlinked directories."""
        found = self.find(parts)
        return found is not None and stat.S_ISLNK(found.status.st_mode)

    def _link_at(self, parts: Parts) -> bytes | None:
        found = self.find(parts)
        return readlink(found.path) if found is not None and stat.S_ISLNK(found.status.st_mode) else None

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return the beginning of a file, or nothing if it does not exist or is not a regular file."""
        found = self.find(self.resolve(os.fsencode(path)))
        if found is None or not stat.S_ISREG(found.status.st_mode):
            return b""
        with open_file(found.path) as file:
            return file.read(limit)

    def directories(self, parts: Parts) -> tuple[bytes, ...]:
        """Return the host directories that form one directory of the view, topmost first."""
        return self._directories(parts)

    def _directories(self, parts: Parts) -> tuple[bytes, ...]:
        """Return the host directories that form one directory of the view, topmost first."""
        known = len(parts)
        while parts[:known] not in self._visible:
            known -= 1
        for depth in range(known + 1, len(parts) + 1):
            self._visible[parts[:depth]] = tuple(self._inside(self._visible[parts[: depth - 1]], parts[depth - 1]))
        return self._visible[parts]

    def _inside(self, above: tuple[bytes, ...], name: bytes) -> Iterator[bytes]:
        for directory in above:
            path = directory + b"/" + name
            try:
                status = lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                return
            yield path
            if self._is_opaque(path):
                return

    def _is_whiteout(self, status: os.stat_result) -> bool:
        return self.overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _is_opaque(self, path: bytes) -> bool:
        return self._has_mark(path, ("trusted.overlay.opaque", "user.overlay.opaque"))

    def _has_mark(self, path: bytes, names: tuple[str, ...]) -> bool:
        for name in names if self.overlay else ():
            with suppress(OSError):
                if attribute(path, name) == b"y":
                    return True
        return False
