"""The build cache: what a step made, by what went into it."""

from __future__ import annotations

import hashlib
import json
from secrets import token_hex
from typing import TYPE_CHECKING

import attrs

from containerkit.errors import ContainerError
from containerkit.image.document import Document
from containerkit.image.manifest import Descriptor
from containerkit.image.store.locks import locked, remove_tree, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.image.digest import Digest
    from containerkit.image.store import Lease, Store

__all__ = ["Cache", "Made", "cached_digests", "forget_builds", "key_of"]


def key_of(*facts: str) -> str:
    """Return the key of a step: a hash over what goes into it."""
    state = hashlib.sha256()
    for fact in facts:
        raw = fact.encode("utf-8", "surrogateescape")
        state.update(b"%d:" % len(raw) + raw)
    return state.hexdigest()


@attrs.frozen(kw_only=True)
class Made:
    """What a step made.

    Attributes:
        layer: the blob and its diff id, or None when it changed nothing.
        created: RFC 3339 time.
    """

    layer: tuple[Descriptor, Digest] | None
    created: str


class Cache:
    """Steps by their keys, in a store.

    Args:
        store: where.
        enabled: find what is there; what is made is kept in either case.
    """

    def __init__(self, store: Store, *, enabled: bool = True) -> None:
        self._store = store
        self._enabled = enabled
        self._folder = store.root / "build/cache"
        self._folder.mkdir(exist_ok=True, mode=0o711)

    def find(self, key: str, lease: Lease) -> Made | None:
        """Return what a step made before, claimed; None when it is not known or its layer is gone."""
        if not self._enabled:
            return None
        try:
            raw = (self._folder / f"{key}.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            document = Document.read(raw, key)
            described = document.child("layer")
            layer = None
            if described is not None:
                layer = (Descriptor.from_document(described), document.digest("diffID"))
                lease.claim([layer[0].digest, layer[1]])
                if not self._store.blobs.has(layer[0]):
                    return None
            return Made(layer=layer, created=document.text("created"))
        except ContainerError:
            return None  # written by another version: the step is simply made again

    def put(self, key: str, made: Made) -> None:
        """Remember what a step made."""
        content: dict[str, object] = {"created": made.created}
        if made.layer is not None:
            content |= {"layer": made.layer[0].to_json(), "diffID": str(made.layer[1])}
        replace_file(self._folder / f"{key}.json", json.dumps(content).encode())


def forget_builds(store: Store) -> None:
    """Forget all steps of builds, and what their cache mounts hold."""
    with locked(store.gate, exclusive=True):
        for path in (store.root / "build/cache").glob("*.json"):
            path.unlink(missing_ok=True)
        mounts = store.root / "build/mounts"
        if mounts.exists():
            mounts.rename(store.root / "trash" / f"mounts-{token_hex(8)}")
    for path in (store.root / "trash").glob("mounts-*"):
        remove_tree(path)


def cached_digests(store: Store) -> Iterable[Digest]:
    """Return the layers that the cache would need, for the collection to keep."""
    for path in (store.root / "build/cache").glob("*.json"):
        try:
            document = Document.read(path.read_bytes(), path.name)
            described = document.child("layer")
            if described is not None:
                yield Descriptor.from_document(described).digest
                yield document.digest("diffID")
        except ContainerError:
            continue
