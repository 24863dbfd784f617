"""The layer that is being written, on top of those below it: where a path of its archive leads."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from containerkit.errors import ImageError
from containerkit.image.layers.links import follow
from containerkit.image.layers.stream import shown
from containerkit.image.layers.tree import LacksError

if TYPE_CHECKING:
    from containerkit.image.layers.links import Parts
    from containerkit.image.layers.tree import Tree
    from containerkit.image.layers.view import Found, View

__all__ = ["Union"]


class Union:
    """What a container would see once the layer is written so far.

    Links lead where they would inside a chroot. They are followed by name, here; what comes out has no links any more,
    and that is all that :class:`Tree` is ever told.

    Args:
        tree: what the layer has brought.
        below: the layers below, when they are there.

    Attributes:
        whiteouts: what the layer deletes.
        opaque: folders of which it hides all that the layers below have in them.
    """

    def __init__(self, tree: Tree, below: View | None) -> None:
        self.whiteouts: set[Parts] = set()
        self.opaque: set[Parts] = set()
        self._tree = tree
        self._below = below

    def real(self, parts: Parts) -> Parts:
        """Return where a folder really lies, by a path without links; it need not be there yet.

        Raises:
            LacksError: a link on the way leads to no folder.
            ImageError: a file is on the way, or links have no end.

        Source: path_resolution(7).
        """
        if not parts:
            return parts
        try:
            self._tree.folder(parts, make=False)
        except (FileNotFoundError, ImageError):
            return self._walk(parts)
        return parts

    def _walk(self, parts: Parts) -> Parts:
        done: Parts = ()
        for part in parts:
            ahead = follow(done, part, self._link_at)
            if ahead != (*done, part) and not self._is_folder(ahead):
                raise LacksError(f"layer: the path {shown(b'/'.join(parts))} leads through a link to no folder")
            done = ahead
        return done

    def _link_at(self, parts: Parts) -> bytes | None:
        if self.is_deleted(parts):
            return None
        mode = self._tree.mode(parts)
        if mode is not None:
            return self._tree.link(parts) if stat.S_ISLNK(mode) else None
        found = self.find_below(parts)
        return os.readlink(found.path) if found is not None and stat.S_ISLNK(found.status.st_mode) else None

    def _is_folder(self, parts: Parts) -> bool:
        if not parts:
            return True
        if self.is_deleted(parts):
            return False
        mode = self._tree.mode(parts)
        if mode is not None:
            return stat.S_ISDIR(mode)
        found = self.find_below(parts)
        return found is not None and found.is_folder

    def find_below(self, parts: Parts) -> Found | None:
        """Return what the layers below have at a path without links, unless this layer hides it."""
        if self._below is None or self.is_deleted(parts):
            return None
        if any(parts[:depth] in self.opaque for depth in range(len(parts))):
            return None
        return self._below.find(parts)

    def is_deleted(self, parts: Parts) -> bool:
        """Return whether the layer deletes a path, or a folder above it, and has brought nothing in its place."""
        return bool(self.whiteouts) and any(parts[: depth + 1] in self.whiteouts for depth in range(len(parts)))
