"""Large files that consist mostly of zeros: which parts an archive contains.

The parts are selected by content alone, in blocks of 1 MiB, so that the same content gives the same bytes on every
filesystem. Holes that a filesystem reports are not read.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOTSUP, ENXIO
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["data_map", "data_stretches"]

_BLOCK: Final = 1 << 20
_FEWEST: Final = 16
"""Files with fewer zero blocks are written completely, because every tool can read that."""
_MOST_STRETCHES: Final = 50_000
_ZEROS: Final = bytes(_BLOCK)

Stretches = tuple[tuple[int, int], ...]


def data_stretches(file: int, size: int) -> Stretches | None:
    """Return (offset, size) of each part of a file that is not all zeros, or None if most of it is data.

    Args:
        file: descriptor, open for reading.
        size: the size of the file in bytes.

    Source: lseek(2), "Seeking file data and holes".
    """
    if size < _FEWEST * _BLOCK:
        return None
    found: list[tuple[int, int]] = []
    held = 0
    for offset in _blocks_with_data(file, size):
        length = min(_BLOCK, size - offset)
        if os.pread(file, length, offset) == _ZEROS[:length]:
            continue
        held += 1
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    if -(-size // _BLOCK) - held < _FEWEST or len(found) > _MOST_STRETCHES:
        return None
    return tuple(found)


def _blocks_with_data(file: int, size: int) -> Iterator[int]:
    """Yield the offset of each block that is not entirely in a hole."""
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == ENXIO:  # the rest is a hole
                return
            if error.errno not in (EINVAL, ENOTSUP):
                raise
            start, end = at, size  # a filesystem without support for holes
        first = max(start // _BLOCK * _BLOCK, at)
        at = min(-(-end // _BLOCK) * _BLOCK, size)
        yield from range(first, at, _BLOCK)


def data_map(stretches: Stretches, size: int) -> bytes:
    """Return the map that precedes the content of a sparse file, padded to whole blocks of the archive.

    Source: GNU tar manual, "PAX Format, Version 1.0".
    """
    listed = [*stretches]
    if not listed or sum(listed[-1]) < size:
        listed.append((size, 0))
    text = b"%d\n" % len(listed) + b"".join(b"%d\n%d\n" % pair for pair in listed)
    return text + bytes(-len(text) % 512)
