"""Garbage collection by reachability, and verification."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import CleanupError, ContainerError, ImageError
from containerkit.image import media
from containerkit.image.config import ImageConfig
from containerkit.image.digest import Digest
from containerkit.image.layers.stack import parts_of, stack_id
from containerkit.image.layers.unpack import on_top_id
from containerkit.image.manifest import Index, Manifest
from containerkit.image.store.cache import cached_digests
from containerkit.image.store.catalog import INDEX
from containerkit.image.store.leases import leased
from containerkit.image.store.locks import IDS, UNPLACED, locked, try_lock
from containerkit.start.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from containerkit.image.manifest import Descriptor
    from containerkit.image.store import Store

__all__ = ["Collected", "Problem", "collect", "reachable", "sweep", "verify"]

_KEEP_PARTIAL_S: Final = 24 * 3600.0
"""How long an unfinished download is kept, so that it can be continued."""
_KEEP_UNPLACED_S: Final = 60.0


@attrs.frozen(kw_only=True)
class Collected:
    """The result of a collection.

    Attributes:
        blobs: digests of the blobs.
        layers: diff ids of the unpacked layers.
        unfinished: the number of files that downloads and crashes left behind.
        freed_bytes: the size of the blobs and unfinished files (unpacked layers are not counted).
    """

    blobs: tuple[Digest, ...]
    layers: tuple[Digest, ...]
    unfinished: int
    freed_bytes: int


@attrs.frozen(kw_only=True)
class Problem:
    """One problem in a store.

    Attributes:
        subject: the digest or name concerned.
        message: the description of the problem.
    """

    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


def reachable(store: Store, root: Descriptor | Digest) -> Iterator[Digest]:
    """Return the digests of everything that a manifest or index refers to: blobs, and diff ids of its layers.

    Objects that are not in the store (such as the other platforms of an index) are included but not followed.
    """
    waiting: list[tuple[Digest, str]] = [(root, "") if isinstance(root, Digest) else (root.digest, root.media_type)]
    seen: set[Digest] = set()
    while waiting:
        digest, kind = waiting.pop()
        if digest in seen:
            continue
        seen.add(digest)
        yield digest
        if kind in media.CONFIGS and store.blobs.has(digest):
            config = ImageConfig.parse(store.blobs.read(digest))
            yield from config.diff_ids
            yield from config.chain_ids
            yield from map(on_top_id, config.chain_ids)
            yield from map(stack_id, config.chain_ids[-1:])
        if kind not in media.INDEXES | media.MANIFESTS or not store.blobs.has(digest):
            continue
        document = store.document(_as_descriptor(digest, kind))
        if isinstance(document, Index):
            waiting += [(one.digest, one.media_type) for one in document.manifests]
        else:
            waiting += [(one.digest, one.media_type) for one in (document.config, *document.layers)]
            if document.subject is not None:
                waiting.append((document.subject.digest, document.subject.media_type))


def _as_descriptor(digest: Digest, kind: str) -> Descriptor:
    from containerkit.image.manifest import Descriptor

    return Descriptor(media_type=kind, digest=digest, size=0)


def collect(store: Store) -> Collected:
    """Delete what is not used; see :meth:`containerkit.image.store.Store.collect`.

    Raises:
        ImageError: a manifest that is in use is malformed. Its dependencies are unknown, so nothing is deleted.
    """
    trash = store.root / "trash" / token_hex(8)
    with locked(store.gate, exclusive=True):
        claimed = leased(store.root / "leases")
        kept = set(claimed)
        for entry in store.catalog.entries():
            kept.update(reachable(store, entry))
            if index := entry.annotations.get(INDEX):
                kept.add(Digest(index))
        kept.update(cached_digests(store))
        blobs = [digest for digest in store.blobs if digest not in kept]
        current = store.layers
        for digest, directory in unpacked(store):
            if digest in kept and directory.parents[1] == current:
                kept |= parts_of(directory)
        layers = [
            (digest, directory)
            for digest, directory in unpacked(store)
            if digest not in (kept if directory.parents[1] == current else claimed)  # for other ids only claims count
        ]
        freed = 0
        for digest in blobs:
            freed += store.blobs.path(digest).stat().st_size
            store.blobs.path(digest).unlink()
        if layers:
            trash.mkdir()
        for number, (_, directory) in enumerate(layers):
            directory.rename(trash / str(number))
        unfinished, bytes_ = _sweep_incoming(store)
    unfinished += _sweep_trash(store) + _sweep_files(store)
    gone = tuple(digest for digest, _ in layers)
    return Collected(blobs=tuple(blobs), layers=gone, unfinished=unfinished, freed_bytes=freed + bytes_)


def unpacked(store: Store) -> Iterator[tuple[Digest, Path]]:
    """Return the diff ids and directories of all unpacked layers, whatever the ids of their files."""
    for parent in (store.root / "layers", *sorted((store.root / "layers").glob(f"{IDS}*"))):
        for algorithm in sorted(parent.iterdir()):
            if algorithm.name.startswith((".", IDS)):
                continue
            for entry in sorted(algorithm.iterdir()):
                yield Digest(f"{algorithm.name}:{entry.name}"), entry


def sweep() -> tuple[str, ...]:
    """Delete what killed processes have left in the user's store: unfinished blobs, layers, builds and claims.

    Images and the files of live processes are not touched.

    Returns:
        The deleted paths.

    Raises:
        CleanupError: files belong to ids that the user no longer has, so they can't be deleted.
    """
    from containerkit.image.store import Store, default_root

    if not (default_root() / "oci-layout").exists():
        return ()
    store = Store()
    before = _unfinished(store)
    with locked(store.gate, exclusive=True):
        leased(store.root / "leases")
        _sweep_incoming(store)
    _sweep_trash(store)
    _sweep_files(store)
    after = _unfinished(store)
    if stuck := [path for path in after if path.startswith(f"{store.root}/trash/")]:
        raise CleanupError(tuple(f"{path}: it contains files with ids that the user no longer has" for path in stuck))
    return tuple(sorted(before - after))


def _unfinished(store: Store) -> set[str]:
    directories = [store.root / name for name in ("leases", "incoming", "trash")]
    found = {str(path) for directory in directories for path in directory.iterdir()}
    found |= {str(path) for path in _unplaced(store)}
    for name in ("layers", "build"):
        found |= {str(path) for path in (store.root / name).glob(".new-*")}
    return found


def _sweep_incoming(store: Store) -> tuple[int, int]:
    """Delete unfinished blobs that nobody writes: immediately if they can't be continued, otherwise after a day."""
    count = freed = 0
    for path in list(store.blobs.incoming.iterdir()):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            state = os.fstat(descriptor)
            old = time.time() - state.st_mtime > _KEEP_PARTIAL_S or path.name.startswith("new-")
            if old and try_lock(descriptor):
                path.unlink(missing_ok=True)
                count += 1
                freed += state.st_size
        finally:
            os.close(descriptor)
    return count, freed


def _sweep_trash(store: Store) -> int:
    """Delete the trash, and unfinished layers and builds whose process has ended."""
    count = 0
    for path in list((store.root / "trash").iterdir()):
        remove_tree(path)
    for parent in (store.root / "layers", store.root / "build"):
        for path in parent.glob(".new-*"):
            count += _sweep_abandoned(path)
    return count


def _sweep_files(store: Store) -> int:
    """Delete replacement files that were never moved into place, because their process was killed."""
    count = 0
    for path in _unplaced(store):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > _KEEP_UNPLACED_S:
                path.unlink()
                count += 1
    return count


def _unplaced(store: Store) -> list[Path]:
    directories = (store.root, store.root / "build/cache")
    return [
        path
        for directory in directories
        if directory.is_dir()
        for path in directory.iterdir()
        if UNPLACED.fullmatch(path.name)
    ]


def _sweep_abandoned(path: Path) -> bool:
    """Delete a working directory if its lock is free. A process that uses one holds a lock on the directory."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if not try_lock(descriptor):
            return False
        return remove_tree(path)
    finally:
        os.close(descriptor)


def verify(store: Store, *, repair: bool = False) -> tuple[Problem, ...]:
    """Read everything and compare it with its digest; see :meth:`containerkit.image.store.Store.verify`."""
    problems = list(_verify_blobs(store, repair=repair))
    for entry in store.catalog.entries():
        name = entry.ref_name or str(entry.digest)
        try:
            problems += _verify_image(store, entry, name)
        except ContainerError as error:
            problems.append(Problem(subject=name, message=str(error)))
    return tuple(problems)


def _verify_blobs(store: Store, *, repair: bool) -> Iterator[Problem]:
    for digest in list(store.blobs):
        state = digest.hasher()
        try:
            with store.blobs.open(digest) as file:
                while piece := file.read(1 << 20):
                    state.update(piece)
            digest.check(state, "its content")
        except ImageError as error:
            if repair:
                with locked(store.gate, exclusive=True):
                    store.blobs.path(digest).unlink(missing_ok=True)
            yield Problem(subject=str(digest), message=str(error) + (" (deleted)" if repair else ""))


def _verify_image(store: Store, entry: Descriptor, name: str) -> Iterator[Problem]:
    document = store.document(entry)
    present: list[Manifest] = []
    if isinstance(document, Manifest):
        present.append(document)
    else:
        here = [one for one in document.manifests if store.blobs.has(one.digest)]
        found = [store.document(one) for one in here]
        present += [one for one in found if isinstance(one, Manifest)]
    for manifest in present:
        for blob in (manifest.config, *manifest.layers):
            if not store.blobs.has(blob) and media.is_distributed(blob.media_type):
                yield Problem(subject=name, message=f"blob {blob.digest} is missing or cut off")
