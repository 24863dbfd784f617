"""The rdma controller limits handles and objects of each RDMA device.

Source: "RDMA" in Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/rdma.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.statfiles import nested

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - one form on both
    """Return the settings that apply the limits."""
    found: list[Setting | Attachment] = []
    for name, wishes in limits.rdma:
        text = " ".join(f"{key}={value}" for key, value in wishes)
        found.append(Setting("rdma.max", f"{name} {text}".encode(), "name an RDMA device that exists"))
    return found


def report(read: Callable[[str], str | None], version: int) -> dict[str, dict[str, int | None]]:  # noqa: ARG001 - one form on both
    """Return how much of each device is in use."""
    return nested(read("rdma.current"))
