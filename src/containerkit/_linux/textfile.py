"""Short text files of the kernel, which may be absent."""

from __future__ import annotations

__all__ = ["read_or_empty"]


def read_or_empty(path: str) -> str:
    """Return a file's text without the white space around it, or an empty string if it can't be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
