"""Push an image: the missing blobs, in pieces, then the manifests."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO, Final
from urllib.parse import quote

from containerkit.errors import ContainerError, ImageError
from containerkit.image import media
from containerkit.image.manifest import Index, Manifest
from containerkit.image.progress import ProgressEvent, silent
from containerkit.image.reference import Reference
from containerkit.image.registry.client import Registry
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.registry.transport import TransientError, backoff_s
from containerkit.image.store.collect import reachable

if TYPE_CHECKING:
    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.progress import Progress, Status
    from containerkit.image.registry.credentials import Credentials
    from containerkit.image.store import Store

__all__ = ["push"]

_RANGE: Final = re.compile(r"(?:bytes=)?0-([0-9]+)")


def push(
    descriptor: Descriptor,
    reference: Reference,
    store: Store,
    *,
    settings: RegistrySettings | None = None,
    credentials: Credentials | None = None,
    mount_from: tuple[str, ...] = (),
    progress: Progress = silent,
) -> Digest:
    """Push an image, or all images of an index, to a registry.

    Blobs that exist there are not sent again. Blobs in other repositories of the same registry are mounted.

    Args:
        descriptor: of a manifest or index in the store.
        reference: the destination.
        store: the store that contains it.
        settings: how to reach registries. Default: those of the machine and user.
        credentials: the credentials. Default: those that other container tools have stored.
        mount_from: repositories of the registry that may have the blobs, in addition to those known in the store.
        progress: called with each step.

    Returns:
        The digest that was pushed.

    Raises:
        ImageError: permission is denied, there is no answer, or a blob is missing in the store.

    Source: OCI distribution specification, "Push".
    """
    settings = settings or RegistrySettings.load()
    with (
        Registry(reference.registry, settings=settings, credentials=credentials) as target,
        store.lease() as lease,
    ):
        lease.claim(reachable(store, descriptor))
        work = _Push(reference, store, target, mount_from, progress)
        return work.run(descriptor)


class _Push:
    """One push."""

    def __init__(
        self, reference: Reference, store: Store, target: Registry, mount_from: tuple[str, ...], progress: Progress
    ) -> None:
        self.reference = reference
        self.repository = reference.repository
        self.store = store
        self.target = target
        self.mount_from = mount_from
        self.progress = progress
        self.neighbours = self._neighbours()

    def _neighbours(self) -> dict[str, frozenset[Digest]]:
        """Find the blobs that other repositories of the registry should have, by the names in the store."""
        found: dict[str, frozenset[Digest]] = {}
        for name, entry in self.store.catalog.names().items():
            with suppress(ContainerError):  # an image that can't be read does not prevent this push
                other = Reference.parse(name)
                if other.registry == self.reference.registry and other.repository != self.repository:
                    found[other.repository] = frozenset(reachable(self.store, entry))
        return found

    def run(self, descriptor: Descriptor) -> Digest:
        document = self.store.document(descriptor)
        manifests = self._manifests(document)
        blobs = {
            blob.digest: blob
            for manifest in manifests
            for blob in (*manifest.layers, manifest.config)
            if media.is_distributed(blob.media_type)
        }
        with ThreadPoolExecutor(self.target.settings.parallel, "push") as pool:
            list(pool.map(self._blob, blobs.values()))
        if isinstance(document, Index):
            for manifest in manifests:
                self.target.put_manifest(self.repository, manifest.digest, manifest)
        if self.reference.digest not in (None, document.digest):
            raise ImageError(f"{self.reference}: the image to push is {document.digest}")
        target = self.reference.tag or str(document.digest)
        return self.target.put_manifest(self.repository, target, document)

    def _manifests(self, document: Manifest | Index) -> list[Manifest]:
        found: list[Manifest] = []
        waiting: list[Manifest | Index] = [document]
        while waiting:
            inner = waiting.pop()
            if isinstance(inner, Manifest):
                found.append(inner)
                continue
            for one in inner.manifests:
                if not self.store.blobs.has(one):
                    raise ImageError(
                        f"{self.reference}: the image for {one.platform} is not in the store "
                        "(hint: pull with all_platforms=True)"
                    )
            waiting += [self.store.document(one) for one in inner.manifests[::-1]]
        return found

    def _blob(self, blob: Descriptor) -> None:
        """Send one blob. If the connection breaks, start again, up to the number of attempts."""
        for attempt in range(1, self.target.settings.attempts + 1):
            try:
                self._once(blob)
            except TransientError:
                if attempt == self.target.settings.attempts:
                    raise
                time.sleep(backoff_s(attempt))
            else:
                return

    def _once(self, blob: Descriptor) -> None:
        if self.target.has_blob(self.repository, blob.digest, "pull,push"):
            self._report(blob, blob.size, "exists")
            return
        candidates = [*self.mount_from, *(name for name, has in self.neighbours.items() if blob.digest in has)]
        for source in candidates[:3]:
            answer = self.target.start_upload(self.repository, blob.digest, source)
            if answer is None:
                self._report(blob, blob.size, "exists")
                return
            self._send(blob, self.target.location(answer))  # a refused mount begins an upload
            return
        answer = self.target.start_upload(self.repository, blob.digest)
        if answer is not None:
            self._send(blob, self.target.location(answer))

    def _send(self, blob: Descriptor, location: str) -> None:
        with self.store.blobs.open(blob.digest) as file:
            if blob.size > self.target.settings.chunk_bytes:
                location = self._pieces(blob, file, location)
                body = b""
            else:
                body = file.read()
        joint = "&" if "?" in location else "?"
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        url = f"{location}{joint}digest={quote(blob.digest, safe=':')}"
        self.target.upload("PUT", url, self.repository, body, headers, 201)
        self._report(blob, blob.size, "done")

    def _pieces(self, blob: Descriptor, file: BinaryIO, location: str) -> str:
        """Send a large blob piece by piece. After a failure ask how much has arrived, and continue from there."""
        failures, at = 0, 0
        while at < blob.size:
            file.seek(at)
            piece = file.read(self.target.settings.chunk_bytes)
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(len(piece)),
                "Content-Range": f"{at}-{at + len(piece) - 1}",
            }
            try:
                answer = self.target.upload("PATCH", location, self.repository, piece, headers, 202, 204)
            except TransientError:
                failures += 1
                if failures >= self.target.settings.attempts:
                    raise
                time.sleep(backoff_s(failures))
                answer = self.target.upload("GET", location, self.repository, None, {}, 204)
                found = _RANGE.search(answer.headers.get("Range", ""))
                at = int(found[1]) + 1 if found and found[1] != "0" else 0
            else:
                failures = 0
                at += len(piece)
            location = self.target.location(answer)
            self._report(blob, at, "running")
        return location

    def _report(self, blob: Descriptor, done: int, status: Status) -> None:
        self.progress(
            ProgressEvent(
                action="upload", subject=str(blob.digest), done_bytes=done, total_bytes=blob.size, status=status
            )
        )
