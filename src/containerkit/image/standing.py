"""What the containers of this process stand on: claimed until it ends, and found again without looking."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.image.digest import Digest
    from containerkit.image.store import Lease, Store

__all__ = ["process_lease", "ready", "release"]

_leases: Final[dict[tuple[int, str], Lease]] = {}
_ready: Final[dict[tuple[int, str, Digest], tuple[str, ...]]] = {}


def process_lease(store: Store) -> Lease:
    """Return this process's claim on what is in a store; it holds until the process ends."""
    key = (os.getpid(), os.fspath(store.root))
    if key not in _leases:
        _leases[key] = store.lease()
    return _leases[key]


def ready(store: Store, digest: Digest, prepare: Callable[[Lease], tuple[str, ...]]) -> tuple[str, ...]:
    """Return the folders of an image, prepared once in this process.

    Args:
        store: where the image is.
        digest: of its manifest.
        prepare: makes the folders, claimed by the lease that it is given.
    """
    key = (os.getpid(), os.fspath(store.layers), digest)
    folders = _ready.get(key)
    if folders is None or not os.path.isdir(folders[0]):
        folders = _ready[key] = prepare(process_lease(store))
    return folders


def release() -> None:
    """Let go of all claims of this process, once none of its containers stands on an image. May be called twice."""
    _ready.clear()
    for key in list(_leases):
        _leases.pop(key).close()
