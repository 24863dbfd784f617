"""Pauses the processes of a detached container.

Its init is not frozen, because it watches the keeper, which the container must not outlive, even if paused. It is moved
to a sibling group, whose name contains the keeper as the owner. After the keeper was killed, this group is swept.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from containerkit.container.attached import group_at
from containerkit.detached.known import NO_GROUP
from containerkit.errors import StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["freeze", "thaw"]


def _beside(place: str) -> str:
    return f"{place}.init"


def _freezers(run: Mapping[str, Any]) -> list[str]:
    """Return the directories of its groups that can be frozen."""
    return [p for p in run["groups"] if any(os.path.exists(f"{p}/{n}") for n in ("cgroup.freeze", "freezer.state"))]


def freeze(name: str, run: Mapping[str, Any]) -> None:
    """Freeze the processes of a run, and return when they are frozen.

    Raises:
        UnsupportedError: it has no group that can be frozen.
        StateError: a group can't be frozen; the processes continue.
    """
    places = _freezers(run)
    group = group_at(name, places)
    if group is None:
        raise UnsupportedError("pause", 95, name, NO_GROUP)
    try:
        for place in places:
            os.makedirs(_beside(place), mode=0o755, exist_ok=True)
            _move(int(run["init"]), _beside(place))
        group.freeze()
    except BaseException:
        _back(run, places)
        raise
    finally:
        group.close()


def thaw(name: str, run: Mapping[str, Any]) -> None:
    """Let the processes of a run continue."""
    places = _freezers(run)
    group = group_at(name, places)
    if group is None:
        raise StateError(f"container {name}: it has no control group")
    try:
        group.thaw()
    finally:
        group.close()
    _back(run, places)


def _back(run: Mapping[str, Any], places: list[str]) -> None:
    for place in places:
        below = [leaf for leaf in run["leaves"] if leaf.startswith(f"{place}/")]
        with suppress(OSError):
            _move(int(run["init"]), (below or [place])[0])
        with suppress(OSError):
            os.rmdir(_beside(place))


def _move(pid: int, place: str) -> None:
    with open(f"{place}/cgroup.procs", "w", encoding="ascii") as file:
        file.write(str(pid))
