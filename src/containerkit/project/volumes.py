"""The named volumes of projects: those of :mod:`containerkit.volume`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from containerkit import volume
from containerkit.volume.place import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.image import Image

__all__ = ["existing", "make", "path_of", "remove"]


def path_of(name: str) -> str:
    """Return the directory of a volume and its record."""
    return place_of(name)


def make(name: str, labels: Mapping[str, str], image: Image | None, target: str) -> str:
    """Return the directory of a volume's files. Create the volume if it is missing, fill it if it is empty.

    Args:
        name: of the volume.
        labels: free strings.
        image: the image that its first content is copied from, or None.
        target: the path in the image; an empty string for no content.

    Raises:
        SetupError: it can't be created.
    """
    return volume.used(name, image, target, labels=labels).path


def existing(name: str) -> str:
    """Return the directory of a volume's files.

    Raises:
        StateError: no such volume.
    """
    return volume.get(name).path


def remove(name: str) -> bool:
    """Remove a volume with all its files. Return whether it existed.

    Raises:
        CleanupError: something could not be removed.
    """
    if not os.path.isdir(path_of(name)):
        return False
    volume.get(name).remove()
    return True
