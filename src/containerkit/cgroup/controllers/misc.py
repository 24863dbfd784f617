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
    """Return what has to be written so that the limits hold."""
    hint = "misc.capacity of the root group lists the resources that this machine has"
    return [Setting("misc.max", f"{name} {most}".encode(), hint) for name, most in limits.misc]


def report(read: Callable[[str], str | None], version: int) -> dict[str, int]:  # noqa: ARG001 - one form on both
    """Return what is in use of each resource."""
    return flat(read("misc.current"))
