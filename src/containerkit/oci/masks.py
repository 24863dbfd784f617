"""The steps that mask paths and set kernel parameters, after all mounts are made."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, ENOTDIR
from stat import S_ISCHR

from containerkit._native import constants as k
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.rootfs import Builder

__all__ = ["masked_paths", "readonly_paths", "sysctls"]

_F_DUPFD_CLOEXEC = 1030
"""Source: linux/fcntl.h."""


def masked_paths(builder: Builder) -> None:
    """Add the steps that hide paths: the host's null device covers a file, an empty filesystem covers a directory.

    One filesystem covers all directories: it is mounted on the first one, and its clones on the others. Linux before
    6.15 does not clone a mount that is mounted nowhere.

    The first process opens the null device before the pivot, outside of the image
    (CVE-2025-31133).
    """
    paths = builder.config.linux.masked_paths
    if not paths:
        return
    status = os.stat("/dev/null")
    if not S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
        raise RuntimeFailure("/dev/null of the host is not the null device: paths can't be masked with it")
    tape = builder.tape
    null, at, tree = tape.slot("null"), tape.slot("target"), tape.slot("tree")
    empty, shared = tape.slot("empty mask"), tape.slot("shared mask")
    tape.call("openat", k.AT_FDCWD, b"/dev/null", k.O_PATH | k.O_CLOEXEC, 0, target="/dev/null", result=null)
    # Until a directory is hidden, the slot of the mount to clone holds the null device, which can't be mounted on one.
    tape.call("fcntl", null, _F_DUPFD_CLOEXEC, 0, target="/dev/null", result=shared)
    read_only = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    builder.new_filesystem("tmpfs", [("size", "0"), ("mode", "755")], read_only, empty, "empty directory for masks")
    move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
    for path in paths:
        mask = f"mask {path}"
        opened = builder.targets.try_open(path, at, ok=(ENOENT, ENOTDIR))
        tape.call("open_tree", null, b"", flags, target="null device", result=tree)
        moved = tape.call("move_mount", tree, b"", at, b"", move, target=mask, ok=(EINVAL, ENOTDIR))
        tape.step(k.STEP_CLOSE, "close", tree)
        tape.call("open_tree", shared, b"", flags, target="empty directory", result=tree)
        again = tape.call("move_mount", tree, b"", at, b"", move, target=mask, ok=(EINVAL, ENOTDIR))
        tape.step(k.STEP_CLOSE, "close", shared)
        tape.call("move_mount", empty, b"", at, b"", move, target=mask)
        tape.call("fcntl", empty, _F_DUPFD_CLOEXEC, 0, target="empty directory", result=shared)
        tape.leap_here(again)
        tape.leap_here(moved)
        tape.step(k.STEP_CLOSE, "close", tree)
        tape.step(k.STEP_CLOSE, "close", at)
        tape.skip_here(opened)
    for slot in (null, empty, shared):
        tape.step(k.STEP_CLOSE, "close", slot)


def readonly_paths(builder: Builder) -> None:
    """Add the steps that put read-only clones over paths."""
    tape = builder.tape
    at, tree = tape.slot("target"), tape.slot("tree")
    for path in builder.config.linux.readonly_paths:
        opened = builder.targets.try_open(path, at, ok=(ENOENT, ENOTDIR))
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH | k.AT_RECURSIVE
        tape.call("open_tree", at, b"", flags, target=path, result=tree)
        builder.set_attributes(tree, k.MOUNT_ATTR_RDONLY, recursive=True, target=f"make {path} read-only")
        move = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
        tape.call("move_mount", tree, b"", at, b"", move, target=f"make {path} read-only")
        tape.step(k.STEP_CLOSE, "close", tree)
        tape.step(k.STEP_CLOSE, "close", at)
        tape.skip_here(opened)


def sysctls(builder: Builder, proc: int) -> None:
    """Add the steps that set kernel parameters of the container's namespaces.

    Args:
        builder: the root.
        proc: the host's procfs, which no process inside can replace (CVE-2025-52881).
    """
    tape = builder.tape
    at = tape.slot("sysctl")
    for name, value in builder.config.linux.sysctl.items():
        path = "sys/" + (name if "/" in name else name.replace(".", "/"))
        text = value.encode()
        hint = "the kernel does not know it, or does not let this container set it"
        tape.call("openat", proc, path.encode(), k.O_WRONLY | k.O_CLOEXEC, 0, target=name, result=at, hint=hint)
        tape.call("write", at, tape.block(text), len(text), target=f"sysctl {name}={value}", hint=hint)
        tape.step(k.STEP_CLOSE, "close", at)
