"""Looking at the union of layers without mounting it: names, files and links as a container would see them."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from containerkit.image.layers.attributes import IMPLIED
from containerkit.image.layers.links import Parts, follow

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Found", "Parts", "View"]


class Found(NamedTuple):
    """A file of a view.

    Attributes:
        path: where it is outside.
        status: what is known of it.
    """

    path: bytes
    status: os.stat_result

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return stat.S_ISDIR(self.status.st_mode)


class View:
    """The union of folders. Each lookup goes component by component; links lead where they lead inside.

    Args:
        folders: topmost first; nothing may change them meanwhile.
        overlay: whether overlayfs's marks in them mean something.

    Source: Documentation/filesystems/overlayfs.rst.
    """

    def __init__(self, folders: Sequence[str], *, overlay: bool = True) -> None:
        self.overlay = overlay
        self._visible: dict[Parts, tuple[bytes, ...]] = {(): tuple(map(os.fsencode, folders))}

    def find(self, parts: Parts) -> Found | None:
        """Return what lies at a path whose folders are no links; None when nothing does."""
        if not parts:
            top = self._visible[()][0]
            return Found(top, os.stat(top))
        implied: Found | None = None
        for folder in self._folders(parts[:-1]):
            path = folder + b"/" + parts[-1]
            try:
                status = os.lstat(path)
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
        """Return what is in a folder, sorted."""
        found: set[bytes] = set()
        for folder in self._folders(parts):
            found.update(os.listdir(folder))
        return sorted(name for name in found if self.find((*parts, name)) is not None)

    def resolve(self, path: bytes, *, last: bool = True) -> Parts:
        """Follow a path from the root through its links; what is not there yet is taken as it is written.

        Args:
            path: absolute, or relative to the root.
            last: follow a link at the very end too.

        Raises:
            ImageError: links without an end.

        Source: path_resolution(7).
        """
        return follow((), path, self._link_at, last=last)

    def is_link(self, parts: Parts) -> bool:
        """Return whether a symbolic link lies at a path whose folders are no links."""
        found = self.find(parts)
        return found is not None and stat.S_ISLNK(found.status.st_mode)

    def _link_at(self, parts: Parts) -> bytes | None:
        found = self.find(parts)
        return os.readlink(found.path) if found is not None and stat.S_ISLNK(found.status.st_mode) else None

    def read(self, path: str, limit: int = 1 << 20) -> bytes:
        """Return the beginning of a file, or nothing when it is not there or no plain file."""
        found = self.find(self.resolve(os.fsencode(path)))
        if found is None or not stat.S_ISREG(found.status.st_mode):
            return b""
        with open(found.path, "rb") as file:
            return file.read(limit)

    def folders(self, parts: Parts) -> tuple[bytes, ...]:
        """Return the folders outside that make up one folder inside, topmost first."""
        return self._folders(parts)

    def _folders(self, parts: Parts) -> tuple[bytes, ...]:
        """Return the folders outside that make up one folder inside, topmost first."""
        if parts in self._visible:
            return self._visible[parts]
        found: list[bytes] = []
        for above in self._folders(parts[:-1]):
            path = above + b"/" + parts[-1]
            try:
                status = os.lstat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if not stat.S_ISDIR(status.st_mode):
                break
            found.append(path)
            if self._is_opaque(path):
                break
        self._visible[parts] = tuple(found)
        return self._visible[parts]

    def _is_whiteout(self, status: os.stat_result) -> bool:
        return self.overlay and stat.S_ISCHR(status.st_mode) and status.st_rdev == 0

    def _is_opaque(self, path: bytes) -> bool:
        return self._has_mark(path, ("trusted.overlay.opaque", "user.overlay.opaque"))

    def _has_mark(self, path: bytes, names: tuple[str, ...]) -> bool:
        for name in names if self.overlay else ():
            with suppress(OSError):
                if os.getxattr(path, name, follow_symlinks=False) == b"y":
                    return True
        return False
