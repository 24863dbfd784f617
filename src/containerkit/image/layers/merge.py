"""One folder for a whole stack of layers, so that a start costs the same however many there are.

It is made of the layers' own files, by hard links: only folders take room. Containers never write to it, so the layers
stay what they are.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import EMLINK, EPERM, EXDEV
from typing import TYPE_CHECKING, Final

from containerkit import deputy
from containerkit.image.layers.attributes import is_kept
from containerkit.image.layers.unpack import CONTENT, has_implied, is_whole, place_layer, settle
from containerkit.image.layers.view import View
from containerkit.image.store.locks import locked, workspace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from containerkit.image.digest import Digest
    from containerkit.image.layers.view import Parts
    from containerkit.image.store import Lease, Store

__all__ = ["FEWEST", "merge_layers"]

FEWEST: Final = 3
"""Fewer layers than this are handed to overlayfs as they are, unless one has folders that it does not name: overlayfs
would take what those are from it, not from the layers below."""


def merge_layers(store: Store, folders: Sequence[str], chain_id: Digest, lease: Lease) -> tuple[str, ...]:
    """Return one folder that holds what a stack of unpacked layers shows, made when it is not there yet.

    Args:
        store: where they are.
        folders: of the layers, topmost first.
        chain_id: what names the whole stack.
        lease: a claim that will cover the folder.

    Returns:
        That folder alone; the layers as they are where there are few, or where their files can't be linked.

    Source: OCI image specification, config.md, "Layer ChainID"; link(2).
    """
    if len(folders) < FEWEST and not any(has_implied(folder) for folder in folders[:-1]):
        return tuple(folders)
    lease.claim([chain_id])
    folder = store.layer_folder(chain_id)
    if not is_whole(folder):
        with locked(store.root / "layers/.merging", exclusive=True):
            if not is_whole(folder) and not deputy.call(_merge, store, tuple(folders), folder):
                return tuple(folders)
    settle(folder)
    return (str(folder / CONTENT),)


def _merge(store: Store, folders: Sequence[str], folder: Path) -> bool:
    with workspace(store.root / "layers") as new:
        new.chmod(0o711)
        view = View(folders)
        try:
            (new / CONTENT).mkdir()
            _fill(view, (), os.fsencode(new / CONTENT))
        except OSError as error:
            if error.errno in (EMLINK, EPERM, EXDEV):
                return False
            raise
        place_layer(store, new, folder, {"merged": len(folders)})
    return True


def _fill(view: View, parts: Parts, target: bytes) -> None:
    """Link the files of a folder and make its folders; its own attributes come last, since filling it changes them."""
    for name in view.names(parts):
        found = view.find((*parts, name))
        if found is None:
            continue
        place = target + b"/" + name
        if found.is_folder:
            os.mkdir(place, 0o700)
            _fill(view, (*parts, name), place)
        else:
            os.link(found.path, place, follow_symlinks=False)
    own = view.find(parts)
    if own is not None:
        _dress(target, own.path, own.status)


def _dress(target: bytes, source: bytes, status: os.stat_result) -> None:
    with suppress(PermissionError):
        os.chown(target, status.st_uid, status.st_gid)
    for name in os.listxattr(source):
        if is_kept(name):
            os.setxattr(target, name, os.getxattr(source, name))
    os.chmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
