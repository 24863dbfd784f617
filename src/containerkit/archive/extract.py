"""Extract a layer to one directory. If one member of the archive is refused, so is the whole layer."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import E2BIG, EFBIG, EINVAL, ELOOP, ENAMETOOLONG, ENOSPC, ENOTSUP, EOVERFLOW, EPERM, ERANGE
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.archive.attributes import (
    CAPABILITY,
    IMPLIED,
    attributes_of,
    is_kept,
    mark_opaque,
    mark_whiteouts,
)
from containerkit.archive.limits import DEFAULT_LIMITS, STANDARD_DEVICES, UnpackLimits
from containerkit.archive.stream import ForwardReader, read_entries, shown
from containerkit.archive.tree import Tree
from containerkit.archive.union import Union, covers
from containerkit.errors import ImageError, SetupError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.archive.links import Parts
    from containerkit.archive.stream import Entry, Source
    from containerkit.archive.view import View

__all__ = ["OWNER_OVERRIDE", "Extracted", "Extraction", "extract"]

OWNER_OVERRIDE: Final = "user.fuseoverlayfs.override_stat"
"""The attribute that records owners in a store that can't change them. fuse-overlayfs uses it too."""

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"
_MARKER: Final = b".wh..wh."  # aufs's own files, which other filesystems ignore
_NODES: Final = {"character": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}
_MOST_NOTES: Final = 100


def _one_of(*words: str) -> Callable[[object, attrs.Attribute[str], str], None]:
    def check(_: object, attribute: attrs.Attribute[str], value: str) -> None:
        if value not in words:
            raise SpecError(f"{attribute.name} must be one of {', '.join(words)}, not {value!r}")

    return check


def _marks(_: object, attribute: attrs.Attribute[tuple[str, ...]], value: tuple[str, ...]) -> None:
    if not value or set(value) - {"trusted.", "user."}:
        raise SpecError(f"{attribute.name} must be some of 'trusted.' and 'user.', not {value!r}")


@attrs.frozen(kw_only=True)
class Extraction:
    """How a layer is extracted.

    Args:
        whiteouts: ``overlay`` stores deletions as marks for overlayfs. ``apply`` deletes the files from the directory.
        owners: ``keep`` sets the owners in the archive. ``caller`` leaves the files to the caller and records the owner
            in an attribute; ``keep`` does this for owners that are not mapped in the user namespace.
        devices: ``standard`` creates only the nodes that every system has in ``/dev``, ``all`` all, ``none`` none.
        marks: the name spaces of the attributes for overlayfs's marks: ``trusted.`` for mounts by the host's root,
            ``user.`` for mounts in a user namespace.
        limits: bounds on the unpacked content.

    Raises:
        SpecError: a value is unknown.

    Source: OCI image specification, layer.md; Documentation/filesystems/overlayfs.rst.
    """

    whiteouts: str = attrs.field(default="overlay", validator=_one_of("overlay", "apply"))
    owners: str = attrs.field(default="keep", validator=_one_of("keep", "caller"))
    devices: str = attrs.field(default="standard", validator=_one_of("standard", "all", "none"))
    marks: tuple[str, ...] = attrs.field(default=("trusted.", "user."), validator=_marks)
    limits: UnpackLimits = DEFAULT_LIMITS

    @classmethod
    def for_user(cls, **changes: Any) -> Extraction:
        """Return the settings for the current user: root keeps owners, others can't.

        Root of a user namespace keeps owners that are mapped, but creates no devices and no marks that only root of the
        machine can set.
        """
        if os.geteuid() != 0:
            changes = {"owners": "caller", "devices": "none", "marks": ("user.",)} | changes
        elif not _is_root_of_all():
            changes = {"devices": "none", "marks": ("user.",)} | changes
        return cls(**changes)


def _is_root_of_all() -> bool:
    """Return whether this is the initial user namespace. Source: user_namespaces(7), "uid_map"."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() == ["0", "0", str(2**32 - 1)]


@attrs.frozen(kw_only=True)
class Extracted:
    """The result of an extraction.

    Attributes:
        entries: how many members were created.
        bytes: the size of the uncompressed archive.
        implied: how many directories were created that the archive does not name.
        unnamed: the paths of directories that were created before the archive named them. If a layer below has a
            symlink at such a path, the content of the directory belongs to the target of the symlink.
        skipped: what was left out on purpose, one line each (at most 100): devices that are not allowed, and attributes
            that control the host or that its filesystem does not support.
    """

    entries: int
    bytes: int
    implied: int
    unnamed: tuple[Parts, ...]
    skipped: tuple[str, ...]


def extract(
    stream: Source,
    root: int,
    state: Any,
    how: Extraction,
    compressed: Callable[[], int] = lambda: 0,
    below: View | None = None,
) -> Extracted:
    """Extract an uncompressed archive to a directory.

    Args:
        stream: the archive. It is read to its end.
        root: descriptor of the directory.
        state: a hash object that receives all bytes of the archive.
        how: the rules.
        compressed: returns how many compressed bytes have been read so far, for the bound on the ratio.
        below: the layers below this one. Their symlinks are followed, and hard links to their files may be created.

    Raises:
        NotInLayerError: the archive names a file or directory that is neither in it nor in a layer below.
        ImageError: the archive is malformed, has a path out of its root, or exceeds a bound. The files made until then
            stay in the directory, which the caller must delete.
        SetupError: the disk is full, or the kernel refuses something else.

    Source: OCI image specification, layer.md.
    """
    reader = ForwardReader(stream, state, how.limits, compressed)
    with Tree(root) as tree:
        work = _Work(tree, how, below)
        for entry in read_entries(reader, how.limits):
            try:
                work.add(entry)
            except OSError as error:
                raise _refused(error, entry.path) from error
        try:
            work.finish()
        except OSError as error:
            raise _refused(error, b".") from error
    unnamed = tuple(sorted(tree.implied))
    return Extracted(
        entries=work.count, bytes=reader.tell(), implied=work.implied, unnamed=unnamed, skipped=tuple(work.skipped)
    )


def _refused(error: OSError, path: bytes) -> Exception:
    if isinstance(error, SetupError):
        return error
    hints = {28: "the disk is full", 122: "the quota is exhausted", 1: "this user may not create such a file"}
    number = error.errno or 5
    if number in (ENAMETOOLONG, ELOOP, EFBIG, EINVAL, EOVERFLOW):  # the archive asks for something impossible
        return ImageError(f"layer: {shown(path)}: {os.strerror(number)}")
    return SetupError("extract", number, os.fsdecode(path), hints.get(number, ""))


class _Work:
    """One extraction."""

    def __init__(self, tree: Tree, how: Extraction, below: View | None) -> None:
        self.tree = tree
        self.union = Union(tree, below)
        self.how = how
        self.count = 0
        self.implied = 0
        self.skipped: list[str] = []
        self._keep = how.owners == "keep"
        self._own = (os.geteuid(), os.getegid())
        self._directories: dict[Parts, Entry] = {}
        self._whiteouts = self.union.whiteouts
        self._apply = how.whiteouts == "apply"
        self._made: set[Parts] = set()  # only for "apply": a layer does not delete its own files
        self._makers: dict[str, Callable[[Entry], None]] = {
            "file": self._file,
            "directory": self._directory,
            "symlink": self._symlink,
            "hardlink": self._hardlink,
        }

    def add(self, entry: Entry) -> None:
        entry.parts = parts = (*self.union.real(entry.parts[:-1]), *entry.parts[-1:])
        if any(part.startswith(_WHITEOUT) for part in parts):
            self._whiteout(parts)
            return
        if not parts:
            if entry.kind != "directory":
                raise ImageError("layer: a member with the path of the root is not a directory")
            self._directories[()] = entry
            return
        if self._whiteouts:
            self._uncover_parents(parts[:-1])
            if parts in self._whiteouts:
                self._uncover(entry)
        self._makers.get(entry.kind, self._node)(entry)
        self.count += 1
        if self._apply:
            while parts and parts not in self._made:
                self._made.add(parts)
                parts = parts[:-1]

    def note(self, text: str) -> None:
        if len(self.skipped) < _MOST_NOTES:
            self.skipped.append(text)

    # --- types of members ---------------------------------------------------------------------------------------------

    def _file(self, entry: Entry) -> None:
        self._replace_directory(entry.parts)
        file = self.tree.new_file(entry.parts)
        try:
            if entry.sparse is None:
                for piece in entry.content(entry.size):
                    _write(file, piece)
            else:
                self._sparse(file, entry)
            kept = self._give(file, entry)
            if entry.headers or not kept:
                self._attributes(file, entry, kept=kept)
            os.fchmod(file, entry.mode)
            os.utime(file, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(file)

    def _sparse(self, file: int, entry: Entry) -> None:
        for offset, size in entry.sparse or ():
            os.lseek(file, offset, os.SEEK_SET)
            for piece in entry.content(size):
                _write(file, piece)
        os.ftruncate(file, entry.size)

    def _directory(self, entry: Entry) -> None:
        new, replaces = self.tree.new_directory(entry.parts)
        # If the layer has first a file and then a directory here, the file has already hidden the layers below.
        if new and (entry.parts in self._whiteouts or (replaces and not self._apply)):
            self._mark_opaque(entry.parts)
            self._whiteouts.discard(entry.parts)
        self._directories[entry.parts] = entry

    def _symlink(self, entry: Entry) -> None:
        if not entry.link or b"\0" in entry.link:
            raise ImageError(f"layer: {shown(entry.path)}: the target of the symlink is empty")
        self._replace_directory(entry.parts)
        self.tree.new_symlink(entry.parts, entry.link)
        self._by_name(entry, mode=False)

    def _hardlink(self, entry: Entry) -> None:
        from containerkit.archive.stream import split_path

        target = split_path(entry.link, "link")
        if not target or any(part.startswith(_WHITEOUT) for part in target):
            raise ImageError(f"layer: {shown(entry.path)} links to {shown(entry.link)}, which does not exist")
        target = (*self.union.real(target[:-1]), target[-1])
        if self.union.is_deleted(target):
            raise ImageError(f"layer: {shown(entry.path)} links to {shown(entry.link)}, which the layer deletes")
        if entry.parts != target:
            self._replace_directory(entry.parts)
        found = self.union.find_below(target) if self.tree.mode(target) is None else None
        if found is None:
            self.tree.new_hardlink(entry.parts, target)
        else:
            self.tree.new_foreign_hardlink(entry.parts, found.path, entry.link)

    def _node(self, entry: Entry) -> None:
        device = 0
        if entry.kind != "fifo":
            allowed = self.how.devices == "all" or (
                self.how.devices == "standard" and entry.kind == "character" and entry.device in STANDARD_DEVICES
            )
            if not allowed or entry.device == (0, 0):  # overlayfs would treat 0:0 as a deletion
                self.note(f"{shown(entry.path)}: {entry.kind} device {entry.device[0]}:{entry.device[1]}")
                return
            device = os.makedev(*entry.device)
        self._replace_directory(entry.parts)
        self.tree.new_node(entry.parts, _NODES[entry.kind] | 0o600, device)
        self._by_name(entry, mode=True)

    def _by_name(self, entry: Entry, *, mode: bool) -> None:
        """Set owner, mode, attributes and time of a file that can't be opened, without following a symlink."""
        parent, name = self.tree.directory(entry.parts[:-1]), entry.parts[-1]
        kept = self._give(name, entry, parent)
        if entry.headers:
            self._attributes(f"/proc/self/fd/{parent}/".encode() + name, entry, kept=kept)
        if mode:
            os.chmod(name, entry.mode, dir_fd=parent)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _give(self, file: int | bytes, entry: Entry, parent: int | None = None) -> bool:
        """Set the owner from the archive. Return whether the file has that owner."""
        if not self._keep:
            return False
        if parent is None and (entry.uid, entry.gid) == self._own and not self._apply:
            return True  # the owner does not change
        try:
            os.chown(file, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=parent is None)
        except OSError as error:
            if error.errno != EINVAL:  # EINVAL: the user namespace does not map this id
                raise
            return False
        return True

    def _attributes(self, file: int | bytes, entry: Entry, *, kept: bool) -> None:
        links = {} if isinstance(file, int) else {"follow_symlinks": False}
        for name, value in attributes_of(entry.headers).items():
            if not is_kept(name):
                self.note(f"{shown(entry.path)}: attribute {name}")
                continue
            self._set_attribute(file, name, value, links, entry)
        if not kept and isinstance(file, int) and (entry.uid or entry.gid):
            owner = f"{entry.uid}:{entry.gid}:{entry.mode:o}".encode()
            self._set_attribute(file, OWNER_OVERRIDE, owner, links, entry)

    def _set_attribute(self, file: int | bytes, name: str, value: bytes, links: dict[str, bool], entry: Entry) -> None:
        try:
            os.setxattr(file, name, value, **links)
        except OSError as error:
            lost = error.errno == ENOTSUP or (error.errno == EPERM and (name != CAPABILITY or not self._keep))
            if name.startswith("system.") and error.errno == EINVAL and not _is_root_of_all():
                lost = True  # it may name ids that this user namespace does not map
            if name.startswith("user.") and error.errno in (ENOSPC, E2BIG, ERANGE):
                lost = True  # some filesystems do not support large ones
            if not lost:
                if name.startswith("system.") or name == CAPABILITY:
                    raise ImageError(f"layer: {shown(entry.path)}: {name} is malformed") from error
                raise
            self.note(f"{shown(entry.path)}: attribute {name} ({os.strerror(error.errno or 0)})")

    # --- deletions ----------------------------------------------------------------------------------------------------

    def _whiteout(self, parts: Parts) -> None:
        if any(part.startswith(_WHITEOUT) for part in parts[:-1]):
            if any(part.startswith(_MARKER) for part in parts[:-1]):
                return  # inside one of aufs's own directories
            raise ImageError(f"layer: {shown(b'/'.join(parts))} is below a path that the layer deletes")
        name = parts[-1]
        if name == _OPAQUE:
            self._opaque(parts[:-1])
            return
        if name.startswith(_MARKER):
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ImageError(f"layer: {shown(b'/'.join(parts))} deletes a file without a name")
        self._delete((*parts[:-1], hidden))

    def _delete(self, parts: Parts) -> None:
        if self._apply:
            if parts not in self._made:
                self.tree.remove(parts)
            else:
                self._clear(parts)
            return
        present = self.tree.mode(parts)
        if present is None:
            self.tree.new_node(parts, stat.S_IFCHR, 0)
            self._whiteouts.add(parts)
        elif stat.S_ISDIR(present):
            self._mark_opaque(parts)  # the layer deletes the old directory and has a new one

    def _opaque(self, parts: Parts) -> None:
        if self._apply:
            self._clear(parts)
            return
        self._uncover_parents(parts)
        self._mark_opaque(parts)  # overlayfs ignores the mark on the root of a layer: see layer_paths

    def _clear(self, parts: Parts) -> None:
        """Delete the content of a directory, except what this layer has added."""
        waiting = [parts]
        while waiting:
            at = waiting.pop()
            mode = self.tree.mode(at) if at else stat.S_IFDIR
            if mode is None or not stat.S_ISDIR(mode):
                continue
            for name in self.tree.names(at):
                if (*at, name) in self._made:
                    waiting.append((*at, name))
                else:
                    self.tree.remove((*at, name))

    def _uncover_parents(self, parts: Parts) -> None:
        """Make sure that a directory exists and is not covered by a whiteout of this layer."""
        if not covers(self._whiteouts, parts):
            return
        for depth in range(1, len(parts) + 1):
            if parts[:depth] in self._whiteouts:
                self.tree.make_room(parts[:depth])
                self.tree.directory(parts[:depth])
                self.tree.implied.discard(parts[:depth])  # it is independent of the deleted one
                self._mark_opaque(parts[:depth])
                self._whiteouts.discard(parts[:depth])

    def _mark_opaque(self, parts: Parts) -> None:
        self.union.opaque.add(parts)
        directory = self.tree.directory(parts)
        mark_opaque(directory, self.how.marks)

    def _uncover(self, entry: Entry) -> None:
        """Remove the whiteout in the place of a new file of the same layer."""
        self.tree.make_room(entry.parts)
        if entry.kind != "directory":
            self._whiteouts.discard(entry.parts)

    def _replace_directory(self, parts: Parts) -> None:
        """In a tree of lower layers, let a file replace a directory and its content."""
        if self._apply and parts not in self._made:
            present = self.tree.mode(parts)
            if present is not None and stat.S_ISDIR(present):
                self.tree.remove(parts)
        if parts in self._directories:
            del self._directories[parts]

    # --- completion ---------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Set owner, mode and time of directories, the deepest first, because nothing is written to them any more."""
        for parts in sorted(self._directories, key=len, reverse=True):
            entry = self._directories[parts]
            directory = self.tree.directory(parts)
            kept = self._give(directory, entry)
            if entry.headers or not kept:
                self._attributes(directory, entry, kept=kept)
            os.fchmod(directory, entry.mode if self._keep else entry.mode | 0o700)
            os.utime(directory, ns=(entry.mtime_ns, entry.mtime_ns))
        for parts in {whiteout[:-1] for whiteout in self._whiteouts if len(whiteout) > 1}:
            mark_whiteouts(self.tree.directory(parts), self.how.marks)
        self.implied = 0
        for parts in () if self._apply else self.tree.implied - self._directories.keys():
            with suppress(OSError):  # it was removed, or the filesystem has no such attributes
                os.setxattr(self.tree.directory(parts, make=False), IMPLIED, b"y")
                self.implied += 1


def _write(file: int, piece: memoryview) -> None:
    count = os.write(file, piece)
    while count < len(piece):
        piece = piece[count:]
        count = os.write(file, piece)
