"""What a plan must know of the description, of the caller and of the machine, and the names that its parts share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._native import constants as k
from containerkit.compile.joining import NOTHING_TO_JOIN, Joining
from containerkit.errors import UnsupportedError
from containerkit.plan.operation import Slot

if TYPE_CHECKING:
    from containerkit._linux.hostroot import HostRoot
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec

__all__ = ["Host", "Mode", "Start"]

TTY_GROUP: Final = 5
"""The group of terminals. Source: the OCI's runtime-spec, config-linux.md, default filesystems."""
JOIN_PREFIX: Final = "join "
SKELETON: Final = "skeleton"
MAP_BYTES: Final = 2048
"""Room for the text of an id map in a plan; padded with spaces, which the kernel skips."""

PID: Final = Slot("pid")
ROOT: Final = Slot("root")
USERNS: Final = Slot("userns")
UPPER: Final = Slot("upper")

FILES: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
KERNEL_FS: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


class Host(NamedTuple):
    """What a plan must know of the caller and of the machine.

    Attributes:
        privileged: whether the caller may make id maps and mounts in its own namespaces.
        programs: the directories that ``RootFS.host()`` shows whole.
        terminals: whether terminals can belong to their group, which the container must map for it.
        directories: for each bind of the description whether its source is a directory.
        sets_groups: whether setgroups(2) is allowed inside.
        joins: how it comes into its control groups.
        skeleton: what is to be made of ``RootFS.host()`` at the start itself, since the one in the staging can't be
            id-mapped; None where it can.
        unmapped: the top-level directories of ``programs`` whose filesystems can't be id-mapped.
    """

    privileged: bool
    programs: tuple[str, ...] = ()
    terminals: bool = True
    directories: tuple[bool, ...] = ()
    sets_groups: bool = True
    joins: Joining = NOTHING_TO_JOIN
    skeleton: HostRoot | None = None
    unmapped: frozenset[str] = frozenset()


class Mode(NamedTuple):
    """What becomes of PID 1.

    Attributes:
        init: it is the init; otherwise the command itself.
        command: what is run, or None for a container that waits for ``exec``.
        reads_upper: the writable layer stays within reach of the caller.
        held: the command waits for its argv: the one that it has here stands for any.
    """

    init: bool = True
    command: Command | None = None
    reads_upper: bool = False
    held: bool = False


class Start:
    """One start: what is started, where, and how."""

    def __init__(self, spec: Spec, host: Host, mode: Mode) -> None:
        self.spec = spec
        self.host = host
        self.mode = mode
        self.names = spec.namespaces
        self.binds = [mount for mount in spec.mounts if mount.type == "bind"]
        self.assembles = self.names.mount == "new"
        self.by_fuse = spec.rootfs.kind == "overlay" and spec.rootfs.union == "fuse"
        if not host.privileged and self.names.user == "host":
            raise UnsupportedError("clone", 1, "user namespace 'host'", "only a privileged caller can share its own")

    def is_new(self, kind: str) -> bool:
        """Return whether it gets a new namespace of this kind."""
        return bool(getattr(self.names, kind) == "new")

    def is_joined(self, kind: str) -> bool:
        """Return whether it joins a namespace of this kind."""
        return getattr(self.names, kind) not in ("new", "host")

    @property
    def clones_command(self) -> bool:
        """Whether the command is a child of the init."""
        return self.mode.init and self.mode.command is not None

    @property
    def joins_alone(self) -> bool:
        """Whether stage 2 has to share no memory to join a group, or to set its limit."""
        return bool(self.host.joins.inside())

    @property
    def joins_later(self) -> bool:
        """Whether stage 2 is in its groups later than stage 1 clones it."""
        return self.joins_alone or self.host.joins.new

    def lower_paths(self) -> tuple[str, ...]:
        """Return the directories that the root is assembled from, in the order of their slots."""
        rootfs = self.spec.rootfs
        if self.by_fuse:
            return ()
        return tuple(f"/{name}" for name in self.host.programs) if rootfs.kind == "host" else rootfs.lowers

    def upper_base(self) -> str:
        """The directory that holds upper and work: an overlay wants both on one mount."""
        rootfs = self.spec.rootfs
        assert rootfs.upper is not None
        assert rootfs.work is not None
        return os.path.commonpath((rootfs.upper, rootfs.work))


def lower(number: int) -> Slot:
    """Return the slot of a layer, or of a directory of the root."""
    return Slot(f"lower {number}")


def bind_slot(number: int) -> Slot:
    """Return the slot of a bind of the description."""
    return Slot(f"bind {number}")
