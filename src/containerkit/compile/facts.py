"""The facts about the caller and the machine that a plan depends on, and the slots that its parts share."""

from __future__ import annotations

import os
from functools import cached_property

from containerkit._native import constants as k
from containerkit.compile.joining import NOTHING_TO_JOIN, Joining
from containerkit.errors import UnsupportedError
from containerkit.plan.operation import Slot
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit._linux.hostroot import HostRoot
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec

__all__ = ["Host", "Mode", "Start"]

TTY_GROUP: Final = 5
"""The group of terminals. Source: the OCI's runtime-spec, config-linux.md, default filesystems."""
JOIN_PREFIX: Final = "join "
SKELETON: Final = "skeleton"
_MOST_NAMES: Final = 3800
"""The bytes for the names of layers in the options of a mount. All options together must fit on one page."""
MAP_BYTES: Final = 2048
"""The bytes for the text of an id map in a plan. It is padded with spaces, which the kernel skips."""

PID: Final = Slot("pid")
ROOT: Final = Slot("root")
USERNS: Final = Slot("userns")
NETWORK: Final = Slot("network")
UPPER: Final = Slot("upper")

FILES: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
KERNEL_FS: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


class Node(NamedTuple):
    """A device node of the host: its mode with its type, its device number, and its owner and group."""

    mode: int
    device: int
    uid: int
    gid: int


class Host(NamedTuple):
    """The facts about the caller and the machine that a plan depends on.

    Attributes:
        privileged: whether the caller may make id maps and mounts in its own namespaces.
        programs: the directories that ``RootFS.host()`` shows completely.
        terminals: whether terminals can belong to the group tty, which the container must map.
        directories: for each bind of the spec, whether its source is a directory.
        nodes: for each bind of the spec, the node to make in its place, or None. Empty if no bind needs one.
        sets_groups: whether setgroups(2) is allowed inside.
        joins: how it joins its control groups.
        skeleton: the skeleton of ``RootFS.host()`` that the start must make, because the one in the staging
            can't be id-mapped. None if it can.
        unmapped: the top-level directories of ``programs`` whose filesystems can't be id-mapped.
    """

    privileged: bool
    programs: tuple[str, ...] = ()
    terminals: bool = True
    directories: tuple[bool, ...] = ()
    nodes: tuple[Node | None, ...] = ()
    sets_groups: bool = True
    joins: Joining = NOTHING_TO_JOIN
    skeleton: HostRoot | None = None
    unmapped: frozenset[str] = frozenset()


class Mode(NamedTuple):
    """The role of PID 1.

    Attributes:
        init: whether it is the init; otherwise it is the command.
        command: the command, or None for a container that waits for ``exec``.
        reads_upper: whether the caller keeps access to the writable layer.
        held: whether the command waits for its argv. Its present argv is a placeholder.
    """

    init: bool = True
    command: Command | None = None
    reads_upper: bool = False
    held: bool = False


class Start:
    """The inputs of one plan: the description, the facts, and the role of PID 1."""

    def __init__(self, spec: Spec, host: Host, mode: Mode) -> None:
        self.spec = spec
        self.host = host
        self.mode = mode
        self.names = spec.namespaces
        self.binds = [mount for mount in spec.mounts if mount.type == "bind"]
        self.nodes = host.nodes or (None,) * len(self.binds)
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
        """Return whether stage 2 must have its own memory before it joins a group or sets the limit of one."""
        return bool(self.host.joins.inside())

    @property
    def network_beside(self) -> bool:
        """Return whether stage 1 makes the network namespace, the slowest step, while stage 2 mounts.

        Both must share their memory and descriptors, and stage 1 must be able to join the new user namespace.
        """
        owned = self.names.user == "host" or (self.names.user == "new" and self.host.privileged)
        return self.is_new("network") and owned and self.assembles and not self.joins_alone

    @property
    def joins_later(self) -> bool:
        """Whether stage 2 joins its groups after stage 1 has cloned it."""
        return self.joins_alone or self.host.joins.new

    def lower_paths(self) -> tuple[str, ...]:
        """Return the directories that the root is assembled from, in the order of their slots."""
        rootfs = self.spec.rootfs
        if self.by_fuse:
            return ()
        if rootfs.kind == "host":
            return tuple(f"/{name}" for name in self.host.programs)
        return rootfs.lowers if self.names_in_base is None or rootfs.base is None else (rootfs.base,)

    @cached_property
    def names_in_base(self) -> list[str] | None:
        """The layers' names below the one mount that has them all, or None if each layer has its own clone.

        Without an id map, root of the container may have no access to the base. The options of a mount must fit
        on one page.
        """
        rootfs = self.spec.rootfs
        if rootfs.base is None or not rootfs.idmap or len(rootfs.lowers) < 2:
            return None
        names = [os.path.relpath(path, rootfs.base) for path in rootfs.lowers]
        paths = [*names, rootfs.upper or "", rootfs.work or ""]
        plain = not any(set(name) & set(":,\\") for name in names)
        return names if plain and sum(len(os.fsencode(path)) + 1 for path in paths) <= _MOST_NAMES else None

    def upper_base(self) -> str:
        """Return the directory that contains upper and work. An overlay needs both on one mount."""
        rootfs = self.spec.rootfs
        assert rootfs.upper is not None
        assert rootfs.work is not None
        return os.path.commonpath((rootfs.upper, rootfs.work))


def lower(number: int) -> Slot:
    """Return the slot of a layer, or of a directory of the root."""
    return Slot(f"lower {number}")


def bind_slot(number: int) -> Slot:
    """Return the slot of a described bind."""
    return Slot(f"bind {number}")
