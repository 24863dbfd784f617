"""The misc controller: countable resources of the hardware, such as encrypted address space ids.

Source: "Misc" in Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.statfiles import flat

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - one form on both
    """Return the settings that apply the limits."""
    hint = "misc.capacity of the root group lists the resources of this machine"
    return [Setting("misc.max", f"{name} {most}".encode(), hint) for name, most in limits.misc]


def report(read: Callable[[str], str | None], version: int) -> dict[str, int]:  # noqa: ARG001 - one form on both
    """Return how much of each resource is in use."""
    return flat(read("misc.current"))
