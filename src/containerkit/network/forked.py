"""What a forked child must let go: with a copy of these descriptors it would keep its parent's networks alive."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar
from weakref import WeakSet

__all__ = ["closed_in_children"]


class _Detachable(Protocol):
    def detach(self) -> int:
        """Return the descriptor, which is the caller's from now on; -1 when there is none."""


_Kept = TypeVar("_Kept", bound=_Detachable)
_kept: WeakSet[_Detachable] = WeakSet()


def closed_in_children(kept: _Kept) -> _Kept:
    """Let forked children close their copy of a socket, or of what else has a descriptor; return it."""
    _kept.add(kept)
    return kept


def _let_go() -> None:
    for each in list(_kept):
        fd = each.detach()
        if fd >= 0:
            os.close(fd)
    _kept.clear()


os.register_at_fork(after_in_child=_let_go)
