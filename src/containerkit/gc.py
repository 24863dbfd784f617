"""Garbage collection: remove what killed owners left behind.

Almost nothing outlives its owner: the kernel ends its processes, mounts and namespaces. The rest, such as the
directories of control groups, is recognised and removed by the module that creates it.
:data:`containerkit.late.SWEEPERS` lists these modules. The lock files of id ranges in /run/containerkit/ids stay on
purpose: an unlocked file reserves nothing, and a deleted one could be locked twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from containerkit import late
from containerkit.errors import CleanupError, ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Swept", "gc"]


@attrs.frozen(kw_only=True)
class Swept:
    """The result of :func:`gc`. It is true if nothing is left.

    Attributes:
        removed: what was removed, such as ``"control group /sys/fs/cgroup/..."``.
        left: what could not be removed, and why.
    """

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.left


def gc() -> Swept:
    """Remove what killed owners left behind. Objects of live owners are not touched.

    If one object can't be removed, the others still are, and no error is raised: check ``left``.

    Side effects: kills processes that are still in the control groups of dead owners.
    """
    removed: list[str] = []
    left: list[str] = []
    for kind, place in late.SWEEPERS.items():
        try:
            sweep: Callable[[], tuple[str, ...]] = late.load(place)
            removed += (f"{kind} {name}" for name in sweep())
        except CleanupError as error:
            left += (f"{kind} {name}" for name in error.left)
        except (ContainerError, OSError) as error:
            left.append(f"{kind}: {error}")
    return Swept(removed=tuple(removed), left=tuple(left))
