"""A layer in preparation: files are collected from anywhere, hashed by content, then written as one archive."""

from __future__ import annotations

import hashlib
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError
from containerkit.archive.attributes import CAPABILITY, is_kept
from containerkit.image.layers.blob import LayerWriter
from containerkit.archive.longpath import attribute, attributes, open_file, readlink
from containerkit.archive.tarwrite import Head, TreeWriter, Writing

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.image.digest import Digest
    from containerkit.archive.view import Found, Parts, View
    from containerkit.image.manifest import Descriptor
    from containerkit.image.store import Lease, Store

__all__ = ["Draft"]

_LETTERS: Final = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}  # fmt: skip
_PIECE: Final = 1 << 20


@attrs.define
class _Item:
    head: Head
    source: bytes = b""  # a path on the host
    content: bytes = b""
    brought: bool = True  # False: it exists only as the parent of something else


class Draft:
    """The files that a COPY, ADD or WORKDIR adds to a root.

    Args:
        view: the root to which they are added.
        owner: the owner of the added files, or None to keep the owners.
        mode: converts the permission bits of a file, given whether it is a directory. None keeps them.
    """

    def __init__(
        self, view: View, owner: tuple[int, int] | None = (0, 0), mode: Callable[[int, bool], int] | None = None
    ) -> None:
        self.view = view
        self.owner = owner
        self.mode = mode
        self.items: dict[Parts, _Item] = {}
        self.newest_ns = 0

    def is_directory(self, parts: Parts) -> bool:
        """Return whether a path is a directory, in the draft or below it."""
        item = self.items.get(parts)
        if item is not None:
            return item.head.kind == b"5"
        found = self.view.find(parts)
        return found is not None and found.is_directory

    def add_directory(self, parts: Parts) -> None:
        """Add a directory and missing parents. Existing ones are not changed."""
        known = len(parts)
        while known and parts[:known] not in self.items:
            known -= 1  # if a path is in the draft, its parents are too
        for depth in range(max(known, 1), len(parts) + 1):
            self._add_parents(parts[:depth])

    def _add_parents(self, parts: Parts) -> None:
        if parts in self.items:
            if self.items[parts].head.kind != b"5":
                raise SpecError(f"/{os.fsdecode(b'/'.join(parts))} is a file, so nothing can be below it")
            return
        found = self.view.find(parts)
        if found is not None and not found.is_directory:
            raise SpecError(f"/{os.fsdecode(b'/'.join(parts))} is a file, so nothing can be below it")
        if found is not None:
            head = self._head(parts, found, keep=True)
            self.items[parts] = _Item(head, brought=False)
            return
        uid, gid = self.owner or (0, 0)
        self.items[parts] = _Item(Head(name=b"/".join(parts), kind=b"5", mode=0o755, uid=uid, gid=gid, mtime_ns=-1))

    def add_file(self, parts: Parts, found: Found) -> None:
        """Add one file of the host: a regular file, symlink, device node, or directory without its content."""
        kind = stat.S_IFMT(found.status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        self.add_directory(parts[:-1])
        if self.is_directory(parts) != (kind == stat.S_IFDIR) and (parts in self.items or self.view.find(parts)):
            what = "a directory" if self.is_directory(parts) else "a file"
            raise SpecError(f"/{os.fsdecode(b'/'.join(parts))} already exists as {what}, and its type can't change")
        head = self._head(parts, found, keep=False)
        self.newest_ns = max(self.newest_ns, found.status.st_mtime_ns)
        if kind == stat.S_IFLNK:
            head.link, head.mode = readlink(found.path), 0o777
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            head.device = found.status.st_rdev
        self.items[parts] = _Item(head, source=found.path if kind == stat.S_IFREG else b"")

    def add_content(self, parts: Parts, content: bytes, *, mode: int = 0o644, mtime_ns: int = -1) -> None:
        """Add a regular file with the given content."""
        self.add_directory(parts[:-1])
        uid, gid = self.owner or (0, 0)
        mode = mode if self.mode is None else self.mode(mode, False)
        head = Head(name=b"/".join(parts), kind=b"0", mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns)
        self.items[parts] = _Item(head, content=content)

    def add_head(self, parts: Parts, head: Head, source: bytes) -> None:
        """Add a member of an archive. The content of a regular file is in a file on the host."""
        self.add_directory(parts[:-1])
        head.name = b"/".join(parts)
        if self.owner != (0, 0) and self.owner is not None:
            head.uid, head.gid = self.owner
        self.items[parts] = _Item(head, source=source)

    def _head(self, parts: Parts, found: Found, *, keep: bool) -> Head:
        status = found.status
        uid, gid = (status.st_uid, status.st_gid) if keep or self.owner is None else self.owner
        mode = stat.S_IMODE(status.st_mode)
        if not keep and self.mode is not None:
            mode = self.mode(mode, found.is_directory)
        head = Head(
            name=b"/".join(parts), kind=_LETTERS[stat.S_IFMT(status.st_mode)], mode=mode, uid=uid, gid=gid,
            mtime_ns=status.st_mtime_ns,
        )  # fmt: skip
        if keep or self.owner is None:
            head.attributes = _attributes(found.path)
        return head

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been added."""
        return not any(item.brought for item in self.items.values())

    def digest(self) -> str:
        """Return a hash of everything that has been added, without the times.

        Parent directories are left out, because they follow from the root to which this is added.
        """
        state = hashlib.sha256()
        for parts, item in sorted(self.items.items()):
            if not item.brought:
                continue
            head = item.head
            facts = (
                parts,
                head.kind,
                head.mode,
                head.uid,
                head.gid,
                head.link,
                head.device,
                sorted(head.attributes.items()),
            )
            state.update(repr(facts).encode())
            content = hashlib.sha256(item.content)
            if item.source:
                content = hashlib.sha256()
                with open_file(item.source) as file:
                    while piece := file.read(_PIECE):
                        content.update(piece)
            state.update(content.digest())
        return state.hexdigest()

    def write(self, store: Store, lease: Lease, epoch: int | None) -> tuple[Descriptor, Digest]:
        """Write the layer to a store.

        Args:
            store: the destination.
            lease: a claim that will cover it.
            epoch: in seconds; later times are set to it.
        """
        stamp = self.newest_ns if epoch is None else epoch * 1_000_000_000
        with LayerWriter(store, lease) as sink:
            writer = TreeWriter(sink, Writing(epoch=epoch))
            for _, item in sorted(self.items.items()):
                head = attrs.evolve(item.head)
                head.mtime_ns = stamp if head.mtime_ns < 0 else head.mtime_ns
                if epoch is not None:
                    head.mtime_ns = min(head.mtime_ns, epoch * 1_000_000_000)
                if head.kind == b"5":
                    head.name += b"/"
                if item.source:
                    writer.put_file(head, item.source)
                else:
                    writer.put(head, item.content)
            writer.close()
            return sink.commit()


def _attributes(path: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(OSError):
        for name in sorted(attributes(path)):
            if is_kept(name) or name == CAPABILITY:
                found[name] = attribute(path, name)
    return found
