"""The /dev of a container: shared by all containers of the process, or its own if a mount adds names to it.

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
_RULE_HINT: Final = "with Limits(devices=...), the rule of a device that is shown must include m, such as 'rwm'"
_WRITABLE: Final = ("shm/", "mqueue/")


def is_own(spec: Spec) -> bool:
    """Return whether the container needs its own /dev, because the shared one does not have the target of a mount."""
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
    """Cover the shared /dev with a filesystem that binds the same nodes. This needs no privileges."""
    own, tree = Slot("own dev"), Slot("tree")
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
    steps = calls.new_mount("tmpfs", {"mode": "755", "size": "64k"}, own, attributes=attributes)
    # Older kernels can't attach to a detached tree or clone from one, so both trees are attached first.
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
    """Return the operations outside that make a new node, and a detached mount of only that node.

    The host's own node belongs to ids that the container does not have, and its filesystem can't be id-mapped. The new
    one can, so root of the container has the same access to it as root of the host has to the original.
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
    """Return the operations that make the container's own /dev read-only after its mount points exist."""
    if not is_own(spec):
        return []
    return [calls.mount_setattr(_DEV, set_flags=k.MOUNT_ATTR_RDONLY, target="/dev")]
