"""Pull an image: the manifest, then its blobs in parallel. Each is verified while it arrives, and then unpacked."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError
from containerkit.image import media
from containerkit.image.config import chain_ids
from containerkit.image.layers.stack import stack_layers
from containerkit.image.layers.unpack import layer_paths, unpack_layer, unpack_layers
from containerkit.image.manifest import Index, Manifest
from containerkit.image.platform import Platform
from containerkit.image.progress import ProgressEvent, silent
from containerkit.image.registry.client import Registry
from containerkit.image.registry.deadlines import Meter
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.registry.transport import backoff_s, release_connection
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from urllib3 import BaseHTTPResponse

    from containerkit.image.config import ImageConfig
    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.progress import Progress, Status
    from containerkit.image.reference import Reference
    from containerkit.image.registry.credentials import Credentials
    from containerkit.image.store import Ingest, Lease, Store

__all__ = ["pull"]

_PIECE: Final = 64 << 10
_DEEPEST: Final = 3


def pull(
    reference: Reference,
    store: Store,
    *,
    platform: Platform | None = None,
    all_platforms: bool = False,
    unpack: bool = True,
    settings: RegistrySettings | None = None,
    credentials: Credentials | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Pull an image into a store, from a mirror or its registry.

    Blobs that are in the store are not fetched again. An unfinished download of an earlier pull is continued.

    Args:
        reference: the image.
        store: the destination.
        platform: the platform. Default: this machine's.
        all_platforms: whether to fetch the images of all platforms of an index.
        unpack: whether to unpack the layers as they arrive (those of ``platform``).
        settings: how to reach registries. Default: those of the machine and user.
        credentials: the credentials. Default: those that other container tools have stored.
        progress: called with each step.

    Returns:
        The manifest of the image for the platform.

    Raises:
        ImageError: the image does not exist, is not permitted, not for this platform, malformed, or does not match its
            digests; or no source answers.
        SetupError: the disk is full.

    Source: OCI distribution specification, "Pull".
    """
    settings = settings or RegistrySettings.load()
    failures: list[ImageError] = []
    hosts = (*settings.mirrors.get(reference.registry, ()), "")
    for host in hosts:
        with (
            Registry(
                reference.registry, settings=settings, credentials=None if host else credentials, host=host
            ) as source,
            store.lease() as lease,
        ):
            work = _Pull(reference, store, source, lease, progress)
            try:
                return work.run(platform or Platform.host(), all_platforms=all_platforms, unpack=unpack)
            except ImageError as error:
                failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    causes = "; ".join(f"{host or reference.registry}: {error}" for host, error in zip(hosts, failures, strict=True))
    raise ImageError(f"{reference}: no source provides it: {causes}") from failures[-1]


class _Pull:
    """One pull from one source."""

    def __init__(self, reference: Reference, store: Store, source: Registry, lease: Lease, progress: Progress) -> None:
        self.reference = reference
        self.repository = reference.repository
        self.store = store
        self.source = source
        self.lease = lease
        self.progress = progress
        self._stopped = threading.Event()

    def run(self, platform: Platform, *, all_platforms: bool, unpack: bool) -> Manifest:
        top = self._top()
        chosen = self._choose(top, platform)
        manifests = [chosen]
        if all_platforms and isinstance(top, Index):
            fetched = [self._document(one) for one in top.manifests]
            manifests = [one for one in fetched if isinstance(one, Manifest)]
        self._fetch(manifests, chosen if unpack and chosen.is_image else None)
        name = self.reference if self.reference.digest is None else None
        if name is None and self.reference.tag:
            name = self.reference.without_digest()
        named = top if all_platforms else chosen
        self.store.catalog.put(named.descriptor, name, index=top.digest if isinstance(top, Index) else None)
        return chosen

    def _top(self) -> Manifest | Index:
        digest = self.reference.digest
        if digest is not None and self.store.blobs.has(digest):
            self.lease.claim([digest])
            from containerkit.image.manifest import parse_manifest

            return parse_manifest(self.store.blobs.read(digest))
        document = self.source.manifest(self.repository, self.reference.target)
        return self._keep(document)

    def _keep(self, document: Manifest | Index) -> Manifest | Index:
        self.lease.claim([document.digest])
        self.store.blobs.add(document.raw, document.media_type)
        return document

    def _document(self, descriptor: Descriptor) -> Manifest | Index:
        self.lease.claim([descriptor.digest])
        if self.store.blobs.has(descriptor):
            return self.store.document(descriptor)
        document = self.source.manifest(self.repository, descriptor.digest)
        if len(document.raw) != descriptor.size:
            raise ImageError(f"manifest {descriptor.digest}: {len(document.raw)} bytes, not {descriptor.size}")
        return self._keep(document)

    def _choose(self, document: Manifest | Index, platform: Platform) -> Manifest:
        for _ in range(_DEEPEST):
            if isinstance(document, Manifest):
                return document
            document = self._document(document.select(platform, str(self.reference)))
        raise ImageError(f"{self.reference}: indexes are nested too deeply")

    def _fetch(self, manifests: Iterable[Manifest], unpacked: Manifest | None) -> None:
        """Fetch all blobs of some manifests, and unpack the layers of one of them."""
        layers: list[tuple[Descriptor, Digest]] = []
        blobs: dict[Digest, Descriptor] = {}
        for manifest in manifests:
            self.lease.claim([manifest.config.digest, *(layer.digest for layer in manifest.layers)])
            self._blob(manifest.config)
            blobs |= {layer.digest: layer for layer in manifest.layers}
        if unpacked is not None:
            config = self.store.config(unpacked)
            self._check_platform(config)
            self.lease.claim(config.diff_ids)
            layers = list(zip(unpacked.layers, config.diff_ids, strict=True))
        diff_ids = {layer.digest: diff for layer, diff in layers}
        parallel = self.source.settings.parallel
        with (
            userns_helper.kept(),
            ThreadPoolExecutor(parallel, "pull") as pool,
            ThreadPoolExecutor(2, "unpack") as unpackers,
        ):
            running: list[Future[None]] = []
            try:
                downloads = {pool.submit(self._blob, blob): blob for blob in blobs.values()}
                for done in as_completed(downloads):
                    done.result()
                    blob = downloads[done]
                    if blob.digest in diff_ids:
                        running.append(unpackers.submit(self._unpack, blob, diff_ids[blob.digest]))
                for unpacking in as_completed(running):
                    unpacking.result()
                found = unpack_layers(self.store, layers, self.lease)  # those that need the layers below them
                if found:
                    chain = chain_ids(tuple(diff_id for _, diff_id in layers))
                    stack_layers(self.store, layer_paths(found), chain[-1], self.lease)
            except BaseException:
                self._stopped.set()  # otherwise the other downloads would continue to their ends
                pool.shutdown(wait=False, cancel_futures=True)
                unpackers.shutdown(wait=False, cancel_futures=True)
                raise

    def _check_platform(self, config: ImageConfig) -> None:
        if config.platform.os != "linux":
            raise ImageError(f"{self.reference}: an image for {config.platform} can't run on Linux")

    def _unpack(self, blob: Descriptor, diff_id: Digest) -> None:
        unpack_layer(self.store, blob, diff_id, self.lease)
        self.progress(
            ProgressEvent(
                action="unpack", subject=str(diff_id), done_bytes=blob.size, total_bytes=blob.size, status="done"
            )
        )

    # --- blobs --------------------------------------------------------------------------------------------------------

    def _blob(self, blob: Descriptor) -> None:
        """Fetch one blob. Try again while bytes arrive, and give up after several attempts without any."""
        with self.store.blobs.ingest(blob) as writer:
            if writer.done:
                self._report(blob, writer, "exists")
                return
            meter = Meter(self.source.settings, writer.offset)
            failures, again = 0, writer.offset > 0  # bytes of an earlier pull may be damaged: then try once more
            while True:
                before = writer.offset
                try:
                    self._stream(blob, writer, meter)
                    writer.commit()
                except _CutOff as error:
                    failures = 1 if writer.offset > before else failures + 1
                    if not meter.left_s():
                        raise ImageError(
                            f"blob {blob.digest}: gave up after {writer.offset} of {blob.size} bytes: {meter.verdict}"
                        ) from error
                    if failures >= self.source.settings.attempts:
                        raise ImageError(
                            f"blob {blob.digest}: cut off after {writer.offset} of {blob.size} bytes: {error}"
                        ) from error
                    self._check_not_stopped(blob)
                    time.sleep(backoff_s(failures))
                except ImageError:
                    if not again or self._stopped.is_set():
                        raise
                    again = False
                    writer.restart()
                else:
                    self._report(blob, writer, "done")
                    return

    def _stream(self, blob: Descriptor, writer: Ingest, meter: Meter) -> None:
        from http.client import HTTPException

        from urllib3.exceptions import HTTPError

        if writer.offset == blob.size and blob.size:
            return
        answer = self._open(blob, writer.offset, meter)
        try:
            _align(answer, writer)
            while True:
                piece = answer.read1(_PIECE, decode_content=False)
                if not piece:
                    break
                self._check_not_stopped(blob)
                writer.write(piece)
                meter.reach(writer.offset)
                self._report(blob, writer, "running")
        except (HTTPError, HTTPException, ConnectionError, TimeoutError) as error:
            answer.close()
            raise _CutOff(str(error)) from error
        except BaseException:
            answer.close()
            raise
        answer.release_conn()
        if writer.offset < blob.size:
            raise _CutOff("the connection ended early")

    def _check_not_stopped(self, blob: Descriptor) -> None:
        if self._stopped.is_set():
            raise ImageError(f"blob {blob.digest}: the download was stopped, because another part of the pull failed")

    def _open(self, blob: Descriptor, offset: int, meter: Meter) -> BaseHTTPResponse:
        if media.is_distributed(blob.media_type) or not blob.urls:
            return self.source.blob(self.repository, blob.digest, offset, meter=meter)
        failure = ImageError(f"blob {blob.digest}: none of its addresses uses HTTPS, which is required")
        for url in blob.urls:
            if not url.startswith("https://"):
                continue
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            answer = self.source.request("GET", url, headers=headers, meter=meter)
            if answer.status in (200, 206, 416):
                return answer
            release_connection(answer)
            failure = ImageError(f"blob {blob.digest}: status {answer.status} from its own address")
        raise failure

    def _report(self, blob: Descriptor, writer: Ingest, status: Status) -> None:
        self.progress(
            ProgressEvent(
                action="download", subject=str(blob.digest), done_bytes=writer.offset, total_bytes=blob.size,
                status=status,
            )
        )  # fmt: skip


def _align(answer: BaseHTTPResponse, writer: Ingest) -> None:
    """Check that an answer continues where the blob ends, or start again."""
    if writer.offset == 0 and answer.status == 200:
        return
    if answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {writer.offset}-"):
        return
    writer.restart()
    if answer.status != 200:
        raise _CutOff("the registry does not continue from there")


class _CutOff(Exception):  # noqa: N818 - never leaves this module
    """The connection broke in the middle of a blob."""
