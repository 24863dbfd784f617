"""Unpacked layers in the store: one folder for each diff id, made once, whoever asks for it.

A layer is unpacked by itself, unless it says something that only the layers below it can answer: a hard link to a file
of theirs, or a path through a link of theirs. Then it is unpacked on top of them, under a name of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from containerkit import deputy
from containerkit.errors import ImageError
from containerkit.image.config import chain_ids
from containerkit.image.layers.compression import decompress
from containerkit.image.layers.extract import Extraction, extract
from containerkit.image.layers.kernel import sync_filesystem
from containerkit.image.layers.tree import LacksError
from containerkit.image.layers.view import View
from containerkit.image.store.locks import refused, remove_tree, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.store import Lease, Store

__all__ = ["Layer", "extract_blob", "layer_paths", "on_top_id", "unpack_layer", "unpack_layers"]

CONTENT: Final = "fs"
"""The name of the folder within a layer's own that holds its files."""
_MARKER: Final = "layer.json"
_LACKS: Final = "lacks"  # of a layer that can't be unpacked by itself: why
_UNNAMED: Final = "unnamed"
_SETTLE_S: Final = 60.0
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")

Layer = tuple["Descriptor", "Digest"]
"""A layer's blob and its diff id."""


def unpack_layers(
    store: Store, layers: Sequence[Layer], lease: Lease, done: Callable[[Digest], None] = lambda _: None
) -> list[Path]:
    """Unpack layers that are not unpacked yet, several at a time.

    Args:
        store: where their blobs are.
        layers: lowest first.
        lease: a claim that will cover them.
        done: called for each that is ready, from any thread.

    Returns:
        The folder of each, lowest first.

    Raises:
        ImageError: a blob is missing, malformed, or not what its diff id says.
        SetupError: the disk is full.
    """
    lease.claim([diff_id for _, diff_id in layers])

    def one(layer: Layer) -> Path:
        path = unpack_layer(store, *layer, lease)
        done(layer[1])
        return path

    missing = {diff_id: (blob, diff_id) for blob, diff_id in layers if not is_whole(store.layer_folder(diff_id))}
    if len(missing) > 1:
        with deputy.hired(), ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, 8), "unpack") as pool:
            list(pool.map(one, sorted(missing.values(), key=lambda layer: -layer[0].size)))
    found: list[Path] = []
    chain = chain_ids(tuple(diff_id for _, diff_id in layers))
    for layer, chain_id in zip(layers, chain, strict=True):
        path = one(layer)
        if _leans_on_others(path.parent, found):
            path = _unpack_on_top(store, layer, found, chain_id, lease)
        found.append(path)
    return found


def unpack_layer(store: Store, blob: Descriptor, diff_id: Digest, lease: Lease, how: Extraction | None = None) -> Path:
    """Unpack one layer by itself, unless it is unpacked already, as far as that can be; see :func:`unpack_layers`."""
    lease.claim([diff_id])
    folder = store.layer_folder(diff_id)
    if not is_whole(folder):
        with store.blobs.open(blob.digest) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # one process unpacks, the others wait
            if not is_whole(folder):
                deputy.call(_unpack, store, blob.digest, folder, diff_id, how)
    settle(folder)
    return folder / CONTENT


def _leans_on_others(folder: Path, below: Sequence[Path]) -> bool:
    """Return whether what a layer means depends on those below it."""
    facts = _facts(folder)
    if _LACKS in facts:
        return True
    unnamed = facts.get(_UNNAMED)
    if not unnamed or not below:
        return False
    leans: bool = deputy.call(_is_any_link, layer_paths(below), unnamed)
    return leans


def _is_any_link(folders: tuple[str, ...], paths: Sequence[str]) -> bool:
    view = View(folders)
    return any(view.is_link(tuple(os.fsencode(path).split(b"/"))) for path in paths)


def _unpack_on_top(store: Store, layer: Layer, below: Sequence[Path], chain_id: Digest, lease: Lease) -> Path:
    blob, diff_id = layer
    own_id = on_top_id(chain_id)
    lease.claim([own_id])
    folder = store.layer_folder(own_id)
    if not is_whole(folder):
        paths = layer_paths(below) if below else ()
        with store.blobs.open(blob.digest) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_whole(folder):
                deputy.call(_unpack, store, blob.digest, folder, diff_id, None, paths)
    settle(folder)
    return folder / CONTENT


def extract_blob(
    file: BinaryIO, root: int, diff_id: Digest | None, how: Extraction, below: View | None = None
) -> dict[str, object]:
    """Extract a layer's blob into a folder and check its diff id; return what is worth noting about it.

    Raises:
        LacksError: it names a file or folder that is neither in it nor below.
        ImageError: the blob is malformed or not what its diff id says.
    """
    from containerkit.image.digest import Digest as AnyDigest

    expected = diff_id or AnyDigest.of(b"")
    state = expected.hasher()
    descriptor = file.fileno()
    with closing(decompress(file)) as stream:
        found = extract(stream, root, state, how, lambda: os.lseek(descriptor, 0, os.SEEK_CUR), below)
    if diff_id is not None:
        diff_id.check(state, "layer, uncompressed")
    facts = {"entries": found.entries, "bytes": found.bytes, "implied": found.implied, "skipped": list(found.skipped)}
    return facts | {_UNNAMED: [os.fsdecode(b"/".join(parts)) for parts in found.unnamed]}


def _unpack(
    store: Store,
    blob: Digest,
    folder: Path,
    diff_id: Digest,
    how: Extraction | None,
    below: tuple[str, ...] | None = None,
) -> None:
    """Unpack a blob whose lock the caller holds: by itself, or on top of folders (topmost first; none: empty)."""
    new = store.root / "layers" / f".new-{token_hex(8)}"
    try:
        new.mkdir(mode=0o711)
        lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refused("mkdir", new, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the collection deletes only what nobody holds
        (new / CONTENT).mkdir()
        (new / CONTENT).chmod(0o755)
        root = os.open(new / CONTENT, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with store.blobs.open(blob) as file:
                view = View(below) if below else None
                facts = extract_blob(file, root, diff_id, how or Extraction.for_user(), view)
        except LacksError as error:
            if below is not None:
                raise
            remove_tree(new / CONTENT)
            facts = {_LACKS: str(error)}
        finally:
            os.close(root)
        place_layer(store, new, folder, facts)
    except BaseException:
        remove_tree(new)
        raise
    finally:
        os.close(lock)


def place_layer(store: Store, new: Path, folder: Path, facts: dict[str, object]) -> None:
    """Put a finished layer in its place, with the marker that says so.

    Args:
        store: where.
        new: the folder that holds it now.
        folder: its place.
        facts: what is worth noting about it.
    """
    replace_file(new / _MARKER, _marker(facts, durable=False))
    for parent in (store.layers, folder.parent):
        parent.mkdir(exist_ok=True, mode=0o711)
    if folder.exists():
        folder.rename(store.root / "trash" / token_hex(8))  # of before a crash of the machine
    new.rename(folder)


def _marker(facts: dict[str, object], *, durable: bool) -> bytes:
    return json.dumps(facts | {"durable": durable, "boot": _BOOT.read_text().strip()}).encode()


def is_whole(folder: Path) -> bool:
    """Return whether a layer is all there: unpacked since the machine started, or known to be on disk."""
    facts = _facts(folder)
    return bool(facts) and (bool(facts["durable"]) or facts["boot"] == _BOOT.read_text().strip())


def has_implied(content: str) -> bool:
    """Return whether a layer has folders that it does not name, given the folder of its files."""
    return bool(_facts(Path(content).parent).get("implied"))


def _facts(folder: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((folder / _MARKER).read_bytes())
    except (OSError, ValueError):
        return {}
    return facts


def on_top_id(chain_id: Digest) -> Digest:
    """Return what names a layer that was unpacked on top of those below it; ``chain_id`` names it and them together."""
    from containerkit.image.digest import Digest as AnyDigest

    return AnyDigest.of(f"on top {chain_id}".encode())


def settle(folder: Path) -> None:
    """Make a layer durable once the kernel has had the time to write it out anyway, when that costs next to nothing."""
    marker = folder / _MARKER
    with suppress(OSError, ValueError):
        if time.time() - marker.stat().st_mtime < _SETTLE_S:
            return
        facts = json.loads(marker.read_bytes())
        if facts["durable"]:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sync_filesystem(descriptor)
        finally:
            os.close(descriptor)
        replace_file(marker, _marker(facts, durable=True))


def layer_paths(folders: Sequence[Path]) -> tuple[str, ...]:
    """Return what to hand to overlayfs: topmost first, each once, nothing below a layer whose root is opaque.

    A layer that lies there twice counts only where it is topmost: what it brings is the same, and overlayfs refuses
    a folder that it has already.

    Args:
        folders: of the layers, lowest first.

    Raises:
        ImageError: there is none.

    Source: Documentation/filesystems/overlayfs.rst.
    """
    found: list[str] = []
    for folder in reversed(folders):
        path = os.fspath(folder)
        if path not in found:
            found.append(path)
        if _has_opaque_root(path):
            break
    if not found:
        raise ImageError("the image has no layers, so there is no root to run in")
    return tuple(found)


def _has_opaque_root(path: str) -> bool:
    for name in ("trusted.overlay.opaque", "user.overlay.opaque"):
        with suppress(OSError):
            if os.getxattr(path, name) == b"y":
                return True
    return False
