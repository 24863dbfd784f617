"""Creates, finds and removes volumes.

They are in ``/var/lib/containerkit/volumes`` (of a user: ``$XDG_DATA_HOME/containerkit/volumes``), or in
``$CONTAINERKIT_VOLUMES``. The files of each are in ``data``, with the owner ids that they have in containers.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import attrs

from containerkit import late
from containerkit.errors import CleanupError, SetupError, SpecError, StateError
from containerkit.spec.mount import Mount
from containerkit.start.removal import remove_tree
from containerkit.volume.place import changing, place_of, root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.image import Image

__all__ = ["Volume", "create", "get", "prune", "used", "volumes"]

_RECORD: Final = "volume.json"


@attrs.frozen(kw_only=True)
class Volume:
    """A named volume.

    Attributes:
        name: its name.
        labels: arbitrary strings.
        created_at: in seconds since 1970.
        size_bytes: the limit of the total size of its files; None for no limit.
    """

    name: str
    labels: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    created_at: float = 0.0
    size_bytes: int | None = None
    _project: int | None = attrs.field(default=None, repr=False)

    @property
    def path(self) -> str:
        """The directory of its files."""
        return os.path.join(place_of(self.name), "data")

    @property
    def is_empty(self) -> bool:
        """Whether it contains no files."""
        with os.scandir(self.path) as entries:
            return next(entries, None) is None

    def mount(self, target: str, *, readonly: bool = False) -> Mount:
        """Return its mount for a container."""
        return Mount.bind(self.path, target, readonly=readonly)

    def fill(self, image: Image, target: str) -> bool:
        """Copy the files of an image at a path into it, with owners, modes and times, if it is empty.

        Hard links become separate files. Devices and sockets are omitted.

        Args:
            image: the image.
            target: the path inside. Symlinks in it are followed as inside a container.

        Returns:
            Whether it was filled: False if it is not empty, or the image has no directory there.

        Raises:
            SetupError: a file can't be created, for example because the size limit is reached. The volume is then
                empty.
        """
        from containerkit.volume.filling import fill

        return fill(image, target, self.path, self.users)

    def users(self) -> list[str]:
        """Return the ids of the recorded containers that use it, running or not."""
        return [user for place in late.VOLUME_USERS.values() for user in late.load(place)(self.path)]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write its files to a tar archive, with owners, modes, times and attributes.

        Args:
            path: the file; an existing one is overwritten.

        Raises:
            ImageError: a file changes while it is read, or has a name that archives of layers can't contain.
            OSError: the file can't be written.
        """
        from containerkit.volume.backup import export

        export(self.path, path)

    def replace(self, path: str | os.PathLike[str]) -> None:
        """Replace its files by those of a tar archive. After a failure its own files are unchanged.

        Args:
            path: the archive, compressed or not.

        Raises:
            StateError: a recorded container uses it.
            ImageError: the archive is malformed, or has paths outside the volume.
            SetupError: its files can't be created.
        """
        from containerkit.volume.backup import replace

        self._refuse_users()
        replace(self.path, path)

    def remove(self) -> None:
        """Remove it with all its files.

        Raises:
            StateError: it does not exist, or a recorded container uses it.
            CleanupError: a file could not be removed.
        """
        self._refuse_users()
        place = place_of(self.name)
        aside = _aside(self.name)  # an interrupted removal leaves no volume with half of its files
        with changing():
            try:
                os.rename(place, aside)
            except FileNotFoundError:
                raise StateError(f"volume {self.name}: no such volume") from None
            if self._project is not None:
                from containerkit.volume.quota import unlimited

                unlimited(aside, self._project)
            if not remove_tree(Path(aside)):
                os.rename(aside, place)
                raise CleanupError((place,))

    def _refuse_users(self) -> None:
        if users := self.users():
            raise StateError(f"volume {self.name}: container {users[0]} uses it; remove the container first")

    @classmethod
    def read(cls, name: str) -> Self:
        """Return the volume of a name, which must exist."""
        with open(os.path.join(place_of(name), _RECORD), encoding="utf-8") as file:
            content: dict[str, Any] = json.load(file)
        return cls(
            name=name,
            labels=content["labels"],
            created_at=content["created"],
            size_bytes=content.get("size"),
            project=content.get("project"),
        )


def create(
    name: str | None = None,
    *,
    labels: Mapping[str, str] | None = None,
    size: int | str | None = None,
    exist_ok: bool = False,
) -> Volume:
    """Create an empty volume that belongs to root.

    Args:
        name: 1 to 255 letters, digits, ``_.-`` (default: a random one).
        labels: arbitrary strings.
        size: the limit of the total size of its files, in bytes or for example ``"64M"`` (default: no limit). It is a
            project quota of the filesystem, which needs root, and ext4 or xfs with project quotas enabled.
        exist_ok: return an existing volume of this name (default False).

    Raises:
        SpecError: an invalid name or size.
        StateError: the name is already used.
        UnsupportedError: the filesystem can't limit the size.
        SetupError: it can't be created.

    Source: quotactl(2); docker volume create.
    """
    from containerkit.cgroup import parse_size

    name = os.urandom(32).hex() if name is None else name
    place, limit = place_of(name), None if size is None else parse_size(size)
    if limit is not None and limit <= 0:
        raise SpecError(f"volume {name}: the size {size!r} must be more than 0")
    if os.path.lexists(place):
        if exist_ok:
            return get(name)
        raise StateError(f"volume {name}: it already exists")
    with changing():
        return _made(name, place, limit, dict(labels or {}), exist_ok=exist_ok)


def _aside(name: str) -> str:
    """Return the temporary path of a volume that is being created or removed."""
    return os.path.join(root(), f".{name[:200]}.{os.urandom(4).hex()}")


def _made(name: str, place: str, limit: int | None, labels: dict[str, str], *, exist_ok: bool) -> Volume:
    """Create the directory of a volume under a temporary name, and rename it when it is complete."""
    temporary, project = _aside(name), None
    try:
        os.makedirs(temporary, mode=0o700)
        if limit is not None:
            from containerkit.volume.quota import limited

            taken = {volume._project for volume in volumes()}  # noqa: SLF001 - of this class
            project = limited(temporary, limit, taken=taken)
        os.mkdir(os.path.join(temporary, "data"))
        os.chmod(os.path.join(temporary, "data"), 0o755)
        facts = {"labels": labels, "created": time.time(), "size": limit, "project": project}
        with open(os.path.join(temporary, _RECORD), "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.rename(temporary, place)  # atomic
    except BaseException as error:
        if project is not None:
            from containerkit.volume.quota import unlimited

            unlimited(temporary, project)
        remove_tree(Path(temporary))
        if not isinstance(error, OSError) or isinstance(error, SetupError):
            raise
        if os.path.isdir(place):  # another process was faster
            return create(name, labels=labels, size=limit, exist_ok=exist_ok)
        raise SetupError("mkdir", error.errno or 0, place, "the volume can't be created") from None
    return get(name)


def used(name: str, image: Image | None = None, target: str = "", *, labels: Mapping[str, str] | None = None) -> Volume:
    """Return a volume for a container that mounts it. Create it if it is missing, fill it if it is empty.

    Args:
        name: of the volume.
        image: the image that its first content is copied from (default: none).
        target: the path in the image.
        labels: of a new volume.

    Raises:
        SpecError: the name is invalid.
        SetupError: it can't be created or filled.
    """
    from containerkit.volume.filling import complete

    volume = create(name, labels=labels, exist_ok=True)
    if image is not None and target:
        volume.fill(image, target)
    else:
        complete(volume.path, volume.users)
    return volume


def get(name: str) -> Volume:
    """Return a volume.

    Raises:
        SpecError: the name is invalid.
        StateError: no such volume.
    """
    place_of(name)
    try:
        return Volume.read(name)
    except (OSError, ValueError, KeyError):
        raise StateError(f"volume {name}: no such volume; 'containerkit volume ls' lists all") from None


def volumes() -> list[Volume]:
    """Return all volumes of this user, by name."""
    try:
        names = sorted(os.listdir(root()))
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        if name[0] != "." and os.path.exists(os.path.join(root(), name, _RECORD)):
            with suppress(StateError):  # it was removed in the meantime
                found.append(get(name))
    return found


def prune(*, labels: Mapping[str, str | None] | None = None) -> list[str]:
    """Remove the volumes that no recorded container uses. Return their names.

    Args:
        labels: only volumes with these labels; None stands for any value.

    Raises:
        CleanupError: a volume could not be removed.
    """
    wanted = (labels or {}).items()
    unused = [
        volume
        for volume in volumes()
        if all(key in volume.labels and value in (None, volume.labels[key]) for key, value in wanted)
        and not volume.users()
    ]
    removed = []
    for volume in unused:
        with suppress(StateError):  # it was removed or used in the meantime
            volume.remove()
            removed.append(volume.name)
    return removed
