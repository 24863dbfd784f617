"""Merge neighbouring layers into one directory of hard links, so that overlayfs has fewer layers to search.

Only directories use space. Containers never write to the result, so the layers do not change.
"""

from __future__ import annotations

import os
import stat
from errno import EMLINK, EPERM, EXDEV
from typing import TYPE_CHECKING, Any

from containerkit._linux.tree_walk import DIRECTORY
from containerkit.archive.attributes import IMPLIED, mark_opaque, mark_whiteouts
from containerkit.archive.extract import OWNER_OVERRIDE, Extraction
from containerkit.archive.longpath import attribute, has_attribute, lstat, reached
from containerkit.archive.recreate import recreate
from containerkit.archive.view import View
from containerkit.image.layers.unpack import CONTENT, ORIGINS, UNNAMED, place_layer
from containerkit.image.store.locks import workspace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from containerkit.archive.links import Parts
    from containerkit.archive.view import Found
    from containerkit.image.store import Store

__all__ = ["copy_owner_record", "merge"]


def merge(store: Store, directories: Sequence[str], directory: Path) -> bool:
    """Merge neighbouring layers into one that has the same effect on the layers below.

    Args:
        store: the store.
        directories: the directories of the layers' files, topmost first.
        directory: the directory of the new layer.

    Returns:
        Whether it was made: False if files can't be linked, or have too many links.

    Source: link(2); Documentation/filesystems/overlayfs.rst.
    """
    view = _Part(directories)
    marks = Extraction.for_user().marks
    unnamed: list[str] = []

    def finish(parts: Parts, target: int) -> None:
        copy_owner_record(view, parts, target)
        if not parts:
            return
        opaque, replaced = view.hides(parts)
        if opaque or replaced:
            mark_opaque(target, marks)
        if any(has_attribute(path, f"{space}overlay.origin") for path in view.directories(parts) for space in marks):
            mark_whiteouts(target, marks)
        found = view.find(parts)
        if not replaced and found is not None and has_attribute(found.path, IMPLIED):
            os.setxattr(target, IMPLIED, b"y")
            unnamed.append(os.fsdecode(b"/".join(parts)))

    with workspace(store.root / "layers") as new:
        new.chmod(0o711)
        try:
            (new / CONTENT).mkdir()
            root = os.open(new / CONTENT, DIRECTORY)
            try:
                recreate(view, (), root, _link, finish=finish)
            finally:
                os.close(root)
        except OSError as error:
            if error.errno in (EMLINK, EPERM, EXDEV):
                return False
            raise
        facts: dict[str, Any] = {"merged": len(directories), "implied": len(unnamed), ORIGINS: True}
        place_layer(store, new, directory, facts | {UNNAMED: unnamed})
    return True


class _Part(View):
    """Some layers of a stack. Their whiteouts are shown as files, because they hide files of the layers below."""

    def _is_whiteout(self, status: os.stat_result) -> bool:  # noqa: ARG002 - the signature is that of View
        return False

    def hides(self, parts: Parts) -> tuple[bool, bool]:
        """Return how a directory hides the content that lower layers have at its path.

        Returns:
            Whether one of its parts is opaque, and whether it replaces a file of another type in one of these layers.
        """
        paths = [above + b"/" + parts[-1] for above in self.directories(parts[:-1])]
        shown = self.directories(parts)
        return any(map(self._is_opaque, shown)), any(_is_other(path) for path in paths if path not in shown)


def _is_other(path: bytes) -> bool:
    try:
        return not stat.S_ISDIR(lstat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def copy_owner_record(view: View, parts: Parts, target: int) -> None:
    """Copy the attribute that records the owner of a directory. Stores that can't change owners have it."""
    found = view.find(parts)
    if found is not None and has_attribute(found.path, OWNER_OVERRIDE):
        os.setxattr(target, OWNER_OVERRIDE, attribute(found.path, OWNER_OVERRIDE))


def _link(found: Found, name: bytes, directory: int) -> None:
    with reached(found.path) as (at, last):
        os.link(last, name, src_dir_fd=at, dst_dir_fd=directory, follow_symlinks=False)
