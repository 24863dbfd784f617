"""Write a tree of untrusted files. No file is ever created outside its root.

Each path is resolved from the root's descriptor with openat2(2) without following symlinks. Each file is created by its
last component in that directory, so the kernel never gets a whole path.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from contextlib import suppress
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY
from typing import TYPE_CHECKING, Final

from containerkit._linux.tree_walk import remove
from containerkit.archive.beneath import open_beneath
from containerkit.archive.longpath import reached
from containerkit.archive.stream import shown
from containerkit.descriptors import Closing
from containerkit.errors import ImageError

if TYPE_CHECKING:
    from containerkit.archive.links import Parts

__all__ = ["NotInLayerError", "Tree"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN: Final = 32


class NotInLayerError(ImageError):
    """A layer refers to a file or directory that it does not contain. A layer below may contain it."""


class Tree(Closing):
    """A directory to write to.

    It owns a small cache of descriptors of the most recently used directories, which :meth:`close` closes. The caller
    keeps the root's descriptor.

    Args:
        root: descriptor of the directory.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.implied: set[Parts] = set()
        """Directories that were created because something is in them, and that the archive has not named so far."""
        self._open: OrderedDict[Parts, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Tree fd={self.root}: {len(self._open)} directories open>"

    def close(self) -> None:
        """Close the cached descriptors. May be called twice."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def directory(self, parts: Parts, *, make: bool = True) -> int:
        """Return a descriptor of a directory. This object owns it, and it is valid until the next call.

        Args:
            parts: the components of its path.
            make: whether to create it and its parents if they do not exist.

        Raises:
            ImageError: a component is a symlink, or is not a directory.
            FileNotFoundError: it does not exist, and ``make`` is False.

        Source: openat2(2).
        """
        if not parts:
            return self.root
        found = self._open.get(parts)
        if found is not None:
            self._open.move_to_end(parts)
            return found
        try:
            found = open_beneath(self.root, b"/".join(parts), _DIRECTORY)
        except OSError as error:
            if error.errno != ENOENT or not make:
                raise self._explained(error, parts) from error
            found = self._make_directories(parts)
        self._open[parts] = found
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return found

    def _make_directories(self, parts: Parts) -> int:
        """Create the missing directories of a path, owned by the caller and with mode 755."""
        at = os.dup(self.root)
        for depth, component in enumerate(parts, start=1):
            try:
                with suppress(FileExistsError):
                    os.mkdir(component, 0o755, dir_fd=at)
                    self.implied.add(parts[:depth])
                below = os.open(component, _DIRECTORY, dir_fd=at)
            except OSError as error:
                raise self._explained(error, parts) from error
            finally:
                os.close(at)
            at = below
        return at

    def _explained(self, error: OSError, parts: Parts) -> Exception:
        if error.errno in (ELOOP, ENOTDIR):
            return ImageError(f"layer: the path {shown(b'/'.join(parts))} leads through a symlink or a file")
        return error

    def forget(self, parts: Parts) -> None:
        """Close cached descriptors of a directory that will be removed, and of all below it."""
        for known in [known for known in self._open if known[: len(parts)] == parts]:
            os.close(self._open.pop(known))

    def make_room(self, parts: Parts) -> None:
        """Remove an existing file at the path of a new one, as GNU tar does; a directory only if it is empty.

        Raises:
            ImageError: a directory that is not empty exists there.
        """
        if not self._unlink_file(self.directory(parts[:-1]), parts):
            try:
                os.rmdir(parts[-1], dir_fd=self.directory(parts[:-1]))
            except OSError as error:
                if error.errno in (ENOTEMPTY, EEXIST):
                    raise ImageError(
                        f"layer: {shown(b'/'.join(parts))} would replace a directory that is not empty"
                    ) from error
                raise

    def _unlink_file(self, parent: int, parts: Parts) -> bool:
        """Remove a file if it exists. Return False if it is a directory, which is no longer kept open then."""
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            pass
        except (IsADirectoryError, PermissionError):
            self.forget(parts)
            return False
        return True

    def new_file(self, parts: Parts) -> int:
        """Create an empty file, replacing what exists. Return a descriptor open for writing."""
        parent = self.directory(parts[:-1])
        try:
            return os.open(parts[-1], _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            self.make_room(parts)
            return os.open(parts[-1], _NEW, 0o600, dir_fd=self.directory(parts[:-1]))

    def new_directory(self, parts: Parts) -> tuple[bool, bool]:
        """Create a directory, or keep an existing one. Return whether it is new, and whether it replaces a file."""
        parent = self.directory(parts[:-1])
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            kept = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(kept.st_mode):
                return False, False
            self.make_room(parts)
            os.mkdir(parts[-1], 0o700, dir_fd=self.directory(parts[:-1]))
            return True, True
        return True, False

    def new_symlink(self, parts: Parts, content: bytes) -> None:
        """Create a symlink, replacing what exists. This class never follows it."""
        parent = self.directory(parts[:-1])
        try:
            os.symlink(content, parts[-1], dir_fd=parent)
        except FileExistsError:
            self.make_room(parts)
            os.symlink(content, parts[-1], dir_fd=self.directory(parts[:-1]))

    def new_node(self, parts: Parts, mode: int, device: int) -> None:
        """Create a device node or FIFO, replacing what exists."""
        parent = self.directory(parts[:-1])
        try:
            os.mknod(parts[-1], mode, device, dir_fd=parent)
        except FileExistsError:
            self.make_room(parts)
            os.mknod(parts[-1], mode, device, dir_fd=self.directory(parts[:-1]))

    def new_hardlink(self, parts: Parts, target: Parts) -> None:
        """Create a hard link to a file of this tree.

        Raises:
            NotInLayerError: the target does not exist.
            ImageError: the target is a directory, or its path leads through a symlink.
        """
        goal = b"/".join(target)
        if parts == target:
            raise ImageError(f"layer: {shown(b'/'.join(parts))} is a hard link to itself")
        try:
            source = os.dup(self.directory(target[:-1], make=False))
        except FileNotFoundError as error:
            raise self.not_in_layer(parts, goal) from error
        try:
            self._link(parts, target[-1], goal, source)
        finally:
            os.close(source)

    def new_foreign_hardlink(self, parts: Parts, path: bytes, goal: bytes) -> None:
        """Create a hard link to a file of a layer below. The file must never be written to afterwards.

        Args:
            parts: the new name.
            path: the path of the file on the host.
            goal: the name of the target in the archive.

        Raises:
            ImageError: it is a directory.
        """
        above, _, name = path.rpartition(b"/")
        with reached(above) as (at, last):
            source = os.open(last, _DIRECTORY, dir_fd=at)
        try:
            self._link(parts, name, goal, source)
        finally:
            os.close(source)

    def not_in_layer(self, parts: Parts, goal: bytes) -> NotInLayerError:
        """Return the error for a link whose target does not exist."""
        return NotInLayerError(f"layer: {shown(b'/'.join(parts))} links to {shown(goal)}, which does not exist")

    def _link(self, parts: Parts, target: bytes, goal: bytes, source: int) -> None:
        for _ in range(2):
            parent = self.directory(parts[:-1])
            try:
                os.link(target, parts[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                if self._same(source, target, parent, parts[-1]):
                    return
                self.make_room(parts)
            except FileNotFoundError as error:
                raise self.not_in_layer(parts, goal) from error
            except PermissionError as error:
                raise ImageError(f"layer: {shown(b'/'.join(parts))} can't be a hard link to {shown(goal)}") from error
            else:
                return

    def _same(self, source: int, target: bytes, parent: int, name: bytes) -> bool:
        one = os.stat(target, dir_fd=source, follow_symlinks=False)
        other = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return os.path.samestat(one, other)

    def remove(self, parts: Parts) -> None:
        """Remove a file, or a directory with its content. It is not an error if it does not exist."""
        try:
            parent = self.directory(parts[:-1], make=False)
        except FileNotFoundError:
            return
        if not self._unlink_file(parent, parts):
            remove(parts[-1], self.directory(parts[:-1]))

    def names(self, parts: Parts) -> list[bytes]:
        """Return the names in a directory."""
        with os.scandir(self.directory(parts)) as found:
            return [os.fsencode(entry.name) for entry in found]

    def mode(self, parts: Parts) -> int | None:
        """Return type and permission bits of a file, or None if it does not exist. A symlink is not followed."""
        try:
            parent = self.directory(parts[:-1], make=False)
            return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None

    def link(self, parts: Parts) -> bytes:
        """Return the target of a symlink."""
        return os.readlink(parts[-1], dir_fd=self.directory(parts[:-1], make=False))
