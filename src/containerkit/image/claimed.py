"""Claim and cache the images that containers of this process use. The claims last until the process ends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.image.digest import Digest
    from containerkit.image.layers.stack import Stack
    from containerkit.image.store import Lease, Store

__all__ = ["process_lease", "ready", "release"]

_leases: Final[dict[tuple[int, str], Lease]] = {}
_ready: Final[dict[tuple[int, str, Digest], Stack]] = {}


def process_lease(store: Store) -> Lease:
    """Return this process's claim on content of a store. It lasts until the process ends."""
    key = (os.getpid(), os.fspath(store.root))
    if key not in _leases:
        _leases[key] = store.lease()
    return _leases[key]


def ready(store: Store, digest: Digest, prepare: Callable[[Lease], Stack]) -> Stack:
    """Return the directories of an image. They are prepared once for each process.

    Args:
        store: the store that contains the image.
        digest: the digest of its manifest.
        prepare: makes the directories and claims them with the lease that it gets.
    """
    key = (os.getpid(), os.fspath(store.layers), digest)
    stack = _ready.get(key)
    if stack is None or not all(map(os.path.isdir, stack.directories)):
        stack = _ready[key] = prepare(process_lease(store))
    return stack


def release() -> None:
    """Release all claims of this process, when no container uses an image any more. May be called twice."""
    _ready.clear()
    for key in list(_leases):
        _leases.pop(key).close()
