"""Differences: a layer out of what a container has changed, and what differs between two images."""

from __future__ import annotations

import hashlib
import os
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit.changes import Change
from containerkit.image.layers.blob import LayerWriter
from containerkit.image.layers.compression import decompress
from containerkit.image.layers.limits import DEFAULT_LIMITS
from containerkit.image.layers.stream import ForwardReader, read_entries
from containerkit.image.layers.tarwrite import TreeWriter, Writing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor, Manifest
    from containerkit.image.store import Lease, Store

__all__ = ["compare_images", "layer_from_folder"]

_WHITEOUT: Final = b".wh."
_OPAQUE: Final = b".wh..wh..opq"


def layer_from_folder(
    store: Store, folder: int, lease: Lease, how: Writing, *, compression: str = "gzip", root: bool = False
) -> tuple[Descriptor, Digest] | None:
    """Make a layer of a folder: the upper folder of an overlay, or a whole root.

    The same content gives the same digest: names are sorted and owners are numbers; with ``how.epoch`` times do not
    matter either.

    Args:
        store: where to.
        folder: descriptor of the folder.
        lease: a claim that will cover the layer.
        how: the rules.
        compression: ``gzip``, ``zstd`` or ``none``.
        root: with an entry for the folder itself.

    Returns:
        Descriptor and diff id, or None when nothing is in the folder.

    Raises:
        ImageError: a file changes while it is read.
        SetupError: the disk is full.

    Source: OCI image specification, layer.md.
    """
    with LayerWriter(store, lease, compression) as sink:
        writer = TreeWriter(sink, how)
        writer.add_tree(folder, root=root)
        if writer.count == 0:
            return None
        writer.close()
        return sink.commit()


class _Node(NamedTuple):
    """What two files must share to be the same."""

    kind: str
    mode: int
    uid: int
    gid: int
    link: bytes
    device: tuple[int, int]
    content: bytes


_IMPLIED: Final = _Node("directory", 0o755, 0, 0, b"", (0, 0), b"")
"""A folder that a layer does not name, but has files in."""


def compare_images(store: Store, before: Manifest, after: Manifest) -> list[Change]:
    """Return what differs between the roots of two images, in the order of the paths.

    The layers are read as streams: nothing is unpacked.

    Args:
        store: where both are.
        before: the manifest of the one.
        after: the manifest of the other.

    Raises:
        ImageError: a layer is missing or malformed.
    """
    old, new = _tree(store, before), _tree(store, after)
    found: list[Change] = []
    for path in sorted(old.keys() | new.keys()):
        if old.get(path) != new.get(path):
            kind = "added" if path not in old else "deleted" if path not in new else "changed"
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
    with store.blobs.open(layer.digest) as file, closing(decompress(file, threads=0)) as stream:
        reader = ForwardReader(stream, state, DEFAULT_LIMITS, lambda: layer.size)
        for entry in read_entries(reader):
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
                for depth in range(1, len(entry.parts)):
                    parent = b"/".join(entry.parts[:depth])
                    if parent not in made and parent not in tree:
                        made[parent] = _IMPLIED
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
