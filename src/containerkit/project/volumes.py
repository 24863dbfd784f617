"""The named volumes of projects: directories that outlive them.

They lie below ``/var/lib/containerkit/volumes``, each with its files in ``data``. The files have the ids that they have
inside containers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import time
from typing import TYPE_CHECKING

from containerkit.errors import SetupError, SpecError, StateError
from containerkit.image.store import default_root

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.image import Image

__all__ = ["existing", "make", "path_of", "remove"]


def path_of(name: str) -> str:
    """Return the directory of a volume."""
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name):
        raise SpecError(f"volume {name!r:.60}: a name has letters, digits, '_', '.' and '-'")
    return os.path.join(default_root().parent, "volumes", name)


def make(name: str, labels: Mapping[str, str], image: Image | None, target: str) -> str:
    """Return the directory of a volume's files; it is made, and filled from an image, when it is missing.

    Args:
        name: of the volume.
        labels: free strings.
        image: where its first content comes from, or None.
        target: the path in the image.

    Raises:
        SetupError: it can't be made.
    """
    place = path_of(name)
    data = os.path.join(place, "data")
    if os.path.isdir(data):
        return data
    new = f"{os.path.dirname(place)}/.{name}.{os.urandom(4).hex()}"
    try:
        os.makedirs(os.path.join(new, "data"), mode=0o755)
        os.chmod(new, 0o700)
        if image is not None and target:
            _fill(image, target, os.path.join(new, "data"))
        with open(os.path.join(new, "volume.json"), "w", encoding="utf-8") as file:
            json.dump({"labels": dict(labels), "created": time.time()}, file)
        os.rename(new, place)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if os.path.isdir(data):  # another was sooner
            return data
        raise SetupError("mkdir", error.errno or 0, place, "the volume can't be made") from error
    return data


def existing(name: str) -> str:
    """Return the directory of a volume's files.

    Raises:
        StateError: there is none of that name.
    """
    data = os.path.join(path_of(name), "data")
    if not os.path.isdir(data):
        raise StateError(f"volume {name}: there is none of that name, and it is external: make it first")
    return data


def remove(name: str) -> bool:
    """Remove a volume with all that is in it; whether there was one."""
    place = path_of(name)
    if not os.path.isdir(place):
        return False
    shutil.rmtree(place)
    return True


def _fill(image: Image, target: str, data: str) -> None:
    """Copy what the image has at a path, unless a symlink is on the way: it could lead out of the image."""
    for lower in image.rootfs(volumes=False).lowers:
        source = lower
        for part in filter(None, target.split("/")):
            source = os.path.join(source, part)
            if not os.path.lexists(source) or not stat.S_ISDIR(os.lstat(source).st_mode):
                break
        else:
            _copy(source, data)
            return


def _copy(source: str, target: str) -> None:
    for directory, names, files in os.walk(source):
        below = os.path.join(target, os.path.relpath(directory, source))
        _like(directory, below)
        for name in (*names, *files):
            old, new = os.path.join(directory, name), os.path.join(below, name)
            kind = os.lstat(old).st_mode
            if stat.S_ISLNK(kind):
                os.symlink(os.readlink(old), new)
                status = os.lstat(old)
                os.chown(new, status.st_uid, status.st_gid, follow_symlinks=False)
            elif stat.S_ISDIR(kind):
                os.mkdir(new)
            elif stat.S_ISREG(kind):
                shutil.copyfile(old, new)
                _like(old, new)


def _like(old: str, new: str) -> None:
    status = os.stat(old)
    os.chown(new, status.st_uid, status.st_gid)
    os.chmod(new, stat.S_IMODE(status.st_mode))
