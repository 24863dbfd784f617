"""The directories of volumes on disk, and what killed processes leave there.

=================  =================================================================================================
``NAME``           a volume: ``volume.json``, and its files in ``data``
``NAME/filling``   exists while the files of an image are copied into it
``NAME/data.*``    files that are about to replace those in ``data``, or that were replaced
``.NAME.*``        a volume that is being created or removed
=================  =================================================================================================

Who creates or removes one of the latter two holds a shared lock on the directory that contains the volumes. A sweep
takes the lock alone, so that it only removes what killed processes have left.

Source: flock(2).
"""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from containerkit._linux.places import data_directory
from containerkit.errors import CleanupError, SpecError
from containerkit.start.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FILLING", "changing", "locked", "place_of", "root", "sweep"]

FILLING: Final = "filling"

_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,254}")
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def root() -> str:
    """Return the directory that contains this user's volumes."""
    chosen = os.environ.get("CONTAINERKIT_VOLUMES")
    return os.path.abspath(chosen) if chosen else data_directory("volumes")


def place_of(name: str) -> str:
    """Return the directory of a volume and its record.

    Raises:
        SpecError: the name is invalid.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise SpecError(
            f"volume {name!r:.60}: a name has 1 to 255 letters, digits, '_', '.' and '-', and begins with a letter or "
            "digit"
        )
    return os.path.join(root(), name)


@contextmanager
def locked(path: str, how: int) -> Iterator[None]:
    """Hold a lock on a directory: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.

    Raises:
        BlockingIOError: another process holds it, and ``how`` contains ``fcntl.LOCK_NB``.
    """
    fd = os.open(path, _DIRECTORY)
    try:
        fcntl.flock(fd, how)
        yield
    finally:
        os.close(fd)


@contextmanager
def changing() -> Iterator[None]:
    """Keep sweeps away while a volume is created, replaced or removed."""
    os.makedirs(root(), mode=0o700, exist_ok=True)
    with locked(root(), fcntl.LOCK_SH):
        yield


def sweep() -> tuple[str, ...]:
    """Remove what killed processes have left. Does nothing while another process changes a volume.

    Returns:
        The removed paths.

    Raises:
        CleanupError: a file could not be removed.
    """
    with suppress(FileNotFoundError, BlockingIOError), locked(root(), fcntl.LOCK_EX | fcntl.LOCK_NB):
        found = list(_left())
        if left := [path for path in found if not remove_tree(Path(path))]:
            raise CleanupError(tuple(left))
        return tuple(found)
    return ()


def _left() -> Iterator[str]:
    for name in os.listdir(root()):
        place = os.path.join(root(), name)
        if name.startswith("."):
            yield place
        elif os.path.isdir(place):
            yield from (os.path.join(place, each) for each in os.listdir(place) if each.startswith("data."))
