"""Resolve symlinks as in a container: absolute paths begin at its root, and ``..`` never leaves it."""

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
    """Resolve the symlinks of a path. Components that do not exist are kept unchanged.

    Args:
        start: the directory to which the path is relative, without symlinks.
        path: the path. An absolute path begins at the root.
        link_at: returns the target of the symlink at a path, or None if there is no symlink.
        last: whether to follow a symlink in the last component too.

    Raises:
        ImageError: the symlinks form a loop.

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
            raise ImageError(f"{os.fsdecode(path)}: its symlinks form a loop")
        if target.startswith(b"/"):
            done = ()
        waiting += _steps(target)
    return done


def _steps(path: bytes) -> list[bytes]:
    return [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
