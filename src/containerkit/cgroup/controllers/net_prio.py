"""Version 1's net_prio controller sets the priority of the group's packets on each interface.

Source: Documentation/admin-guide/cgroup-v1/net_prio.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.statfiles import flat

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - version 1 only
    """Return the settings that give packets the priority."""
    hint = "name an interface of the caller's network namespace"
    return [Setting("net_prio.ifpriomap", f"{name} {value}".encode(), hint) for name, value in limits.net_prio]


def report(read: Callable[[str], str | None], version: int) -> dict[str, int]:  # noqa: ARG001 - version 1 only
    """Return the priority on each interface."""
    return flat(read("net_prio.ifpriomap"))
