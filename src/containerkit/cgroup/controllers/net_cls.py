"""Version 1's net_cls controller sets the class of the packets that the group's sockets send.

Source: Documentation/admin-guide/cgroup-v1/net_cls.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.statfiles import integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - version 1 only
    """Return the settings that give packets the class."""
    wish = limits.net_cls_classid
    return [] if wish is None else [Setting("net_cls.classid", b"%d" % wish)]


def report(read: Callable[[str], str | None], version: int) -> int | None:  # noqa: ARG001 - version 1 only
    """Return the class id."""
    return integer(read("net_cls.classid"))
