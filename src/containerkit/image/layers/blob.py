"""Make a layer: write an uncompressed archive, get a compressed blob and its diff id."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from containerkit.archive.compression import compress
from containerkit.image import media
from containerkit.image.digest import Digest
from containerkit.image.manifest import Descriptor

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from containerkit.image.store import Ingest, Lease, Store

__all__ = ["LayerWriter"]


class LayerWriter:
    """A new layer that is written to a store. Use it in a ``with`` statement.

    Args:
        store: the destination.
        lease: a claim that will cover it.
        compression: ``gzip``, ``zstd`` or ``none``.
    """

    def __init__(self, store: Store, lease: Lease, compression: str = "gzip") -> None:
        self._lease = lease
        self._ingest: Ingest = store.blobs.ingest()
        self._compression = compression
        self._stream = compress(self._ingest, compression)
        self._state = hashlib.sha256()
        self._blobs = store.blobs

    def __enter__(self) -> Self:
        self._ingest.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.abandon()
        self._ingest.__exit__(kind, error, trace)

    def write(self, content: bytes) -> int:
        """Append bytes of the uncompressed archive."""
        self._state.update(content)
        return self._stream.write(content)

    update = write
    """The same as ``write``, so that it can be used in place of a hash object."""

    def commit(self) -> tuple[Descriptor, Digest]:
        """Finish. Return the descriptor of the blob and the diff id of the layer."""
        self._stream.close()
        size = self._ingest.offset
        self._lease.claim([self._ingest.digest, Digest(f"sha256:{self._state.hexdigest()}")])
        digest = self._ingest.commit()
        descriptor = Descriptor(media_type=media.OF_COMPRESSION[self._compression], digest=digest, size=size)
        return descriptor, Digest(f"sha256:{self._state.hexdigest()}")
