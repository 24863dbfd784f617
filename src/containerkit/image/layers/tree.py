"""Writing a tree of files that a stranger describes, without ever leaving its root.

Each path is walked from the root's descriptor by openat2(2) without following any link, and each file is made by its
last component in the folder reached so: no path as a whole is ever handed to the kernel.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import OrderedDict
from contextlib import suppress
from errno import EEXIST, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError
from containerkit.image.layers.kernel import open_beneath
from containerkit.image.layers.stream import shown

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from containerkit.image.layers.links import Parts

__all__ = ["LacksError", "Tree"]

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN: Final = 32


class LacksError(ImageError):
    """A layer names a file or folder that it does not hold itself: one below it may."""


class Tree:
    """A folder to write into.

    It owns a small cache of descriptors of the folders written to last; :meth:`close` lets go of them. The root's
    descriptor stays the caller's.

    Args:
        root: descriptor of the folder.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self.implied: set[Parts] = set()
        """Folders that were made since something lies in them, before the archive has named them, if it ever does."""
        self._open: OrderedDict[Parts, int] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Tree fd={self.root}: {len(self._open)} folders open>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the cached descriptors. May be called twice."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def folder(self, parts: Parts, *, make: bool = True) -> int:
        """Return a descriptor of a folder; it stays this object's and is good until the next call.

        Args:
            parts: the components of its path.
            make: make it, and those above it, where they are missing.

        Raises:
            ImageError: a component is a link or no folder.
            FileNotFoundError: it is missing, and ``make`` is false.

        Source: openat2(2).
        """
        if not parts:
            return self.root
        found = self._open.get(parts)
        if found is not None:
            self._open.move_to_end(parts)
            return found
        try:
            found = open_beneath(self.root, b"/".join(parts), _FOLDER)
        except OSError as error:
            if error.errno != ENOENT or not make:
                raise self._explained(error, parts) from error
            found = self._make_folders(parts)
        self._open[parts] = found
        if len(self._open) > _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return found

    def _make_folders(self, parts: Parts) -> int:
        """Make what is missing on the way, owned by who runs this and with mode 755."""
        at = os.dup(self.root)
        for depth, component in enumerate(parts, start=1):
            try:
                with suppress(FileExistsError):
                    os.mkdir(component, 0o755, dir_fd=at)
                    self.implied.add(parts[:depth])
                below = os.open(component, _FOLDER, dir_fd=at)
            except OSError as error:
                raise self._explained(error, parts) from error
            finally:
                os.close(at)
            at = below
        return at

    def _explained(self, error: OSError, parts: Parts) -> Exception:
        if error.errno in (ELOOP, ENOTDIR):
            return ImageError(f"layer: the path {shown(b'/'.join(parts))} leads through a link or a file")
        return error

    def forget(self, parts: Parts) -> None:
        """Close cached descriptors of a folder that is about to go, and of all below it."""
        for known in [known for known in self._open if known[: len(parts)] == parts]:
            os.close(self._open.pop(known))

    def clear_way(self, parts: Parts) -> None:
        """Remove what stands where a new file shall be, as GNU tar does: a folder only when it is empty.

        Raises:
            ImageError: a folder with something in it stands there.
        """
        parent = self.folder(parts[:-1])
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            self.forget(parts)
            try:
                os.rmdir(parts[-1], dir_fd=self.folder(parts[:-1]))
            except OSError as error:
                if error.errno in (ENOTEMPTY, EEXIST):
                    raise ImageError(
                        f"layer: {shown(b'/'.join(parts))} is to replace a folder that is not empty"
                    ) from error
                raise

    def new_file(self, parts: Parts) -> int:
        """Make an empty file, in the place of what is there, and return a descriptor open for writing."""
        parent = self.folder(parts[:-1])
        try:
            return os.open(parts[-1], _NEW, 0o600, dir_fd=parent)
        except FileExistsError:
            self.clear_way(parts)
            return os.open(parts[-1], _NEW, 0o600, dir_fd=self.folder(parts[:-1]))

    def new_folder(self, parts: Parts) -> bool:
        """Make a folder, or keep the one that is there; return whether it is new."""
        parent = self.folder(parts[:-1])
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            kept = os.stat(parts[-1], dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(kept.st_mode):
                return False
            self.clear_way(parts)
            os.mkdir(parts[-1], 0o700, dir_fd=self.folder(parts[:-1]))
        return True

    def new_symlink(self, parts: Parts, content: bytes) -> None:
        """Make a symbolic link, in the place of what is there. Nothing here ever follows it."""
        parent = self.folder(parts[:-1])
        try:
            os.symlink(content, parts[-1], dir_fd=parent)
        except FileExistsError:
            self.clear_way(parts)
            os.symlink(content, parts[-1], dir_fd=self.folder(parts[:-1]))

    def new_node(self, parts: Parts, mode: int, device: int) -> None:
        """Make a device node or fifo, in the place of what is there."""
        parent = self.folder(parts[:-1])
        try:
            os.mknod(parts[-1], mode, device, dir_fd=parent)
        except FileExistsError:
            self.clear_way(parts)
            os.mknod(parts[-1], mode, device, dir_fd=self.folder(parts[:-1]))

    def new_hardlink(self, parts: Parts, target: Parts) -> None:
        """Give another name to a file of this tree.

        Raises:
            LacksError: the target is missing.
            ImageError: the target is a folder, or lies behind a link.
        """
        goal = b"/".join(target)
        if parts == target:
            raise ImageError(f"layer: {shown(b'/'.join(parts))} is a hard link to itself")
        try:
            source = os.dup(self.folder(target[:-1], make=False))
        except FileNotFoundError as error:
            raise self.lacks(parts, goal) from error
        try:
            self._link(parts, target[-1], goal, source)
        finally:
            os.close(source)

    def new_foreign_hardlink(self, parts: Parts, path: bytes, goal: bytes) -> None:
        """Give another name to a file of a layer below, which from then on must never be written to.

        Args:
            parts: the new name.
            path: where the file is outside.
            goal: what the archive calls it.

        Raises:
            ImageError: it is a folder.
        """
        above, _, name = path.rpartition(b"/")
        source = os.open(above, _FOLDER)
        try:
            self._link(parts, name, goal, source)
        finally:
            os.close(source)

    def lacks(self, parts: Parts, goal: bytes) -> LacksError:
        """Return the error that says that a link's target is missing."""
        return LacksError(f"layer: {shown(b'/'.join(parts))} links to {shown(goal)}, which is not there")

    def _link(self, parts: Parts, target: bytes, goal: bytes, source: int) -> None:
        for _ in range(2):
            parent = self.folder(parts[:-1])
            try:
                os.link(target, parts[-1], src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                if self._same(source, target, parent, parts[-1]):
                    return
                self.clear_way(parts)
            except FileNotFoundError as error:
                raise self.lacks(parts, goal) from error
            except PermissionError as error:
                raise ImageError(f"layer: {shown(b'/'.join(parts))} can't be a hard link to {shown(goal)}") from error
            else:
                return

    def _same(self, source: int, target: bytes, parent: int, name: bytes) -> bool:
        one = os.stat(target, dir_fd=source, follow_symlinks=False)
        other = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return os.path.samestat(one, other)

    def remove(self, parts: Parts) -> None:
        """Remove a file, or a folder with all that is in it; what is not there is fine."""
        try:
            parent = self.folder(parts[:-1], make=False)
        except FileNotFoundError:
            return
        try:
            os.unlink(parts[-1], dir_fd=parent)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):
            self.forget(parts)
            shutil.rmtree(parts[-1], dir_fd=self.folder(parts[:-1]))

    def names(self, parts: Parts) -> list[bytes]:
        """Return what is in a folder."""
        with os.scandir(self.folder(parts)) as found:
            return [os.fsencode(entry.name) for entry in found]

    def mode(self, parts: Parts) -> int | None:
        """Return type and permission bits of a file, not following a link; None when it is not there."""
        try:
            parent = self.folder(parts[:-1], make=False)
            return os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return None

    def link(self, parts: Parts) -> bytes:
        """Return what a symbolic link points to."""
        return os.readlink(parts[-1], dir_fd=self.folder(parts[:-1], make=False))
