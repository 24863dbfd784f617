"""Paths of the kernel that containers must not access.

Source: OCI runtime-spec, config-linux.md, "Masked Paths" and "Readonly Paths". The lists are the same as in Docker,
podman and containerd.
"""

from __future__ import annotations

import os
from errno import ENOENT, ENOTDIR

from containerkit._native import constants as k
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot

__all__ = ["MASKED", "READONLY", "attach_mask", "clone_mask", "make_readonly", "mask", "may_exist"]

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""The hidden paths: each is covered by an empty directory, or a file that reads as empty."""

READONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""The read-only paths."""


def may_exist(path: str) -> bool:
    """Return whether a path can exist inside. The kernel shows the same entries of /proc and /sys outside."""
    return not path.startswith(("/proc/", "/sys/")) or os.path.lexists(path)


def make_readonly(root: Slot, path: str, target: str) -> list[Operation]:
    """Return the operations that mount a read-only clone of a path over itself. None if it does not exist.

    Args:
        root: a descriptor of the directory where the path begins.
        path: the path to cover, relative to that.
        target: the path from the container's root, for messages.
    """
    at, tree = Slot("covered"), Slot("cover")
    steps = [
        calls.open_tree(at, b"", tree, recursive=True, target=target),
        calls.mount_setattr(tree, set_flags=k.MOUNT_ATTR_RDONLY, recursive=True, target=target),
        calls.move_mount(tree, at, b"", target=target),
        calls.close(tree),
        calls.close(at),
    ]
    return [_open_if_there(root, path, target, at, 0, len(steps)), *steps]


def clone_mask(path: str) -> Operation:
    """Return the operation that clones what masks a path, for :func:`attach_mask` after the staging is unmounted.

    Only what is needed: the kernel waits a grace period when a clone is closed that was never attached.
    """
    return _clone_cover(_mask_of(path), directory=os.path.isdir(path))


def attach_mask(root: Slot, path: str, target: str) -> list[Operation]:
    """Return the operations that mount what :func:`clone_mask` cloned. The arguments are those of :func:`mask`.

    If the path is not of the kind that it is outside, the start fails.
    """
    at, tree = Slot("covered"), _mask_of(target)
    over = [calls.move_mount(tree, at, b"", target=target), calls.close(at)]
    flags = k.O_DIRECTORY if os.path.isdir(target) else 0
    found = _open_if_there(root, path, target, at, flags, len(over))._replace(tolerate=(ENOENT,))
    return [found, *over, calls.close(tree)]


def _mask_of(path: str) -> Slot:
    return Slot(f"mask of {path}")


def _clone_cover(tree: Slot, *, directory: bool) -> Operation:
    """Clone a cover. It comes from the staging, so nobody inside can have replaced it (CVE-2025-31133)."""
    if directory:
        return calls.open_tree(k.AT_FDCWD, b"/masked", tree, target="empty directory")
    return calls.open_tree(k.AT_FDCWD, b"/dev/null", tree, target="null device")


def mask(root: Slot, path: str, target: str) -> list[Operation]:
    """Return the operations that mount an empty directory or /dev/null over a path. None if it does not exist.

    The arguments are those of :func:`make_readonly`.
    """
    at, tree = Slot("covered"), Slot("cover")
    over = [calls.move_mount(tree, at, b"", target=target), calls.close(tree), calls.close(at)]
    directory = [_clone_cover(tree, directory=True), *over]
    file = [_clone_cover(tree, directory=False), *over]
    directory[-1] = directory[-1]._replace(leap=len(file) + 1)  # it is a directory, so skip the steps for a file
    return [
        _open_if_there(root, path, target, at, k.O_DIRECTORY, len(directory)),
        *directory,
        _open_if_there(root, path, target, at, 0, len(file)),
        *file,
    ]


def _open_if_there(root: Slot, path: str, target: str, at: Slot, flags: int, skip: int) -> Operation:
    step = calls.open_inside(root, path[1:].encode(), k.O_PATH | flags, at, target=target, tolerate=(ENOENT, ENOTDIR))
    return step._replace(skip=skip)
