"""Differences: make a layer from the changes of a container, and compare two images."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit.archive.compression import Plain
from containerkit.archive.stream import ForwardReader, read_entries
from containerkit.archive.tarwrite import TreeWriter, Writing
from containerkit.container.changes import Change, ChangeKind
from containerkit.image.layers.blob import LayerWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor, Manifest
    from containerkit.image.store import Lease, Store

__all__ = ["compare_images", "layer_from_directory"]

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


def layer_from_directory(
    store: Store, directory: int, lease: Lease, how: Writing, *, compression: str = "gzip", root: bool = False
) -> tuple[Descriptor, Digest] | None:
    """Make a layer from a directory: the upper directory of an overlay, or a complete root.

    The same content gives the same digest: names are sorted and owners are numbers. With ``how.epoch`` later times do
    not matter either.

    Args:
        store: the destination.
        directory: descriptor of the directory.
        lease: a claim that will cover the layer.
        how: the rules.
        compression: ``gzip``, ``zstd`` or ``none``.
        root: whether to add an entry for the directory itself.

    Returns:
        Descriptor and diff id, or None if the directory is empty.

    Raises:
        ImageError: a file changes while it is read.
        SetupError: the disk is full.

    Source: OCI image specification, layer.md.
    """
    with LayerWriter(store, lease, compression) as sink:
        writer = TreeWriter(sink, how)
        writer.add_tree(directory, root=root)
        if writer.count == 0:
            return None
        writer.close()
        return sink.commit()


class _Node(NamedTuple):
    """The properties by which two files are compared."""

    kind: str
    mode: int
    uid: int
    gid: int
    link: bytes
    device: tuple[int, int]
    content: bytes


_IMPLIED: Final = _Node("directory", 0o755, 0, 0, b"", (0, 0), b"")
"""A directory that a layer does not name, although the layer has files in it."""


def compare_images(store: Store, before: Manifest, after: Manifest) -> list[Change]:
    """Return the differences between the roots of two images, sorted by path.

    The layers are read as streams: nothing is unpacked.

    Args:
        store: the store that contains both.
        before: the manifest of the first image.
        after: the manifest of the second image.

    Raises:
        ImageError: a layer is missing or malformed.
    """
    old, new = _tree(store, before), _tree(store, after)
    found: list[Change] = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            kind: ChangeKind = "added" if path not in old else "deleted" if path not in new else "changed"
            found.append(Change("/" + os.fsdecode(path), kind))
    return found


def _tree(store: Store, manifest: Manifest) -> dict[bytes, _Node]:
    tree: dict[bytes, _Node] = {}
    config = store.config(manifest)
    for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
        _apply(store, layer, diff_id, tree)
    return tree


def _apply(store: Store, layer: Descriptor, diff_id: Digest, tree: dict[bytes, _Node]) -> None:
    made: dict[bytes, _Node] = {}
    gone: list[bytes] = []
    state = diff_id.hasher()
    with store.blobs.open(layer.digest) as file, Plain(file, limits=store.limits, threads=0) as stream:
        reader = ForwardReader(stream, state, store.limits, stream.compressed)
        for entry in read_entries(reader, store.limits):
            name = entry.parts[-1] if entry.parts else b""
            above = b"/".join(entry.parts[:-1])
            if name == _OPAQUE:
                gone.append(above + b"/")
            elif name.startswith(_WHITEOUT):
                hidden = (above + b"/" if above else b"") + name[len(_WHITEOUT) :]
                gone += [hidden, hidden + b"/"]
            elif entry.kind == "hardlink":
                target = b"/".join(part for part in entry.link.split(b"/") if part not in (b"", b"."))
                made[entry.path] = made.get(target) or tree[target]
            elif entry.parts:
                while above and above not in made and above not in tree:
                    made[above] = _IMPLIED
                    above = above.rpartition(b"/")[0]
                content = hashlib.sha256()
                stretches = entry.sparse if entry.sparse is not None else ((0, entry.size),)
                for offset, size in stretches if entry.kind == "file" else ():
                    content.update(b"%d:" % offset if entry.sparse is not None else b"")
                    for piece in entry.content(size):
                        content.update(piece)
                made[entry.path] = _Node(
                    entry.kind,
                    entry.mode,
                    entry.uid,
                    entry.gid,
                    entry.link,
                    entry.device,
                    content.digest() if entry.kind == "file" else b"",
                )
    diff_id.check(state, "layer, uncompressed")
    _forget(tree, gone)
    replaced = [path + b"/" for path, node in made.items() if node.kind != "directory" and path in tree]
    _forget(tree, replaced)
    tree.update(made)


def _forget(tree: dict[bytes, _Node], gone: list[bytes]) -> None:
    if not gone:
        return
    exact = {path for path in gone if not path.endswith(b"/")}
    below = {path[:-1] for path in gone if path.endswith(b"/")}
    for path in [path for path in tree if path in exact or any(above in below for above in _above(path))]:
        del tree[path]


def _above(path: bytes) -> Iterator[bytes]:
    yield b""
    at = path.find(b"/")
    while at >= 0:
        yield path[:at]
        at = path.find(b"/", at + 1)
