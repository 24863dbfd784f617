"""Following symbolic links as a container would: its root is where all paths begin and what ``..`` never leaves."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Parts", "follow"]

_MOST_LINKS: Final = 40

Parts = tuple[bytes, ...]


def follow(start: Parts, path: bytes, link_at: Callable[[Parts], bytes | None], *, last: bool = True) -> Parts:
    """Follow a path through its links; what is not there yet is taken as it is written.

    Args:
        start: the folder that the path is relative to, itself without links.
        path: the path; an absolute one begins at the root.
        link_at: returns what the symbolic link at a path points to, or None when there is none.
        last: follow a link at the very end too.

    Raises:
        ImageError: links without an end.

    Source: path_resolution(7).
    """
    done = () if path.startswith(b"/") else start
    waiting = _steps(path)
    links = 0
    while waiting:
        part = waiting.pop()
        if part == b"..":
            done = done[:-1]
            continue
        target = link_at((*done, part)) if waiting or last else None
        if target is None:
            done = (*done, part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise ImageError(f"{os.fsdecode(path)}: links without an end")
        if target.startswith(b"/"):
            done = ()
        waiting += _steps(target)
    return done


def _steps(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
