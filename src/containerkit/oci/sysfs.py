"""Mount a sysfs, or if the kernel refuses a new one, the host's, read-only."""

from __future__ import annotations

from errno import ENOENT, EPERM

from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.rootfs import Builder
    from containerkit.oci.tape import Slot

__all__ = ["mount"]

_HINT = (
    "in a user namespace it needs its own network namespace and a /sys without masks: give the container "
    "its own network namespace, or mount with 'ro', which shows the host's"
)
_BARE = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


def mount(builder: Builder, data: list[tuple[str, str | None]], attributes: int, tree: Slot, target: str) -> None:
    """Add the steps that mount a sysfs. If the kernel refuses a read-only one, they bind the host's.

    The host's sysfs shows the devices of its network namespace, in which the container is then. All mounts below it are
    included, such as masks of an outer container. The control groups of the host are hidden.

    Args:
        builder: the root.
        data: the options of the filesystem.
        attributes: ``MOUNT_ATTR_*``.
        tree: the slot for the descriptor of the mount.
        target: the mount point.

    Source: sysfs_init_fs_context() in fs/sysfs/mount.c, mount_too_revealing() in fs/namespace.c.
    """
    tape, what = builder.tape, f"sysfs on {target}"
    read_only = bool(attributes & k.MOUNT_ATTR_RDONLY)
    ok = (EPERM,) if read_only else ()
    refused = builder.new_filesystem("sysfs", data, attributes, tree, what, ok=ok, hint=_HINT)
    builder.attach(tree, target, directory=True, plain=True)
    if not read_only:
        return
    mounted = len(tape) - 1
    for number in refused:
        tape.skip_here(number)
    _bind(builder, attributes, tree, target)
    tape.leap_here(mounted)


def _bind(builder: Builder, attributes: int, tree: Slot, target: str) -> None:
    tape, what = builder.tape, f"/sys of the host on {target}"
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_RECURSIVE
    tape.call("open_tree", k.AT_FDCWD, b"/sys", flags, target=what, result=tree)
    kept = attributes & ~(k.MOUNT_ATTR__ATIME | k.MOUNT_ATTR_NODIRATIME)  # which a user namespace can't change
    builder.set_attributes(tree, kept, propagation=k.MS_PRIVATE, recursive=True, target=what)
    builder.attach(tree, target, directory=True, plain=True)
    groups, empty = tape.slot("target"), tape.slot("empty")
    how = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
    opened = tape.call("openat", tree, b"fs/cgroup", how, 0, target="control groups", result=groups, ok=(ENOENT,))
    builder.new_filesystem("tmpfs", [("size", "0"), ("mode", "755")], _BARE, empty, "mask of the control groups")
    move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
    tape.call("move_mount", empty, b"", groups, b"", move, target="mask of the control groups")
    tape.step(k.STEP_CLOSE, "close", empty)
    tape.step(k.STEP_CLOSE, "close", groups)
    tape.skip_here(opened)
