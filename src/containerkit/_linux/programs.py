"""Programs of the host."""

from __future__ import annotations

import os

__all__ = ["which"]


def which(name: str) -> str | None:
    """Return the path of a program in ``PATH``, as :func:`shutil.which` does, whose module takes longer to import.

    Args:
        name: its name, without a slash.
    """
    for directory in os.get_exec_path():
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and not os.path.isdir(path):
            return path
    return None
