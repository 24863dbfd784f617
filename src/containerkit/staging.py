"""The staging namespace: what every start needs and none has to build again.

It is a mount namespace, made once for a process, whose root is a small tmpfs with a fully visible proc and sysfs
(inside a user namespace the kernel mounts these only where another is in full sight), a /dev, empty folders to
assemble a root on, and, for ``RootFS.host()``, the skeleton of that root. A start joins it and copies these few mounts
instead of the host's many.

An ordinary user has no right to any of that in the machine's namespaces. For it a user namespace of its own comes first
(the *holder*), and with it a copy of the host's mounts, in which bind sources are cloned (the *view*).
"""

from __future__ import annotations

import os
import select
import threading
from errno import EACCES, EPERM
from typing import TYPE_CHECKING, Final

import attrs

from containerkit import _native, plan
from containerkit._native import constants as k
from containerkit.engine import Program
from containerkit.errors import SetupError, UnsupportedError
from containerkit.idmap import IdMapping, has_ids_to_spare, mapping_text, subordinate
from containerkit.plan import Operation, Plan, Slot

if TYPE_CHECKING:
    from containerkit import hostroot

__all__ = ["LOWERS", "Mappings", "Staging", "is_privileged", "skeleton", "staging"]

Mappings = tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]
"""The id maps of users and of groups."""

LOWERS: Final = 64
"""Folders that wait for the layers of overlays; more are made where they are needed."""

_DEVICES: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "core": "/proc/kcore",
    "ptmx": "pts/ptmx",
}
_FOLDERS: Final = ("proc", "sys", "dev", "host", "masked", "newroot", "upper", "lower")
_PROC = Slot("proc")
_ROOT = Slot("staging root")
_DEV = Slot("dev tree")
_PROC_TREE = Slot("proc tree")
_SYS_TREE = Slot("sys tree")


def is_privileged() -> bool:
    """Whether this process may make namespaces, fresh kernel filesystems and id maps as root.

    A root that is one only in a user namespace, without a pid namespace of its own or without ids to spare, is an
    ordinary user in that: it can't do more.
    """
    if os.geteuid() != 0:
        return False
    with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
                # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
                return all(effective >> bit & 1 for bit in (6, 7, 21)) and _owns_processes() and has_ids_to_spare()
    return False


def _owns_processes() -> bool:
    """Whether the pid namespace is that of the own user namespace. Source: ioctl_ns(2), NS_GET_USERNS."""
    from fcntl import ioctl

    at = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        owner = ioctl(at, k.NS_GET_USERNS)
    except PermissionError:  # it lies outside
        return False
    finally:
        os.close(at)
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)


@attrs.define(eq=False)
class Staging:
    """Owns the descriptors of a staging namespace; they are closed when nobody uses it any more.

    Attributes:
        mount: descriptor of the staging mount namespace.
        holder: descriptor of the user namespace that owns it; -1 when that is the caller's own.
        view: descriptor of the mount namespace with the host's mounts; -1 when that is the caller's own.
        mappings: (uid, gid) mappings of the holder; empty for a privileged caller.
        programs: the folders that ``RootFS.host()`` shows whole.
    """

    mount: int
    holder: int = -1
    view: int = -1
    mappings: Mappings = ((), ())
    programs: tuple[str, ...] = ()

    @property
    def privileged(self) -> bool:
        """Whether it belongs to the caller's own user namespace."""
        return self.holder < 0

    def inputs(self) -> dict[str, int]:
        """Return the slots that a start takes from here."""
        return {"staging": self.mount, "holder": self.holder, "view": self.view}

    def __del__(self) -> None:
        for fd in (self.mount, self.holder, self.view):
            if fd >= 0:
                try:
                    os.close(fd)
                except OSError:  # at interpreter shutdown, or closed by a careless os.closerange
                    continue


class _Keeper:
    """Keeps one staging namespace with and one without the host's skeleton, as long as they are true."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.kept: dict[bool, tuple[tuple[int, ...], Staging]] = {}
        self.mounts: int = -1

    def get(self, *, host: bool) -> Staging:
        from containerkit import hostroot

        with self.lock:
            key = (os.geteuid(), *(hostroot.signature() if host else ()))
            known = self.kept.get(host)
            if known is not None and known[1].privileged and known[0] == key:
                return known[1]
            if self._mounts_changed():
                self.kept = {flag: kept for flag, kept in self.kept.items() if kept[1].privileged}
            if host not in self.kept or self.kept[host][0] != key:
                self.kept[host] = key, _build(host=host)
            return self.kept[host][1]

    def _mounts_changed(self) -> bool:
        """Whether the host's mounts changed since the last time: the view of an ordinary user is then stale."""
        if self.mounts < 0:
            self.mounts = _native.high(os.open("/proc/self/mounts", os.O_RDONLY | os.O_CLOEXEC))
        poll = select.poll()
        poll.register(self.mounts, select.POLLPRI)
        return bool(poll.poll(0))


_keeper = _Keeper()
os.register_at_fork(after_in_child=lambda: setattr(_keeper, "lock", threading.Lock()))


def staging(*, host: bool) -> Staging:
    """Return the staging namespace of this process, making it when there is none or it is out of date.

    Args:
        host: with the skeleton of ``RootFS.host()``.

    Raises:
        SetupError: an operation failed.
        UnsupportedError: this host lets the user make no user namespace.
    """
    return _keeper.get(host=host)


def _build(*, host: bool) -> Staging:
    from containerkit import hostroot

    root = hostroot.read() if host else None
    privileged = is_privileged()
    inputs = {_PROC.name: _native.proc()}
    if privileged:
        steps = [plan.unshare(k.CLONE_NEWNS, "mount namespace"), *_contents(root, privileged=True)]
        steps.append(_open_own("mnt", Slot("mount")))
        program = Program(Plan(tuple(steps)))
        outcome = program.run(inputs, flags=_native.SHARE_FILES | _native.NO_PROCESS)
        return Staging(_native.high(program.slot(outcome, "mount")), programs=root.programs if root else ())
    mappings = own_mappings()
    program = Program(Plan(tuple(_holder(mappings, root))))
    try:
        outcome = program.run(inputs, flags=_native.SHARE_FILES | _native.NO_PROCESS)
    except SetupError as error:
        raise _explained(error) from None
    return Staging(
        _native.high(program.slot(outcome, "mount")),
        _native.high(program.slot(outcome, "holder")),
        _native.high(program.slot(outcome, "view")),
        mappings,
        root.programs if root else (),
    )


def _explained(error: SetupError) -> SetupError:
    """Look for the reason: some hosts let anyone make a user namespace, only to withhold its capabilities."""
    if isinstance(error, UnsupportedError) or error.errno not in (EPERM, EACCES):
        return error
    from containerkit._linux.features import why_no_namespaces

    hint = why_no_namespaces(error.errno)
    return UnsupportedError(error.operation, error.errno, error.target, hint) if hint else error


_passed_on: list[Mappings] = []
"""The ids of the user namespace that this process has entered for its user."""


def pass_on(mappings: Mappings) -> None:
    """Let containers of this process have the ids of the user namespace that it has entered, under the same numbers.

    Args:
        mappings: of that namespace, whose root this process is.
    """
    _passed_on[:] = [(_same(mappings[0]), _same(mappings[1]))]


def _same(mappings: tuple[IdMapping, ...]) -> tuple[IdMapping, ...]:
    # Range by range: one that spans two of the outer namespace's is refused.
    return tuple(IdMapping(m.inside, m.inside, m.count) for m in mappings)


def own_mappings() -> Mappings:
    """Return the (uid, gid) mappings that an ordinary user can have: its ranges, or its own id as root."""
    from shutil import which

    if _passed_on:
        return _passed_on[0]

    uid, gid = os.geteuid(), os.getegid()
    single = (IdMapping(0, uid),), (IdMapping(0, gid),)
    uids, gids = subordinate("/etc/subuid", uid), subordinate("/etc/subgid", uid)
    if not uids or not gids or not which("newuidmap") or not which("newgidmap"):
        return single
    return _with_ranges(uid, uids), _with_ranges(gid, gids)


def _with_ranges(own: int, ranges: tuple[tuple[int, int], ...]) -> tuple[IdMapping, ...]:
    mappings = [IdMapping(0, own)]
    inside = 1
    for first, count in ranges:
        mappings.append(IdMapping(inside, first, count))
        inside += count
    return tuple(mappings)


def _holder(mappings: Mappings, root: hostroot.HostRoot | None) -> list[Operation]:
    """Return the operations of an ordinary user: a user namespace first, in it the view, in it the staging."""
    pid = Slot("pid")
    flags = k.CLONE_NEWUSER | k.CLONE_NEWNS | k.CLONE_FILES | k.CLONE_PARENT
    return [
        plan.clone(flags, "inside", pid=pid, target="user and mount namespace"),
        *(_write_own(mappings, pid) if _passed_on else write_mappings(mappings, pid, helpers=len(mappings[0]) > 1)),
        plan.release(),
        plan.leave(),
        plan.await_release("inside"),
        plan.call("setresgid", 0, 0, 0),
        plan.call("setresuid", 0, 0, 0),
        plan.open_of_process(pid, "ns/user", k.O_RDONLY, Slot("holder")),
        plan.open_of_process(pid, "ns/mnt", k.O_RDONLY, Slot("view")),
        plan.unshare(k.CLONE_NEWNS, "mount namespace"),
        *_contents(root, privileged=False),
        plan.open_of_process(pid, "ns/mnt", k.O_RDONLY, Slot("mount")),
    ]


def write_mappings(mappings: Mappings, pid: Slot, *, helpers: bool) -> list[Operation]:
    """Return the operations that write a process's id maps.

    A single id of one's own needs ``deny`` in setgroups first, lest a group that denies something could be dropped
    (CVE-2014-8989); more than one need the set-uid helpers.

    Source: user_namespaces(7), newuidmap(1).
    """
    if helpers:
        return [_run_helper(name, kind, pid) for name, kind in zip(("newuidmap", "newgidmap"), mappings, strict=True)]
    at = Slot("map")
    return [
        plan.open_of_process(pid, "setgroups", k.O_WRONLY, at),
        plan.write(at, b"deny", "setgroups"),
        plan.close(at),
        *write_map(pid, "uid_map", mapping_text(mappings[0])),
        *write_map(pid, "gid_map", mapping_text(mappings[1])),
    ]


def _write_own(mappings: Mappings, pid: Slot) -> list[Operation]:
    """Return the operations of a namespace's root, who may map what it has itself."""
    texts = zip(("uid_map", "gid_map"), map(mapping_text, mappings), strict=True)
    return [step for name, text in texts for step in write_map(pid, name, text)]


def write_map(pid: Slot, name: str, content: bytes) -> list[Operation]:
    """Return the operations that write one id map; the text is the named block ``name``."""
    at = Slot("map")
    hint = "the ids must be the caller's own, or it must be privileged"
    return [
        plan.open_of_process(pid, name, k.O_WRONLY, at),
        plan.call("write", at, plan.Block(content, name=name), len(content), target=name, hint=hint),
        plan.close(at),
    ]


def _run_helper(name: str, mappings: tuple[IdMapping, ...], pid: Slot) -> Operation:
    from shutil import which

    path = which(name)
    if path is None:
        raise UnsupportedError(name, 2, "", "install the package that has newuidmap (uidmap), or drop the mappings")
    words = [os.fsencode(path), b"PID"]
    for m in mappings:
        words += [b"%d" % m.inside, b"%d" % m.outside, b"%d" % m.count]
    return plan.helper(tuple(words), pid, "the ranges must be the user's in /etc/subuid and /etc/subgid")


def _open_own(name: str, result: Slot) -> Operation:
    return plan.open_at(_PROC, f"self/ns/{name}".encode(), k.O_RDONLY, result)


def _contents(root: hostroot.HostRoot | None, *, privileged: bool) -> list[Operation]:
    """Return the operations that fill a mount namespace of its own with the staging and leave the host's behind."""
    return [
        plan.call("umask", 0),
        plan.propagation(b"/", k.MS_REC | k.MS_PRIVATE),
        *_kernel_trees(privileged=privileged),
        *plan.new_mount("tmpfs", {"mode": "755"}, _ROOT, attributes=k.MOUNT_ATTR_NOSUID),
        # Any folder that is surely there will do to come into this namespace's tree; pivot_root leaves it behind.
        plan.move_mount(_ROOT, k.AT_FDCWD, b"/proc", target="staging"),
        *[plan.make_directory(_ROOT, name.encode()) for name in _FOLDERS],
        *[plan.make_directory(_ROOT, b"lower/%d" % number) for number in range(LOWERS)],
        plan.move_mount(_PROC_TREE, _ROOT, b"proc"),
        plan.move_mount(_SYS_TREE, _ROOT, b"sys"),
        plan.close(_PROC_TREE),
        plan.close(_SYS_TREE),
        *_dev(privileged=privileged),
        *_masked(),
        *(skeleton(root) if root else ()),
        plan.call("fchdir", _ROOT),
        plan.pivot_root(),
        plan.unmount(b"."),
        plan.chdir(b"/"),
        plan.close(_ROOT),
        plan.close(_DEV),
    ]


def _kernel_trees(*, privileged: bool) -> list[Operation]:
    """A user namespace can't mount the proc and sysfs of the host's pid and network namespace, but bind them."""
    if privileged:
        return [*plan.new_mount("proc", {}, _PROC_TREE), *plan.new_mount("sysfs", {}, _SYS_TREE)]
    return [
        plan.open_tree(k.AT_FDCWD, b"/proc", _PROC_TREE, recursive=True),
        plan.open_tree(k.AT_FDCWD, b"/sys", _SYS_TREE, recursive=True),
    ]


def _dev(*, privileged: bool) -> list[Operation]:
    """A /dev that all containers share and none can write to; their terminals and /dev/shm are mounts of their own."""
    steps = plan.new_mount("tmpfs", {"mode": "755", "size": "64k"}, _DEV)
    for name, (major, minor) in _DEVICES.items():
        if privileged:
            steps.append(plan.make_node(_DEV, name.encode(), 0o020666, os.makedev(major, minor)))
        else:
            steps.append(plan.make_node(_DEV, name.encode(), 0o100666))
    steps += [plan.make_symlink(_DEV, name.encode(), content.encode()) for name, content in _LINKS.items()]
    steps += [plan.make_directory(_DEV, name) for name in (b"pts", b"shm", b"mqueue", b"net")]
    steps.append(plan.make_node(_DEV, b"console", 0o100600))
    steps.append(plan.move_mount(_DEV, _ROOT, b"dev"))
    bound = ["console"] if privileged else ["console", *_DEVICES]
    tree = Slot("tree")
    for name in bound:
        source = b"null" if name == "console" else name.encode()
        own = plan.open_tree(_DEV, source, tree) if privileged else plan.open_tree(k.AT_FDCWD, b"/dev/" + source, tree)
        steps += [
            own,
            plan.move_mount(tree, _DEV, name.encode()),
            plan.close(tree),
        ]
    # The filesystem itself: one who may mount inside could make its own mount of it writable again, and leave something
    # there for the others.
    steps += plan.make_filesystem_readonly(_DEV)
    # Devices can be written to nevertheless; their nodes, which may be the host's own, can't be changed.
    flags = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
    steps.append(plan.mount_setattr(_DEV, set_flags=flags, recursive=True, target="dev"))
    return steps


def _masked() -> list[Operation]:
    """Make the empty folder that lies over masked ones."""
    tree = Slot("tree")
    attributes = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    return [
        *plan.new_mount("tmpfs", {"ro": None, "size": "4k", "mode": "555"}, tree, attributes=attributes),
        plan.move_mount(tree, _ROOT, b"masked"),
        plan.close(tree),
    ]


def skeleton(root: hostroot.HostRoot, directory: Slot = _ROOT, below: str = "host/") -> list[Operation]:
    """Return the operations that make the skeleton of ``RootFS.host()`` in a directory, or below it."""
    at = Slot("file")
    steps: list[Operation] = []
    for path, mode in root.folders:
        steps.append(plan.make_directory(directory, os.fsencode(f"{below}{path}"), mode))
    for path, content in root.links:
        steps.append(plan.make_symlink(directory, os.fsencode(f"{below}{path}"), os.fsencode(content)))
    for path, mode, data in root.files:
        flags = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
        name = os.fsencode(f"{below}{path}")
        steps.append(plan.call("openat", directory, name, flags, mode, target=path, result=at))
        if data:
            steps.append(plan.write(at, data, path))
        steps.append(plan.close(at))
    return steps
