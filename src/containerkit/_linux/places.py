"""Directories in which the library keeps things for longer than a process lives."""

from __future__ import annotations

import os

__all__ = ["data_directory"]


def data_directory(name: str) -> str:
    """Return this user's directory on disk: ``/var/lib/containerkit/NAME`` for root, else below ``$XDG_DATA_HOME``.

    Args:
        name: what it contains, such as ``volumes``.

    Source: XDG base directory specification.
    """
    if os.geteuid() == 0:
        return f"/var/lib/containerkit/{name}"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{data}/containerkit/{name}"
