"""Finds the detached containers that use a volume."""

from __future__ import annotations

from containerkit.detached import store
from containerkit.errors import StateError

__all__ = ["users"]


def users(path: str) -> list[str]:
    """Return the ids of the detached containers that mount a directory or a path in it, running or not."""
    from containerkit.detached.container import Detached

    found = []
    for entry in store.entries():
        try:
            mounts = Detached(entry).mounts
        except StateError:  # its record was removed, or is of another version
            continue
        if any(f"{mount.source}/".startswith(f"{path}/") for mount in mounts):
            found.append(entry.id)
    return found
