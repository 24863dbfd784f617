"""Merge a stack of layers into one directory, so that the cost of a start does not depend on their number.

The directory contains hard links to the files of the layers, so only directories use space. Containers never write to
it, so the layers do not change.
"""

from __future__ import annotations

import os
from errno import EMLINK, EPERM, EXDEV
from typing import TYPE_CHECKING, Final

from containerkit._linux.tree_walk import DIRECTORY
from containerkit.image.layers.longpath import reached
from containerkit.image.layers.recreate import recreate
from containerkit.image.layers.unpack import CONTENT, has_implied, is_whole, place_layer, settle
from containerkit.image.layers.view import View
from containerkit.image.store.locks import locked, workspace
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from containerkit.image.digest import Digest
    from containerkit.image.layers.view import Found
    from containerkit.image.store import Lease, Store

__all__ = ["FEWEST", "merge_layers"]

FEWEST: Final = 3
"""Smaller numbers of layers are passed to overlayfs directly, unless one has directories that it does not name.
Overlayfs would use the attributes of those directories, not those in the layers below."""


def merge_layers(store: Store, directories: Sequence[str], chain_id: Digest, lease: Lease) -> tuple[str, ...]:
    """Return one directory with the content of a stack of unpacked layers. It is made if it does not exist.

    Args:
        store: the store.
        directories: the directories of the layers, topmost first.
        chain_id: the id of the whole stack.
        lease: a claim that will cover the directory.

    Returns:
        The one directory; or the layers unchanged, if there are few of them or their files can't be linked.

    Source: OCI image specification, config.md, "Layer ChainID"; link(2).
    """
    if len(directories) < FEWEST and not any(has_implied(directory) for directory in directories[:-1]):
        return tuple(directories)
    lease.claim([chain_id])
    directory = store.layer_directory(chain_id)
    if not is_whole(directory):
        with locked(store.root / "layers/.merging", exclusive=True):
            if not is_whole(directory) and not userns_helper.call(_merge, store, tuple(directories), directory):
                return tuple(directories)
    settle(directory)
    return (str(directory / CONTENT),)


def _merge(store: Store, directories: Sequence[str], directory: Path) -> bool:
    with workspace(store.root / "layers") as new:
        new.chmod(0o711)
        view = View(directories)
        try:
            (new / CONTENT).mkdir()
            root = os.open(new / CONTENT, DIRECTORY)
            try:
                recreate(view, (), root, _link)
            finally:
                os.close(root)
        except OSError as error:
            if error.errno in (EMLINK, EPERM, EXDEV):
                return False
            raise
        place_layer(store, new, directory, {"merged": len(directories)})
    return True


def _link(found: Found, name: bytes, directory: int) -> None:
    with reached(found.path) as (at, last):
        os.link(last, name, src_dir_fd=at, dst_dir_fd=directory, follow_symlinks=False)
