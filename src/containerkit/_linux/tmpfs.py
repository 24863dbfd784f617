"""How many inodes a tmpfs gets."""

from __future__ import annotations

import os

__all__ = ["inodes_for"]

_FEWEST_INODES, _BYTES_PER_INODE = 1024, 4096


def inodes_for(size: str) -> str:
    """Return how many inodes a tmpfs of a size gets: one for each 4 KiB, at least 1,024.

    Each inode uses about 1 KiB of kernel memory that ``size`` does not count. A file that is not empty uses at least a
    page of 4 KiB, so this limit restricts only empty files.

    Args:
        size: a size that :func:`containerkit.spec.words.size_text` accepts. A percentage refers to the memory of the
            machine.

    Source: tmpfs(5), "nr_inodes".
    """
    text = size.lower().removesuffix("b").removesuffix("i")
    number = int(text.rstrip("kmgt%"))
    if text.endswith("%"):
        return str(max(_FEWEST_INODES, os.sysconf("SC_PHYS_PAGES") * number // 100))
    count = number << {"k": 10, "m": 20, "g": 30, "t": 40}.get(text[-1], 0)
    return str(max(_FEWEST_INODES, count // _BYTES_PER_INODE))
