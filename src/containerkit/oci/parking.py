"""A directory outside the container's root for mounts that will be cloned again.

Since Linux 6.8 mountinfo lists mounts in the order in which they were made, not attached. The runtime must clone the
sources of binds before the container has its namespaces, and so before any of the container's own filesystems is
mounted. To list them in the order of the configuration, the first process clones each of them again when its turn
comes. Only an attached mount can be cloned, so it is attached here first. The place disappears with the host's root.

Source: mnt_add_to_ns() and may_copy_tree() in fs/namespace.c.
"""

from __future__ import annotations

import os
from stat import S_IFREG

from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.rootfs import Builder
    from containerkit.oci.tape import Descriptor, Slot

__all__ = ["Parking", "lists_by_age"]

_CLONE = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC


def lists_by_age(are_binds: Sequence[bool]) -> bool:
    """Return whether this kernel would list the mounts in another order than the configuration.

    Args:
        are_binds: for each mount of the configuration whether it is a bind.
    """
    if sorted(are_binds, reverse=True) == list(are_binds):
        return False
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor)) >= (6, 8)


class Parking:
    """The directory, on its own tmpfs.

    Args:
        builder: the root, whose tape takes the steps.
    """

    def __init__(self, builder: Builder) -> None:
        self.tape = builder.tape
        self._tree = self.tape.slot("parking")
        self._new_filesystem = builder.new_filesystem

    def attach(self, place: bytes) -> None:
        """Add the steps that mount it over the directory on which the container's root is mounted next."""
        tape = self.tape
        self._new_filesystem("tmpfs", [("mode", "700")], 0, self._tree, "parking")
        tape.call("mkdirat", self._tree, b"directory", 0o700, target="parking")
        tape.call("mknodat", self._tree, b"file", S_IFREG | 0o600, 0, target="parking")
        flags = k.MOVE_MOUNT_F_EMPTY_PATH
        tape.call("move_mount", self._tree, b"", k.AT_FDCWD, place, flags, target="parking")

    def clone(self, tree: Descriptor, what: str, *, directory: bool) -> Slot:
        """Add the steps that attach a mount tree here, over the previous one, and clone it. Return the clone's slot."""
        name = b"directory" if directory else b"file"
        self.tape.call("move_mount", tree, b"", self._tree, name, k.MOVE_MOUNT_F_EMPTY_PATH, target=f"park {what}")
        found = self.tape.slot(f"tree {len(self.tape)}")
        flags = _CLONE | k.AT_EMPTY_PATH | k.AT_RECURSIVE
        self.tape.call("open_tree", tree, b"", flags, target=what, result=found)
        return found
