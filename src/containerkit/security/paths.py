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

__all__ = ["MASKED", "READONLY", "make_readonly", "mask", "may_exist"]

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


EMPTY, NULL = Slot("empty directory"), Slot("null device")


def open_covers() -> list[Operation]:
    """Return the operations that open the sources of masks, for masks after the staging is unmounted."""
    return [
        calls.open_at(k.AT_FDCWD, b"/masked", k.O_PATH | k.O_DIRECTORY, EMPTY, target="empty directory"),
        calls.open_at(k.AT_FDCWD, b"/dev/null", k.O_PATH, NULL, target="null device"),
    ]


def mask(root: Slot, path: str, target: str, *, opened: bool = False) -> list[Operation]:
    """Return the operations that mount an empty directory or /dev/null over a path. None if it does not exist.

    Both come from the staging filesystem, so nobody inside can have replaced them (CVE-2025-31133). The arguments are
    those of :func:`make_readonly`; ``opened`` says whether they come from :func:`open_covers`.
    """
    at, tree = Slot("covered"), Slot("cover")
    over = [calls.move_mount(tree, at, b"", target=target), calls.close(tree), calls.close(at)]
    if opened:
        empty = calls.open_tree(EMPTY, b"", tree, target="empty directory")
        null = calls.open_tree(NULL, b"", tree, target="null device")
    else:
        empty = calls.open_tree(k.AT_FDCWD, b"/masked", tree, target="empty directory")
        null = calls.open_tree(k.AT_FDCWD, b"/dev/null", tree, target="null device")
    directory, file = [empty, *over], [null, *over]
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
