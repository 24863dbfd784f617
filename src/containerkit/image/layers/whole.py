"""All files of an image in one directory, for mounts that show an image beside a container's own root.

An overlay can be mounted only as the root of a container, or inside one from directories that are visible there. So the
layers are merged once, as hard links. Only directories use space.
"""

from __future__ import annotations

from errno import EPERM
from typing import TYPE_CHECKING

from containerkit.errors import SetupError
from containerkit.image.claimed import process_lease
from containerkit.image.digest import Digest
from containerkit.image.layers.merge import merge
from containerkit.image.layers.unpack import CONTENT, is_complete, settle
from containerkit.image.store.locks import locked
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from pathlib import Path

    from containerkit.image import Image
    from containerkit.image.store import Store

__all__ = ["whole_directory"]


def whole_directory(image: Image) -> str:
    """Return a directory with all files of an image. It is shared: never write to it.

    It stays until no process uses it and the store is collected. This process uses it until it ends.

    Args:
        image: the image.

    Raises:
        ImageError: a layer is missing or malformed.
        SetupError: the layers can't be merged, or the disk is full.
    """
    store, lease = image.store, process_lease(image.store)
    directories = image.unpack(lease)
    if len(directories) == 1:
        return directories[0]
    own = Digest.of(f"whole {image.config.chain_ids[-1]}".encode())
    lease.claim([own])
    directory = store.layer_directory(own)
    if not is_complete(directory):
        with userns_helper.kept(), locked(store.root / "layers/.merging", exclusive=True):
            if not is_complete(directory) and not userns_helper.call(_merge, store, directories, directory):
                raise SetupError("merge layers", EPERM, str(directory), "files of the store can't be linked any more")
    settle(directory)
    return str(directory / CONTENT)


def _merge(store: Store, directories: tuple[str, ...], directory: Path) -> bool:
    return merge(store, directories, directory, whole=True)
