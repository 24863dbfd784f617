"""Check whether a container can be checkpointed, before anything is made, and find its external mounts."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._linux import criu, mountinfo, procfs
from containerkit.errors import StateError, UnsupportedError
from containerkit.spec.devices import DEVICE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from containerkit._linux.mountinfo import MountInfo
    from containerkit.spec.container import Spec

__all__ = ["DEV", "IMAGES", "MASKED", "ROOT", "SYS", "Subject", "bind_place", "check", "external_mounts"]

ROOT, DEV, MASKED, SYS, IMAGES = "root", "dev", "masked", "sys", "images"
"""The names of what a restore prepares: the root filesystem, the parts that containers share, and the images.

Containers share a /dev, an empty directory and the machine's /sys.

In the directory of a checkpoint the images have the same name."""

_ITS_OWN: Final = frozenset({"proc", "sysfs", "devpts", "tmpfs", "mqueue"})
"""The filesystems whose content CRIU restores."""

_NEW_ALWAYS: Final = ("mount", "pid")
_FOR_STREAMS: Final = "start it with its standard streams from /dev/null, or from and to files inside"


class Subject(NamedTuple):
    """The facts about a running container that a checkpoint needs.

    Attributes:
        name: its name in errors.
        spec: its description, with the root filesystem that its provider made.
        pid, pidfd: those of its init.
        commands: the caller's commands that have not ended.
        landlocked: whether one of its commands was restricted by Landlock.
        supervised: whether the caller decides system calls of one of its processes.
    """

    name: str
    spec: Spec
    pid: int
    pidfd: int
    commands: Sequence[object]
    landlocked: bool
    supervised: bool = False


def bind_place(number: int) -> str:
    """Return where a restore prepares the source of a bind. Binds are numbered from 0 in the order of the spec."""
    return f"bind{number}"


def check(subject: Subject) -> None:
    """Refuse what can't be saved, or would be restored with weaker properties.

    Raises:
        UnsupportedError: it has something that CRIU does not support.
        StateError: a process joined it from the host, or has a file of the host open.
    """
    if os.geteuid() != 0:
        hint = "CRIU needs root: an unprivileged user can't read a container's processes as CRIU does"
        raise UnsupportedError("checkpoint", EPERM, subject.name, hint)
    _check_description(subject)
    if subject.commands:
        listed = ", ".join(f"{command!r}" for command in subject.commands)
        raise StateError(
            f"checkpoint {subject.name}: {listed}: it is a child of the caller, and only descendants of the "
            "container's init can be restored: wait until it ends, or start it in the background from a shell inside"
        )
    _check_files(subject, _members(subject))


def _check_description(subject: Subject) -> None:
    spec = subject.spec
    names = spec.namespaces
    reasons = {
        "CRIU does not see Landlock rules, and would restore the processes without them: pass landlock=None": (
            subject.landlocked or spec.confinement.landlock is not None
        ),
        "its root is served by fuse-overlayfs: pass union='kernel' to its RootFS": spec.rootfs.union == "fuse",
        "its volumes are unions in memory: pass volumes=False to the image's rootfs, or mount something on them": bool(
            spec.rootfs.volumes
        ),
        "the writes to its root are in memory, which is not saved: give it a RootFS.dir(), or an upper "
        "directory": spec.rootfs.kind not in ("dir", "overlay") or spec.rootfs.in_memory,
        "it has devices of the host, whose state is not saved: leave out devices=": any(
            (DEVICE, None) in mount.options for mount in spec.mounts
        ),
        "its filter asks a supervisor, which a restore can't provide": subject.supervised or spec.confinement.notifies,
    }
    for kind in ("mount", "pid", "network", "ipc", "uts", "user", "cgroup", "time"):
        wish = names[kind]
        if wish not in ("new", "host") or (kind in _NEW_ALWAYS and wish != "new"):
            reasons[f"it has joined its {kind} namespace: only a new one can be restored"] = True
    for reason, holds in reasons.items():
        if holds:
            raise UnsupportedError("checkpoint", EOPNOTSUPP, subject.name, reason)


def _members(subject: Subject) -> list[int]:
    """Return the descendants of the init. Refuse other processes in the container."""
    from containerkit.namespace import Kind, Namespace

    own = {subject.pid, *procfs.descendants(subject.pid)}
    with Namespace.from_pidfd(subject.pidfd, Kind.PID) as namespace:
        strangers = set(namespace.members()) - own - set(procfs.descendants(subject.pid))
    strangers = {pid for pid in strangers if os.path.exists(f"/proc/{pid}")}
    if strangers:
        listed = ", ".join(f"{pid} ({_comm(pid)})" for pid in sorted(strangers))
        raise StateError(
            f"checkpoint {subject.name}: {listed}: it joined the container from the host, and would not be restored "
            "with it: wait until it ends"
        )
    return sorted(own - {subject.pid})


def _comm(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "ended"


# --- Open files


def _check_files(subject: Subject, pids: list[int]) -> None:
    """Refuse files of the host, terminals and pipes whose other end is outside."""
    inside = {mount.mount_id for mount in mountinfo.read(subject.pid)}
    ends: dict[str, tuple[set[str], int, int]] = {}
    for pid, fd in _descriptors(pids):
        what = _outside(pid, fd, inside)
        if what.startswith("pipe:"):
            sides, _, _ = ends.setdefault(what, (set(), pid, fd))
            sides.add(_side(pid, fd))
        elif what:
            raise StateError(_leads_outside(subject, pid, fd, what))
    alone = {pipe: (pid, fd) for pipe, (sides, pid, fd) in ends.items() if not sides >= {"read", "write"}}
    for pipe in _held_by_others(set(alone), {subject.pid, *pids}) if alone else ():
        raise StateError(_leads_outside(subject, *alone[pipe], "a pipe"))


def _leads_outside(subject: Subject, pid: int, fd: int, what: str) -> str:
    return (
        f"checkpoint {subject.name}: process {pid} ({_comm(pid)}): its descriptor {fd} leads outside: {what} "
        f"(hint: {_FOR_STREAMS})"
    )


def _descriptors(pids: Iterable[int]) -> Iterator[tuple[int, int]]:
    for pid in pids:
        with suppress(FileNotFoundError):  # it has ended
            for name in os.listdir(f"/proc/{pid}/fd"):
                yield pid, int(name)


def _outside(pid: int, fd: int, inside: set[int]) -> str:
    """Return the host's object to which a descriptor refers, or a pipe that may be shared; empty if neither."""
    try:
        what = criu.stream(pid, fd, inside)
        if what.startswith("pipe:"):
            return what
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
        within = criu.mount_of(pid, fd) in inside
    except (FileNotFoundError, ProcessLookupError):
        return ""
    if what.startswith("tty["):
        return "" if within else f"the terminal {link}"
    # An object that is not a file of a mount has a name with a colon. Files in memory have no visible mount.
    of_none = not link.startswith("/") or link.startswith(("/memfd:", "/SYSV", "/dev/zero (deleted)", "/[aio]"))
    return f"the file {link}" if what.startswith("file[") and not of_none else ""


def _side(pid: int, fd: int) -> str:
    with suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
        for line in file:
            if line.startswith("flags:"):
                return "write" if int(line.split()[1], 8) & os.O_ACCMODE == os.O_WRONLY else "read"
    return "read"


def _held_by_others(pipes: set[str], tree: set[int]) -> set[str]:
    """Return the pipes that other processes have open too."""
    found = set()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        if pid in tree:
            continue
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found |= pipes & {os.readlink(f"/proc/{pid}/fd/{name}")}
    return found


# --- Mounts


def external_mounts(subject: Subject) -> tuple[tuple[str, str], ...]:
    """Return the mount points that the images don't contain, each with the path where a restore prepares its source.

    Raises:
        UnsupportedError: CRIU can't restore a mount.
    """
    mounts = mountinfo.read(subject.pid)
    root = mountinfo.at("/", mounts)
    assert root is not None
    shared = _shared_devices(subject, mounts)
    binds = [mount.target for mount in subject.spec.mounts if mount.type == "bind"]
    found: list[tuple[str, str]] = []
    for mount in mounts:
        path = mount.mount_point
        if mount is root:
            continue
        if mount.device in shared:
            found.append((path, f"{shared[mount.device]}{mount.root}".rstrip("/")))
        elif path in binds:
            found.append((path, bind_place(len(binds) - 1 - binds[::-1].index(path))))
        elif any(path.startswith(f"{target}/") and mount.filesystem not in _ITS_OWN for target in binds):
            hint = "a bind with mounts below its source can't be restored: pass recursive=False to it"
            raise UnsupportedError("checkpoint", EOPNOTSUPP, f"{subject.name}: {path}", hint)
        elif mount.filesystem not in _ITS_OWN and mount.device != root.device:
            hint = f"CRIU can't restore a mount of {mount.filesystem}"
            raise UnsupportedError("checkpoint", EOPNOTSUPP, f"{subject.name}: {path}", hint)
    return tuple(found)


def _shared_devices(subject: Subject, mounts: list[MountInfo]) -> dict[tuple[int, int], str]:
    """Return the devices of the filesystems that all containers share, and where a restore prepares them."""
    given = {mount.target for mount in subject.spec.mounts}
    shared: dict[tuple[int, int], str] = {}
    places = [(DEV, ("/dev",), "tmpfs"), (MASKED, subject.spec.masked_paths, "tmpfs")]
    if subject.spec.namespaces.network == "host":
        places.append((SYS, ("/sys",), "sysfs"))
    for place, paths, filesystem in places:
        for path in paths:
            mount = mountinfo.at(path, mounts)
            if mount is not None and path not in given and mount.filesystem == filesystem:
                shared.setdefault(mount.device, place)
    return shared
