"""The build cache: the result of a step, by its inputs."""

from __future__ import annotations

import hashlib
import json
import os
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.archive.compression import Plain
from containerkit.errors import ContainerError
from containerkit.image.digest import Digest
from containerkit.image.document import Document
from containerkit.image.manifest import Descriptor
from containerkit.image.store.locks import locked, replace_file
from containerkit.start.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.image.store import Lease, Store

_PIECE: Final = 1 << 20

__all__ = ["Cache", "Made", "cached_digests", "forget_builds", "key_of"]


def key_of(*facts: str) -> str:
    """Return the key of a step: a hash of its inputs."""
    state = hashlib.sha256()
    for fact in facts:
        raw = fact.encode("utf-8", "surrogateescape")
        state.update(b"%d:" % len(raw) + raw)
    return state.hexdigest()


@attrs.frozen(kw_only=True)
class Made:
    """The result of a step.

    Attributes:
        layer: the blob and its diff id, or None if it changed nothing.
        created: RFC 3339 time.
    """

    layer: tuple[Descriptor, Digest] | None
    created: str


class Cache:
    """The steps in a store, by their keys.

    Args:
        store: the store.
        enabled: whether to use cached results. New results are stored in any case.
    """

    def __init__(self, store: Store, *, enabled: bool = True) -> None:
        self._store = store
        self._enabled = enabled
        self._directory = store.root / "build/cache"
        self._directory.mkdir(exist_ok=True, mode=0o711)

    def find(self, key: str, lease: Lease) -> Made | None:
        """Return and claim the earlier result of a step, or None if there is none or its layer is gone or changed."""
        if not self._enabled:
            return None
        try:
            raw = (self._directory / f"{key}.json").read_bytes()
        except FileNotFoundError:
            return None
        try:
            document = Document.read(raw, key)
            described = document.child("layer")
            layer = None
            if described is not None:
                layer = (Descriptor.from_document(described), document.digest("diffID"))
                lease.claim([layer[0].digest, layer[1]])
            made = Made(layer=layer, created=document.text("created"))
            return made if layer is None or self._is_sound(key, made, document.text("seen", "")) else None
        except ContainerError:
            return None  # written by another version: the step is executed again

    def _is_sound(self, key: str, made: Made, seen: str) -> bool:
        """Return whether the blob of a layer is unchanged. If the kernel reports a change, it is read and compared.

        Raises:
            ImageError: it does not match its digest or its diff id.
        """
        assert made.layer is not None
        blob, diff_id = made.layer
        if not self._store.blobs.has(blob):
            return False
        if seen == self._seen(blob.digest):
            return True
        with self._store.blobs.open(blob.digest) as file:
            if Digest.of_file(file, blob.digest.algorithm) != blob.digest:
                return False
        state = diff_id.hasher()
        with self._store.blobs.open(blob.digest) as file, Plain(file, limits=self._store.limits) as stream:
            while piece := stream.read(_PIECE):
                state.update(piece)
        diff_id.check(state, "layer, uncompressed")
        self.put(key, made)
        return True

    def _seen(self, digest: Digest) -> str:
        """Return values that change when a blob's file changes. Source: inode(7), "ctime"."""
        status = os.stat(self._store.blobs.path(digest))
        return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_ctime_ns}"

    def put(self, key: str, made: Made) -> None:
        """Store the result of a step."""
        content: dict[str, object] = {"created": made.created}
        if made.layer is not None:
            blob, diff_id = made.layer
            content |= {"layer": blob.to_json(), "diffID": str(diff_id), "seen": self._seen(blob.digest)}
        replace_file(self._directory / f"{key}.json", json.dumps(content).encode())


def forget_builds(store: Store) -> None:
    """Delete all build steps, and the content of their cache mounts."""
    with locked(store.gate, exclusive=True):
        for path in (store.root / "build/cache").glob("*.json"):
            path.unlink(missing_ok=True)
        mounts = store.root / "build/mounts"
        if mounts.exists():
            mounts.rename(store.root / "trash" / f"mounts-{token_hex(8)}")
    for path in (store.root / "trash").glob("mounts-*"):
        remove_tree(path)


def cached_digests(store: Store) -> Iterable[Digest]:
    """Return the layers that the cache uses. The collection keeps them."""
    for path in (store.root / "build/cache").glob("*.json"):
        try:
            document = Document.read(path.read_bytes(), path.name)
            described = document.child("layer")
            if described is not None:
                yield Descriptor.from_document(described).digest
                yield document.digest("diffID")
        except ContainerError:
            continue
