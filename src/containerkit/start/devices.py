"""Look up the devices of the host that a container shows, before anything is made."""

from __future__ import annotations

import os
import stat

from containerkit.compile.facts import Node
from containerkit.errors import SpecError
from containerkit.spec.devices import DEVICE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.spec.container import Spec

__all__ = ["device_nodes"]


def device_nodes(spec: Spec, *, privileged: bool, keeps_groups: bool) -> tuple[Node | None, ...]:
    """Return the node to make in place of each described bind, with the host's owner and mode as ids inside.

    Args:
        spec: the description.
        privileged: whether the caller can make nodes. Others show the host's own.
        keeps_groups: whether commands keep the supplementary groups of the caller.

    Raises:
        SpecError: a path is not a device, or nobody inside could open it.
    """
    binds = [mount for mount in spec.mounts if mount.type == "bind"]
    anew = privileged and spec.namespaces.user == "new"
    nodes: list[Node | None] = []
    for mount in binds:
        node = _looked_up(mount.source) if (DEVICE, None) in mount.options else None
        if node is not None and spec.namespaces.user == "new" and not privileged:
            _check_access(mount.source, node, (os.getegid(), *os.getgroups()) if keeps_groups else ())
        nodes.append(node if anew else None)
    return tuple(nodes)


def _looked_up(path: str) -> Node | None:
    """Return a node, or None for a directory of nodes.

    Raises:
        SpecError: it is neither.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISCHR(status.st_mode) and not stat.S_ISBLK(status.st_mode):
        raise SpecError(f"device {path}: it is not a device; use volumes= or --bind for files and directories")
    return Node(status.st_mode, status.st_rdev, status.st_uid, status.st_gid)


def _check_access(path: str, node: Node, groups: tuple[int, ...]) -> None:
    """Refuse a node of the host that the caller's ids may not read and write, because only these are mapped inside."""
    by_others = node.mode & 0o006 == 0o006
    by_group = node.mode & 0o060 == 0o060 and node.gid in groups
    if not by_others and not by_group and node.uid != os.geteuid():
        raise SpecError(
            f"device {path}: its mode is {stat.S_IMODE(node.mode):o}: only its owner and group may use it, and "
            "commands in the container are neither; let others use it (chmod, udev), or start the container as root"
        )
