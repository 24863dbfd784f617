"""Removal of trees whose files may belong to any id of the user."""

from __future__ import annotations

import os
from contextlib import suppress

from containerkit._linux.tree_walk import DIRECTORY, remove

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["remove_tree"]


def remove_tree(path: Path) -> bool:
    """Delete a directory with its content, which may belong to any id of the user. Leave what can't be deleted.

    Returns:
        Whether it is gone.
    """
    _remove(path)
    if not path.exists():
        return True
    from containerkit.start import userns_helper  # late, with all that makes user namespaces

    if userns_helper.key():
        userns_helper.call(_remove, path)
    return not path.exists()


def _remove(path: Path) -> None:
    with suppress(OSError):
        above = os.open(path.parent, DIRECTORY)
        try:
            remove(os.fsencode(path.name), above, ignore_errors=True)
        finally:
            os.close(above)
