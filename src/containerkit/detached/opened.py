"""Access to the files of a stopped detached container, by a container without a command on its root."""

from __future__ import annotations

import os
from contextlib import contextmanager

import attrs

from containerkit.detached.begin import Begun, root_of
from containerkit.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.container.lifecycle import Container
    from containerkit.detached.container import Detached

__all__ = ["opened"]


@contextmanager
def opened(one: Detached) -> Iterator[Container]:
    """Yield a container with the root of a stopped one, which can't be started at the same time.

    Raises:
        StateError: it is running, was never started, or its root was in memory.
    """
    root = one.resolved_root()
    if root.kind in ("host", "tmpfs") or (root.kind == "overlay" and root.upper is None):
        raise StateError(f"{one!r}: its root was in memory, so its files were removed at its end")
    lock = one.entry.lock()
    try:
        spec = one.description().spec
        network = "host" if spec.network == "host" else "none"
        chosen = root_of(one.entry, spec.rootfs, one.last_run)
        spec = attrs.evolve(
            spec, rootfs=chosen, network=network, publish=(), egress=None, dns=None, hosts=(), limits=None
        )
        container = Begun(spec, one.id)
        container.start()
        try:
            yield container
        finally:
            container.stop()
    finally:
        os.close(lock)
