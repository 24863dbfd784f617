"""Unpacked layers in the store. Each diff id has one directory, which is made once and shared.

A layer is unpacked alone, unless it depends on the layers below: it has a hard link to one of their files, or a path
through one of their symlinks. Then it is unpacked on top of them, under a separate name.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from containerkit.archive.beneath import sync_filesystem
from containerkit.archive.compression import Plain
from containerkit.archive.extract import Extraction, extract
from containerkit.archive.tree import NotInLayerError
from containerkit.archive.view import View
from containerkit.errors import ImageError
from containerkit.image.config import chain_ids
from containerkit.image.store.locks import refused, replace_file
from containerkit.start import userns_helper
from containerkit.start.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.store import Lease, Store

__all__ = ["Layer", "extract_blob", "layer_paths", "on_top_id", "unpack_layer", "unpack_layers"]

CONTENT: Final = "fs"
"""The name of the directory for the files, inside the layer's own directory."""
_MARKER: Final = "layer.json"
_NOT_ALONE: Final = "lacks"  # why a layer can't be unpacked alone
UNNAMED: Final = "unnamed"  # the directories that it created before it named them, or that it does not name
ORIGINS: Final = "origins"  # whether its directories with whiteouts are marked: earlier versions did not
_SETTLE_S: Final = 60.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

Layer = tuple["Descriptor", "Digest"]
"""A layer's blob and its diff id."""


def unpack_layers(
    store: Store, layers: Sequence[Layer], lease: Lease, done: Callable[[Digest], None] = lambda _: None
) -> list[Path]:
    """Unpack the layers that are not unpacked yet, several in parallel.

    Args:
        store: the store with their blobs.
        layers: lowest first.
        lease: a claim that will cover them.
        done: called for each layer that is ready, from any thread.

    Returns:
        The directory of each, lowest first.

    Raises:
        ImageError: a blob is missing or malformed, or does not match its diff id.
        SetupError: the disk is full.
    """
    lease.claim([diff_id for _, diff_id in layers])

    def one(layer: Layer) -> Path:
        path = unpack_layer(store, *layer, lease)
        done(layer[1])
        return path

    missing = {diff_id: (blob, diff_id) for blob, diff_id in layers if not is_complete(store.layer_directory(diff_id))}
    if len(missing) > 1:
        with (
            userns_helper.kept(),
            ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, 8), "unpack") as pool,
        ):
            list(pool.map(one, sorted(missing.values(), key=lambda layer: -layer[0].size)))
    found: list[Path] = []
    chain = chain_ids(tuple(diff_id for _, diff_id in layers))
    for layer, chain_id in zip(layers, chain, strict=True):
        path = one(layer)
        if _needs_layers_below(path.parent, found):
            path = _unpack_on_top(store, layer, found, chain_id, lease)
        found.append(path)
    return found


def unpack_layer(store: Store, blob: Descriptor, diff_id: Digest, lease: Lease, how: Extraction | None = None) -> Path:
    """Unpack one layer alone, if it is possible and not done yet; see :func:`unpack_layers`."""
    lease.claim([diff_id])
    directory = store.layer_directory(diff_id)
    if not is_complete(directory):
        with store.blobs.open(blob.digest) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # one process unpacks, others wait
            if not is_complete(directory):
                userns_helper.call(_unpack, store, blob.digest, directory, diff_id, how)
    settle(directory)
    return directory / CONTENT


def _needs_layers_below(directory: Path, below: Sequence[Path]) -> bool:
    """Return whether the meaning of a layer depends on those below it."""
    facts = _facts(directory)
    if _NOT_ALONE in facts:
        return True
    unnamed = facts.get(UNNAMED)
    if not unnamed or not below:
        return False
    leans: bool = userns_helper.call(_is_any_link, layer_paths(below), unnamed)
    return leans


def _is_any_link(directories: tuple[str, ...], paths: Sequence[str]) -> bool:
    view = View(directories)
    return any(view.is_link(tuple(os.fsencode(path).split(b"/"))) for path in paths)


def _unpack_on_top(store: Store, layer: Layer, below: Sequence[Path], chain_id: Digest, lease: Lease) -> Path:
    blob, diff_id = layer
    own_id = on_top_id(chain_id)
    lease.claim([own_id])
    directory = store.layer_directory(own_id)
    if not is_complete(directory):
        paths = layer_paths(below) if below else ()
        with store.blobs.open(blob.digest) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_complete(directory):
                userns_helper.call(_unpack, store, blob.digest, directory, diff_id, None, paths)
    settle(directory)
    return directory / CONTENT


def extract_blob(
    file: BinaryIO, root: int, diff_id: Digest | None, how: Extraction, below: View | None = None
) -> dict[str, object]:
    """Extract the blob of a layer to a directory and check its diff id. Return the facts to record about the layer.

    Raises:
        NotInLayerError: it names a file or directory that is neither in it nor below.
        ImageError: the blob is malformed, or does not match its diff id.
    """
    from containerkit.image.digest import Digest as AnyDigest

    expected = diff_id or AnyDigest.of(b"")
    state = expected.hasher()
    with Plain(file, limits=how.limits) as stream:
        found = extract(stream, root, state, how, stream.compressed, below)
    if diff_id is not None:
        diff_id.check(state, "layer, uncompressed")
    facts = {"entries": found.entries, "bytes": found.bytes, "implied": found.implied, "skipped": list(found.skipped)}
    facts[ORIGINS] = True
    return facts | {UNNAMED: [os.fsdecode(b"/".join(parts)) for parts in found.unnamed]}


def _unpack(
    store: Store,
    blob: Digest,
    directory: Path,
    diff_id: Digest,
    how: Extraction | None,
    below: tuple[str, ...] | None = None,
) -> None:
    """Unpack a blob whose lock the caller holds: alone, or on top of directories (topmost first; empty for none)."""
    new = store.root / "layers" / f".new-{token_hex(8)}"
    try:
        new.mkdir(mode=0o711)
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refused("mkdir", new, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the collection deletes only unlocked directories
        (new / CONTENT).mkdir()
        (new / CONTENT).chmod(0o755)
        root = os.open(new / CONTENT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with store.blobs.open(blob) as file:
                view = View(below) if below else None
                facts = extract_blob(file, root, diff_id, how or Extraction.for_user(limits=store.limits), view)
        except NotInLayerError as error:
            if below is not None:
                raise
            remove_tree(new / CONTENT)
            facts = {_NOT_ALONE: str(error)}
        finally:
            os.close(root)
        place_layer(store, new, directory, facts)
    except BaseException:
        remove_tree(new)
        raise
    finally:
        os.close(lock)


def place_layer(store: Store, new: Path, directory: Path, facts: dict[str, object]) -> None:
    """Move a finished layer to its place, with a marker that it is complete.

    Args:
        store: the store.
        new: its present directory.
        directory: its final directory.
        facts: facts to record about it.
    """
    replace_file(new / _MARKER, _marker(facts, durable=False))
    for parent in (store.layers, directory.parent):
        parent.mkdir(exist_ok=True, mode=0o711)
    if directory.exists():
        directory.rename(store.root / "trash" / token_hex(8))  # left by a crash of the machine
    new.rename(directory)


def _marker(facts: dict[str, object], *, durable: bool) -> bytes:
    return json.dumps(facts | {"durable": durable, "boot": _BOOT.read_text().strip()}).encode()


def is_complete(directory: Path) -> bool:
    """Return whether a layer is complete: it was unpacked after the last boot, or is known to be on disk."""
    return _is_valid(_facts(directory))


def _is_valid(facts: dict[str, Any]) -> bool:
    return bool(facts) and (bool(facts["durable"]) or facts["boot"] == _BOOT.read_text().strip())


def facts_of(directory: Path) -> dict[str, Any]:
    """Return the facts that are recorded about a layer, or nothing if it is not complete."""
    facts = _facts(directory)
    return facts if _is_valid(facts) else {}


def add_fact(directory: Path, name: str) -> None:
    """Record another fact about a layer. The record becomes durable later, like the layer."""
    replace_file(directory / _MARKER, _marker(_facts(directory) | {name: True}, durable=False))


def _facts(directory: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((directory / _MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def on_top_id(chain_id: Digest) -> Digest:
    """Return the id of a layer that was unpacked on top of others; ``chain_id`` identifies it together with them."""
    from containerkit.image.digest import Digest as AnyDigest

    return AnyDigest.of(f"on top {chain_id}".encode())


def settle(directory: Path) -> None:
    """Make a layer durable after the kernel has had time to write it. Then this costs almost nothing."""
    marker = directory / _MARKER
    with suppress(OSError, ValueError):
        if time.time() - marker.stat().st_mtime < _SETTLE_S:
            return
        facts = json.loads(marker.read_bytes())
        if facts["durable"]:
            return
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        finally:
            os.close(descriptor)
        replace_file(marker, _marker(facts, durable=True))


def layer_paths(directories: Sequence[Path]) -> tuple[str, ...]:
    """Return the directories for overlayfs: topmost first, each once, nothing below a layer whose root is opaque.

    A layer that is in the stack twice counts only where it is topmost. Its content is the same, and overlayfs refuses
    a repeated directory.

    Args:
        directories: the directories of the layers, lowest first.

    Raises:
        ImageError: there are no layers.

    Source: Documentation/filesystems/overlayfs.rst.
    """
    found: list[str] = []
    for directory in reversed(directories):
        path = os.fspath(directory)
        if path not in found:
            found.append(path)
        if _has_opaque_root(path):
            break
    if not found:
        raise ImageError("the image has no layers, so it has no root filesystem to run in")
    return tuple(found)


def _has_opaque_root(path: str) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"y":
                return True
    return False
