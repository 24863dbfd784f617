"""Replace the host's root with the container's.

It calls pivot_root wherever the kernel permits it, with or without ``--no-pivot``. After that the container's mount
namespace has no mount of the host. On an initial ramfs the kernel does not permit it. There ``--no-pivot`` moves the
container's root over the host's, and unmounts what is mounted on the host's. So no path bypasses the masks.

Source: pivot_root(2); Documentation/filesystems/ramfs-rootfs-initramfs.rst.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, ENOTDIR, EPERM

from containerkit._native import constants as k
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.capabilities import Masks
    from containerkit.oci.rootfs import Builder

__all__ = ["leave_host"]

_CAP_SYS_ADMIN = 21
_GONE = (EINVAL, ENOENT, ENOTDIR, EPERM)
"""The errors for a mount that can't be unmounted, or was unmounted together with its parent."""


class _Mount:
    """A line of mountinfo. Source: proc_pid_mountinfo(5)."""

    __slots__ = ("id", "kind", "parent", "path", "whole")

    def __init__(self, line: str) -> None:
        fields = line.split(" ")
        self.id, self.parent = int(fields[0]), int(fields[1])
        self.whole = fields[3] == "/"
        self.path = os.fsencode(fields[4]).decode("unicode_escape").encode("latin-1")
        self.kind = fields[fields.index("-") + 1]

    @property
    def reveals(self) -> bool:
        """Whether the kernel lets another namespace mount such a filesystem while this mount exists."""
        return self.whole and self.kind in ("proc", "sysfs")


def leave_host(builder: Builder, masks: Masks, *, at_home: bool, may_move: bool) -> None:
    """Add the steps that make the container's root the root.

    Args:
        builder: the root.
        masks: the capabilities of the container's program.
        at_home: whether the root is attached over its own path.
        may_move: whether ``--no-pivot`` was given.

    Raises:
        ConfigError: the root would have to be moved, and the program could undo that.
    """
    tape = builder.tape
    mounts = _mounts() if may_move else []
    lowest = next((each for each in mounts if each.id == each.parent), None)
    if lowest is None:
        tape.call("fchdir", builder.root, target="root filesystem")
        tape.call("pivot_root", b".", b".", target="root filesystem", hint="in an initial ramfs pass --no-pivot")
        if builder.parking is not None and not at_home:  # mounted on the host's root, which is below this one now
            tape.call("umount2", b".", k.MNT_DETACH, target="parking")
        tape.call("umount2", b".", k.MNT_DETACH, target="the host's root")
    else:
        if masks.bounding >> _CAP_SYS_ADMIN & 1:
            why = "CAP_SYS_ADMIN can unmount a root that was only moved: leave it out, or start from a mounted root"
            raise ConfigError("process.capabilities.bounding", f"{why} and without --no-pivot")
        _move(builder, mounts, lowest.id, at_home=at_home)
    tape.call("chdir", b"/", target="/")


def _mounts() -> list[_Mount]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return [_Mount(line) for line in file]


def _move(builder: Builder, mounts: list[_Mount], lowest: int, *, at_home: bool) -> None:
    """Add the steps that move the root. The process keeps the host's root until the chroot."""
    tape = builder.tape
    if at_home:
        tape.call("move_mount", builder.root, b"", k.AT_FDCWD, b"/", k.MOVE_MOUNT_F_EMPTY_PATH, target="move the root")
    for mount in reversed(mounts):
        if mount.id == lowest or not (mount.reveals or mount.parent == lowest):
            continue
        target = f"the host's {mount.kind} on {os.fsdecode(mount.path)}"
        gone = tape.call("umount2", mount.path, k.MNT_DETACH, target=target, ok=_GONE)
        if mount.reveals:  # locked by the change of user namespace: cover it instead
            tape.call("mount", b"none", mount.path, b"tmpfs", k.MS_RDONLY, 0, target=target, ok=(ENOENT, ENOTDIR))
            tape.leap_here(gone)
    tape.call("fchdir", builder.root, target="root filesystem")
    tape.call("chroot", b".", target="root filesystem")
