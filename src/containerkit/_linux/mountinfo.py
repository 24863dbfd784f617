"""Reads ``/proc/PID/mountinfo``: the mounts that a process sees, in the order in which they were mounted.

It has no heavy imports, because the shortest commands of the OCI runtime use it.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["MountInfo", "at", "below", "covering", "parse", "points_between", "read", "unescape"]


class MountInfo:
    """One mount. Values are equal if all fields are equal. Do not change the fields.

    Attributes:
        mount_id: the id of the mount. A later mount may get the same id after this one is gone.
        parent_id: the mount to which it is attached (itself, for the root of the tree).
        device: ``(major, minor)`` as in ``st_dev`` of its files.
        root: the path inside the filesystem that is visible. It is not ``/`` for a bind mount of a directory.
        mount_point: where it is, below the root of the process.
        options: the options of the mount, such as ``("rw", "nosuid")``.
        shared: the peer group to and from which it propagates, or 0.
        master: the peer group from which it only receives, or 0.
        propagate_from: the nearest peer group of the master that the process can see, or 0.
        unbindable: whether it can't be bind mounted.
        filesystem: the type, such as ``"ext4"`` or ``"fuse.sshfs"``.
        source: the device, or the text that was given instead. It may be empty.
        super_options: the options of the filesystem.

    Source: proc_pid_mountinfo(5).
    """

    __slots__ = (
        "device",
        "filesystem",
        "master",
        "mount_id",
        "mount_point",
        "options",
        "parent_id",
        "propagate_from",
        "root",
        "shared",
        "source",
        "super_options",
        "unbindable",
    )

    def __init__(
        self,
        *,
        mount_id: int,
        parent_id: int,
        device: tuple[int, int],
        root: str,
        mount_point: str,
        options: tuple[str, ...],
        filesystem: str,
        source: str,
        super_options: str,
        shared: int = 0,
        master: int = 0,
        propagate_from: int = 0,
        unbindable: bool = False,
    ) -> None:
        self.mount_id = mount_id
        self.parent_id = parent_id
        self.device = device
        self.root = root
        self.mount_point = mount_point
        self.options = options
        self.filesystem = filesystem
        self.source = source
        self.super_options = super_options
        self.shared = shared
        self.master = master
        self.propagate_from = propagate_from
        self.unbindable = unbindable

    def _fields(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, MountInfo) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    def __repr__(self) -> str:
        return f"<MountInfo {self.mount_id} {self.filesystem} on {self.mount_point}>"

    @property
    def read_only(self) -> bool:
        """Whether this mount refuses writes, independent of the filesystem's own options."""
        return "ro" in self.options


def unescape(text: str) -> str:
    """Decode backslashes with three octal digits, as the kernel writes special characters."""
    if "\\" not in text:
        return text
    head, *parts = text.split("\\")
    pieces = [head.encode(errors="surrogateescape")]
    for part in parts:
        digits, rest = part[:3], part[3:]
        if len(digits) == 3 and not digits.strip("01234567") and digits < "4":
            pieces.append(bytes((int(digits, 8),)) + rest.encode(errors="surrogateescape"))
        else:
            pieces.append(b"\\" + part.encode(errors="surrogateescape"))
    return os.fsdecode(b"".join(pieces))


def parse(line: str) -> MountInfo:
    """Parse one line.

    Args:
        line: the line without its newline.

    Raises:
        ValueError: the line is not in this format.

    Source: proc_pid_mountinfo(5); show_mountinfo() in fs/proc_namespace.c.
    """
    # Spaces inside a field are escaped, but a field may be empty. So each single space separates fields.
    left, separator, right = line.partition(" - ")
    fields, kinds = left.split(" "), right.split(" ", 2)
    if not separator or len(fields) < 6 or len(kinds) != 3:
        raise ValueError(f"not a line of mountinfo: {line!r}")
    groups = {"shared": 0, "master": 0, "propagate_from": 0}
    for field in fields[6:]:  # new tags may be added; the man page says to skip unknown ones
        tag, _, number = field.partition(":")
        if tag in groups:
            groups[tag] = int(number)
    major, _, minor = fields[2].partition(":")
    return MountInfo(
        mount_id=int(fields[0]),
        parent_id=int(fields[1]),
        device=(int(major), int(minor)),
        root=unescape(fields[3]),
        mount_point=unescape(fields[4]),
        options=tuple(fields[5].split(",")),
        filesystem=unescape(kinds[0]),
        source=unescape(kinds[1]),
        super_options=unescape(kinds[2]),
        unbindable="unbindable" in fields[6:],
        **groups,
    )


def read(pid: int | str = "thread-self", proc: str = "/proc") -> list[MountInfo]:
    """Read the mounts that a process sees.

    Args:
        pid: the process, or ``"self"``. Default: the calling thread.
        proc: where a procfs is mounted.

    Raises:
        OSError: ``ENOENT`` if there is no such process, ``EINVAL`` if it is a zombie, ``EACCES`` if the caller may not
            inspect it.

    Source: proc_pid_mountinfo(5).
    """
    with open(f"{proc}/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [parse(line.rstrip("\n")) for line in lines]


def at(path: str, mounts: Iterable[MountInfo]) -> MountInfo | None:
    """Return the mount whose mount point is exactly ``path``, or None. If there are several, return the topmost."""
    found = None
    for mount in mounts:
        if mount.mount_point == path:
            found = mount
    return found


def below(path: str, mounts: Iterable[MountInfo]) -> list[MountInfo]:
    """Return the mounts at and below ``path``. They can be unmounted in reverse order."""
    prefix = path.rstrip("/") + "/"
    return [mount for mount in mounts if mount.mount_point == path or mount.mount_point.startswith(prefix)]


def covering(path: str, mounts: Iterable[MountInfo]) -> MountInfo | None:
    """Return the mount on which ``path`` lies: the topmost one at the nearest mount point.

    Args:
        path: an absolute path without symlinks and ``..``.
        mounts: in the kernel's order.
    """
    found = None
    for mount in mounts:
        point = mount.mount_point.rstrip("/")
        nearer = found is None or len(mount.mount_point) >= len(found.mount_point)
        if nearer and (path == point or path.startswith(point + "/")):
            found = mount
    return found


def points_between(top: str, paths: Iterable[str]) -> list[str]:
    """Return the mount points below a directory that are on or above one of these paths."""
    points = [mount.mount_point for mount in read() if mount.mount_point.startswith(top.rstrip("/") + "/")]
    return [point for point in points if any(f"{path}/".startswith(f"{point}/") for path in paths)]
