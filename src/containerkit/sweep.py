"""Garbage collection: removes what owners that were killed have left behind.

Almost nothing outlives its owner: processes, mounts and namespaces go with it, the kernel sees to that. What it does
not clean, such as the folders of control groups, each part that makes it can also tell apart and remove;
:data:`SWEEPERS` says where. The lock files of id ranges under /run/containerkit/ids stay on purpose: an unlocked one
holds nothing, and a removed one could be locked twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import CleanupError, ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SWEEPERS", "Swept", "gc"]

SWEEPERS: Final[dict[str, str]] = {
    "control group": "containerkit.cgroup.sweeping:sweep",
    "image": "containerkit.image.store.collect:sweep",
}
"""Who removes what: ``module:function`` by the kind of thing. The function returns the names of what it has removed,
and raises :class:`containerkit.errors.CleanupError` for what it could not."""


@attrs.frozen(kw_only=True)
class Swept:
    """What :func:`gc` did. True in a condition when nothing is left.

    Attributes:
        removed: what is gone, such as ``"control group /sys/fs/cgroup/..."``.
        left: what could not be removed, and why.
    """

    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.left


def gc() -> Swept:
    """Remove what owners that were killed have left behind; what belongs to live ones is not touched.

    One kind of thing that can't be removed does not keep the others from it, so nothing is raised: look at ``left``.

    Side effects: kills processes that are still in the control groups of dead owners.
    """
    removed: list[str] = []
    left: list[str] = []
    for kind, place in SWEEPERS.items():
        try:
            removed += (f"{kind} {name}" for name in _sweeper(place)())
        except CleanupError as error:
            left += (f"{kind} {name}" for name in error.left)
        except (ContainerError, OSError) as error:
            left.append(f"{kind}: {error}")
    return Swept(removed=tuple(removed), left=tuple(left))


def _sweeper(place: str) -> Callable[[], tuple[str, ...]]:
    from importlib import import_module

    module, _, name = place.partition(":")
    found: Callable[[], tuple[str, ...]] = getattr(import_module(module), name)
    return found
