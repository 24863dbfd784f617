"""The paths of the kernel that a container has no business with.

Source: OCI runtime-spec, config-linux.md, "Masked Paths" and "Readonly Paths"; the lists are those that Docker, podman
and containerd agree on.
"""

from __future__ import annotations

import os
from errno import ENOENT, ENOTDIR

from containerkit import plan
from containerkit._native import constants as k
from containerkit.plan import Operation, Slot

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
"""What is hidden: an empty folder, or a file that reads as empty."""

READONLY = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
"""What can't be written to."""


def may_exist(path: str) -> bool:
    """Whether a path can be there inside. What the kernel shows in /proc and /sys it shows outside as well."""
    return not path.startswith(("/proc/", "/sys/")) or os.path.lexists(path)


def make_readonly(root: Slot, path: str) -> list[Operation]:
    """Return the operations that put a read-only clone of a path over itself; none where it is not there."""
    at, tree = Slot("covered"), Slot("cover")
    steps = [
        plan.open_tree(at, b"", tree, recursive=True, target=path),
        plan.mount_setattr(tree, set_flags=k.MOUNT_ATTR_RDONLY, recursive=True, target=path),
        plan.move_mount(tree, at, b"", target=path),
        plan.close(tree),
        plan.close(at),
    ]
    return [_open_if_there(root, path, at, 0, len(steps)), *steps]


def mask(root: Slot, path: str) -> list[Operation]:
    """Return the operations that put nothing over a path: an empty folder, or /dev/null; none where it is not there.

    Both are the staging's own, which nobody inside can have replaced (CVE-2025-31133).
    """
    at, tree = Slot("covered"), Slot("cover")
    over = [plan.move_mount(tree, at, b"", target=path), plan.close(tree), plan.close(at)]
    folder = [plan.open_tree(k.AT_FDCWD, b"/masked", tree, target="empty folder"), *over]
    file = [plan.open_tree(k.AT_FDCWD, b"/dev/null", tree, target="null device"), *over]
    folder[-1] = folder[-1]._replace(leap=len(file) + 1)  # it was a folder: it is no file
    return [
        _open_if_there(root, path, at, k.O_DIRECTORY, len(folder)),
        *folder,
        _open_if_there(root, path, at, 0, len(file)),
        *file,
    ]


def _open_if_there(root: Slot, path: str, at: Slot, flags: int, skip: int) -> Operation:
    step = plan.open_inside(root, path[1:].encode(), k.O_PATH | flags, at, target=path, tolerate=(ENOENT, ENOTDIR))
    return step._replace(skip=skip)
