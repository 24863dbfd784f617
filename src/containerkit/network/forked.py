"""Descriptors that forked children must close, because a copy would keep the parent's networks alive."""

from __future__ import annotations

import os
from typing import Protocol, TypeVar

from containerkit.weak import WeakMembers

__all__ = ["closed_in_children"]


class _Detachable(Protocol):
    def detach(self) -> int:
        """Detach the descriptor. Return it, or -1 if there is none. The caller owns it."""


_Kept = TypeVar("_Kept", bound=_Detachable)
_kept: WeakMembers[_Detachable] = WeakMembers()


def closed_in_children(kept: _Kept) -> _Kept:
    """Make forked children close their copy of a socket, or of another object with a descriptor. Return the object."""
    _kept.add(kept)
    return kept


def _let_go() -> None:
    for each in list(_kept):
        fd = each.detach()
        if fd >= 0:
            os.close(fd)
    _kept.clear()


os.register_at_fork(after_in_child=_let_go)
