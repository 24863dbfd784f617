"""The named volumes of projects: those of :mod:`containerkit.volume`, by what a project says of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from containerkit import volume
from containerkit.volume.volume import place_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.image import Image

__all__ = ["existing", "make", "path_of", "remove"]


def path_of(name: str) -> str:
    """Return the directory of a volume and its record."""
    return place_of(name)


def make(name: str, labels: Mapping[str, str], image: Image | None, target: str) -> str:
    """Return the directory of a volume's files; it is made when it is missing, and filled while it is empty.

    Args:
        name: of the volume.
        labels: free strings.
        image: where its first content comes from, or None.
        target: the path in the image; empty for nothing.

    Raises:
        SetupError: it can't be made.
    """
    return volume.used(name, image, target, labels=labels).path


def existing(name: str) -> str:
    """Return the directory of a volume's files.

    Raises:
        StateError: there is none of that name.
    """
    return volume.get(name).path


def remove(name: str) -> bool:
    """Remove a volume with all that is in it; whether there was one.

    Raises:
        CleanupError: something could not be removed.
    """
    if not os.path.isdir(path_of(name)):
        return False
    volume.get(name).remove()
    return True
