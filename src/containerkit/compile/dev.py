"""The /dev of a container: one that all containers of the process share, or its own where a mount adds names to it.

Decision 0267 has the reasons.
"""

from __future__ import annotations

from containerkit._native import constants as k
from containerkit.compile import mounts
from containerkit.compile.facts import ROOT
from containerkit.plan import calls
from containerkit.plan.operation import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.facts import Node
    from containerkit.plan.operation import Operation
    from containerkit.spec.container import Spec
    from containerkit.spec.mount import Mount

__all__ = ["DIRECTORIES", "LINKS", "NODES", "attach", "close_for_writing", "is_own", "make_node"]

NODES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""The device nodes, with their major and minor numbers. Source: the kernel's admin-guide/devices.txt."""
LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
DIRECTORIES: Final = ("pts", "shm", "mqueue", "net")

_CONSOLE: Final = "console"
"""The null device: a container has no console."""
_DEV: Final = Slot("dev")
_THERE: Final = frozenset((*NODES, *DIRECTORIES, _CONSOLE))
_RULE_HINT: Final = "with Limits(devices=...), the rule of a device that is shown needs the letter m, such as 'rwm'"
_WRITABLE: Final = ("shm/", "mqueue/")


def is_own(spec: Spec) -> bool:
    """Return whether the container needs a /dev of its own, because a mount has a target that the shared one lacks."""
    targets = [mount.target for mount in spec.mounts]
    return "/dev" not in targets and any(
        target.startswith("/dev/") and target[5:] not in _THERE and not target[5:].startswith(_WRITABLE)
        for target in targets
    )


def attach(spec: Spec) -> list[Operation]:
    """Return the operations that attach /dev. The slot ``dev`` holds it."""
    shared = mounts.attach(_DEV, ROOT, "/dev", directory=True, kept=_DEV)
    return [*shared, *_own()] if is_own(spec) else shared


def _own() -> list[Operation]:
    """Cover the shared /dev by a filesystem with the same nodes, which are bound, so that no privilege is needed."""
    own, tree = Slot("own dev"), Slot("tree")
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
    steps = calls.new_mount("tmpfs", {"mode": "755", "size": "64k"}, own, attributes=attributes)
    # Older kernels attach nothing to a detached tree, and clone nothing from one: both are attached by now.
    steps.append(calls.move_mount(own, _DEV, b"", target="/dev"))
    for name in (*NODES, _CONSOLE):
        steps += [
            calls.make_node(own, name.encode(), 0o100666),
            calls.open_tree(_DEV, name.encode(), tree, target=f"/dev/{name}"),
            calls.move_mount(tree, own, name.encode(), target=f"/dev/{name}"),
            calls.close(tree),
        ]
    steps += [calls.make_symlink(own, name.encode(), content.encode()) for name, content in LINKS.items()]
    steps += [calls.make_directory(own, name.encode()) for name in DIRECTORIES]
    return [*steps, calls.close(_DEV), *mounts.keep(own, _DEV, "/dev")]


def make_node(mount: Mount, node: Node, tree: Slot) -> list[Operation]:
    """Return the operations, outside, that make a node anew and clone a detached mount of it alone.

    The host's own node belongs to ids that the container does not have, and its filesystem can't be id-mapped. This
    one can, so that root of the container may do with it what root of the host may do with the other.
    """
    memory = Slot("memory")
    return [
        *calls.new_mount("tmpfs", {"mode": "755", "nr_inodes": "2"}, memory),
        calls.make_node(memory, b"node", node.mode, node.device, target=mount.source, hint=_RULE_HINT),
        calls.call("fchownat", memory, b"node", node.uid, node.gid, 0, target=mount.source),
        calls.call("fchmodat", memory, b"node", node.mode & 0o7777, target=mount.source),
        calls.open_tree(memory, b"node", tree, target=mount.source),
        calls.close(memory),
    ]


def close_for_writing(spec: Spec) -> list[Operation]:
    """Return the operations that make a /dev of the container's own read-only, once the targets in it are made."""
    if not is_own(spec):
        return []
    return [calls.mount_setattr(_DEV, set_flags=k.MOUNT_ATTR_RDONLY, target="/dev")]
