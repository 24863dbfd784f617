"""Resolve the paths of a layer that is being written, on top of the layers below it."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from containerkit.archive.links import follow
from containerkit.archive.longpath import readlink
from containerkit.archive.stream import shown
from containerkit.archive.tree import NotInLayerError
from containerkit.errors import ImageError

if TYPE_CHECKING:
    from containerkit.archive.links import Parts
    from containerkit.archive.tree import Tree
    from containerkit.archive.view import Found, View

__all__ = ["Union", "covers"]


def covers(marks: set[Parts], parts: Parts) -> bool:
    """Return whether one of the marked paths is this path or a parent of it. The cost depends on the smaller number."""
    if len(marks) <= len(parts):
        return any(parts[: len(mark)] == mark for mark in marks)
    return any(parts[:depth] in marks for depth in range(len(parts) + 1))


class Union:
    """The root that a container would see if the layer ended here.

    This class resolves symlinks by name, as in a chroot. The resulting paths have no symlinks, so
    :class:`Tree` never gets any.

    Args:
        tree: the files of the layer.
        below: the layers below, if there are any.

    Attributes:
        whiteouts: the paths that the layer deletes.
        opaque: directories whose content in the layers below it hides.
    """

    def __init__(self, tree: Tree, below: View | None) -> None:
        self.whiteouts: set[Parts] = set()
        self.opaque: set[Parts] = set()
        self._tree = tree
        self._below = below

    def real(self, parts: Parts) -> Parts:
        """Return the real path of a directory, without symlinks. The directory need not exist.

        Raises:
            NotInLayerError: a symlink in the path does not lead to a directory.
            ImageError: a component is a file, or the symlinks form a loop.

        Source: path_resolution(7).
        """
        if not parts:
            return parts
        try:
            self._tree.directory(parts, make=False)
        except (FileNotFoundError, ImageError):
            return self._walk(parts)
        return parts

    def _walk(self, parts: Parts) -> Parts:
        done: Parts = ()
        for part in parts:
            ahead = follow(done, part, self._link_at)
            if ahead != (*done, part) and not self._is_directory(ahead):
                raise NotInLayerError(f"layer: {shown(b'/'.join(parts))} has a symlink that leads to no directory")
            done = ahead
        return done

    def _link_at(self, parts: Parts) -> bytes | None:
        if self.is_deleted(parts):
            return None
        mode = self._tree.mode(parts)
        if mode is not None:
            return self._tree.link(parts) if stat.S_ISLNK(mode) else None
        found = self.find_below(parts)
        return readlink(found.path) if found is not None and stat.S_ISLNK(found.status.st_mode) else None

    def _is_directory(self, parts: Parts) -> bool:
        if not parts:
            return True
        if self.is_deleted(parts):
            return False
        mode = self._tree.mode(parts)
        if mode is not None:
            return stat.S_ISDIR(mode)
        found = self.find_below(parts)
        return found is not None and found.is_directory

    def find_below(self, parts: Parts) -> Found | None:
        """Return the file of the layers below at a path without symlinks, unless this layer hides it."""
        if self._below is None or self.is_deleted(parts):
            return None
        if covers(self.opaque, parts[:-1]):
            return None
        return self._below.find(parts)

    def is_deleted(self, parts: Parts) -> bool:
        """Return whether the layer deletes a path or a parent of it, and has not replaced it."""
        return covers(self.whiteouts, parts)
