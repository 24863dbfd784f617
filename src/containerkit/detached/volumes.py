"""Named volumes: directories that outlive containers.

They lie below ``/var/lib/containerkit/volumes`` (of a user: ``$XDG_DATA_HOME``), each with its files in ``data``. The
files have the ids that they have inside containers.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any, Self

import attrs

from containerkit.container.live import checked_id
from containerkit.detached import store
from containerkit.errors import CleanupError, SetupError, StateError
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Volume", "create", "get", "prune", "volumes"]


def _root() -> str:
    return os.path.join(os.path.dirname(store.state_root()), "volumes")


@attrs.frozen(kw_only=True)
class Volume:
    """A named volume.

    Attributes:
        name: by which it is found.
        labels: free strings.
        created_at: in seconds since 1970.
    """

    name: str
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    created_at: float = 0.0

    @property
    def path(self) -> str:
        """The directory of its files."""
        return os.path.join(_root(), self.name, "data")

    def mount(self, target: str, *, readonly: bool = False) -> Mount:
        """Return the mount that shows it in a container."""
        return Mount.bind(self.path, target, readonly=readonly)

    def users(self) -> list[str]:
        """Return the ids of the detached containers that have it, running or not."""
        from containerkit.detached.container import Detached

        found = []
        for entry in store.entries():
            try:
                mounts = Detached(entry).mounts
            except StateError:  # its record is gone, or another version's
                continue
            if any(mount.source == self.path for mount in mounts):
                found.append(entry.id)
        return found

    def remove(self) -> None:
        """Remove it with all that is in it.

        Raises:
            StateError: it is gone, or a detached container has it.
            CleanupError: something could not be removed.
        """
        from pathlib import Path

        from containerkit.image.store.locks import remove_tree

        if users := self.users():
            raise StateError(f"volume {self.name}: container {users[0]} has it: remove that first")
        place = Path(_root()) / self.name
        if not place.is_dir():
            raise StateError(f"volume {self.name}: there is none of that name")
        if not remove_tree(place):
            raise CleanupError((str(place),))

    @classmethod
    def read(cls, name: str) -> Self:
        """Return the one of a name, which must be there."""
        with open(os.path.join(_root(), name, "volume.json"), encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        return cls(name=name, labels=content["labels"], created_at=content["created"])


def create(name: str, *, labels: Mapping[str, str] | None = None, exist_ok: bool = False) -> Volume:
    """Make a volume, empty and root's.

    Args:
        name: 1 to 64 letters, digits, ``_.-``.
        labels: free strings.
        exist_ok: return the one that is there (default False).

    Raises:
        SpecError: no such name.
        StateError: there is one of that name.
        SetupError: it can't be made.
    """
    place = os.path.join(_root(), checked_id(name))
    temporary = os.path.join(_root(), f".{name}.{os.urandom(4).hex()}")
    try:
        return get(name) if exist_ok else _fresh(name)
    except StateError:
        if os.path.lexists(place):
            raise
    try:
        os.makedirs(os.path.join(temporary, "data"), mode=0o755)
        os.chmod(temporary, 0o700)
        with open(os.path.join(temporary, "volume.json"), "w", encoding="utf-8") as file:
            json.dump({"labels": dict(labels or {}), "created": time.time()}, file)
        os.rename(temporary, place)  # as a whole, or not at all
    except OSError as error:
        from pathlib import Path

        from containerkit.image.store.locks import remove_tree

        remove_tree(Path(temporary))
        if os.path.isdir(place):  # another was sooner
            return create(name, labels=labels, exist_ok=exist_ok)
        raise SetupError("mkdir", error.errno or 0, place, "the volume can't be made") from None
    return get(name)


def _fresh(name: str) -> Volume:
    if os.path.lexists(os.path.join(_root(), name)):
        raise StateError(f"volume {name}: there is one of that name already")
    raise StateError(f"volume {name}: there is none")


def get(name: str) -> Volume:
    """Return a volume.

    Raises:
        SpecError: no such name.
        StateError: there is none of that name.
    """
    try:
        return Volume.read(checked_id(name))
    except (OSError, ValueError, KeyError):
        raise StateError(f"volume {name}: there is none of that name: 'containerkit volume ls' shows all") from None


def volumes() -> list[Volume]:
    """Return all volumes of this user, by name."""
    try:
        names = sorted(os.listdir(_root()))
    except FileNotFoundError:
        return []
    return [
        get(name) for name in names if os.path.exists(os.path.join(_root(), name, "volume.json")) and name[0] != "."
    ]


def prune() -> list[str]:
    """Remove the volumes that no detached container has; returns their names.

    Raises:
        CleanupError: one could not be removed.
    """
    unused = [volume for volume in volumes() if not volume.users()]
    for volume in unused:
        volume.remove()
    return [volume.name for volume in unused]
