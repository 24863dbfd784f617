"""The staging namespace: mounts that every start needs, made once.

It is a mount namespace, made once for a process, whose root is a small tmpfs with a fully visible proc and sysfs
(inside a user namespace the kernel only mounts these if a fully visible one exists), a /dev, empty directories to
assemble a root on, and, for ``RootFS.host()``, the skeleton of that root. A start joins it and copies these few mounts
instead of the host's many.

An unprivileged user can't do this in the host's namespaces. It first gets its own user namespace (the
*holder*), and with it a copy of the host's mounts, in which bind sources are cloned (the *view*).
"""

from __future__ import annotations

import contextlib
import os
import select
from _thread import allocate_lock
from errno import EACCES, EPERM
from functools import partial

from containerkit import _native
from containerkit._linux.privileges import is_privileged
from containerkit._linux.programs import which
from containerkit._native import constants as k
from containerkit.compile.dev import DIRECTORIES, LINKS, NODES
from containerkit.compile.skeleton import LOWERS, STAGING_ROOT, staged_skeleton, write_map
from containerkit.descriptors import close_all, keep, keep_above
from containerkit.errors import SetupError, UnsupportedError
from containerkit.plan import calls, entries
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.program import Program, proc, was_killed
from containerkit.plan.tape import Plan
from containerkit.spec.idmap import IdMapping, mapping_text
from containerkit.start.id_ranges import subordinate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from containerkit._linux import hostroot
    from containerkit._native.outcome import Outcome

__all__ = ["Mappings", "Staging", "opened", "share_holder", "staging"]

Mappings = tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]
"""The id maps of users and of groups."""


_DIRECTORIES: Final = ("proc", "sys", "dev", "host", "masked", "newroot", "upper", "lower")
_PROC = Slot("proc")
_ROOT = STAGING_ROOT
_DEV = Slot("dev tree")
_PROC_TREE = Slot("proc tree")
_SYS_TREE = Slot("sys tree")


class Staging:
    """Owns the descriptors of a staging namespace. They are closed when it is no longer used.

    Attributes:
        mount: descriptor of the staging mount namespace.
        holder: descriptor of the user namespace that owns it, or -1 for the caller's own.
        view: descriptor of the mount namespace with the host's mounts; -1 if that is the caller's own.
        mappings: (uid, gid) mappings of the holder; empty for a privileged caller.
        nested: the same, range by range, for a namespace in the holder's. One range that spans two is refused.
        programs: the directories that ``RootFS.host()`` shows completely.
        owned: these descriptors, until they are closed. Its maker has the same list.
        privileged: whether it belongs to the caller's own user namespace.
        slots: the inputs of a start from this object.
    """

    __slots__ = ("holder", "mappings", "mount", "nested", "owned", "privileged", "programs", "slots", "view")

    def __init__(
        self,
        mount: int,
        holder: int = -1,
        view: int = -1,
        mappings: Mappings = ((), ()),
        programs: tuple[str, ...] = (),
        owned: list[int] | None = None,
    ) -> None:
        self.owned: list[int] = [] if owned is None else owned
        self.mount, self.holder, self.view, self.mappings, self.programs = mount, holder, view, mappings, programs
        self.nested = _same(mappings[0]), _same(mappings[1])
        self.privileged = holder < 0
        self.slots = {"staging": mount, "holder": holder, "view": view}

    def __del__(self) -> None:
        owned = getattr(self, "owned", [])  # a signal handler may raise before it has them
        while owned:
            with contextlib.suppress(OSError):  # at interpreter shutdown, or closed by an os.closerange of the caller
                close_all(owned)


def _signature_of_etc() -> tuple[int, ...]:
    """Return a key that changes when the machine's /etc does. It is cheap enough for each start."""
    times = []
    for path in ("/etc", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/resolv.conf", "/etc/ld.so.cache"):
        try:
            times.append(os.stat(path).st_mtime_ns)
        except OSError:
            times.append(0)
    return tuple(times)


class _Keeper:
    """Keeps one staging namespace with the host's skeleton and one without, as long as they are up to date."""

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.kept: dict[bool, tuple[tuple[int, ...], Staging]] = {}
        self.mounts: int = -1

    def get(self, *, host: bool) -> Staging:
        with self.lock:
            key = (os.geteuid(), *(_signature_of_etc() if host else ()))
            known = self.kept.get(host)
            if known is not None and known[1].privileged and known[0] == key:
                return known[1]
            proc()  # first, because all facts about this process come from /proc
            if self._mounts_changed():
                self.kept = {flag: kept for flag, kept in self.kept.items() if kept[1].privileged}
            if host not in self.kept or self.kept[host][0] != key:
                self.kept[host] = key, _build(host=host)
            return self.kept[host][1]

    def _mounts_changed(self) -> bool:
        """Return whether the host's mounts changed since the last call. Then an unprivileged user's view is stale."""
        if self.mounts < 0:
            self.mounts = _native.high(os.open("/proc/self/mounts", os.O_RDONLY | os.O_CLOEXEC))
        poll = select.poll()
        poll.register(self.mounts, select.POLLPRI)
        return bool(poll.poll(0))


_keeper = _Keeper()
os.register_at_fork(after_in_child=lambda: setattr(_keeper, "lock", allocate_lock()))


def staging(*, host: bool) -> Staging:
    """Return the staging namespace of this process. Make it if there is none or it is out of date.

    Args:
        host: whether it contains the skeleton of ``RootFS.host()``.

    Raises:
        SetupError: an operation failed.
        UnsupportedError: this host does not let the user make a user namespace.
    """
    return _keeper.get(host=host)


def _build(*, host: bool) -> Staging:
    from containerkit._linux import hostroot

    inputs = {_PROC.name: proc()}
    root = hostroot.read() if host else None
    mappings: Mappings = ((), ())
    if is_privileged():
        try:
            made = _build_privileged(root, inputs, makes_nodes=True)
        except SetupError as error:
            # Without CAP_MKNOD, or because of the device rules of an outer container, which has its own nodes.
            if error.operation != "mknodat" or error.errno != EPERM:
                raise
            made = _build_privileged(root, inputs, makes_nodes=False)
    else:
        made, mappings = _build_unprivileged(root, inputs)
    try:
        mount, holder, view = [*made, -1, -1][:3]
        return Staging(mount, holder, view, mappings, root.programs if root else (), made)
    except BaseException:  # a signal handler raised before they had an owner
        close_all(made)
        raise


class _Holder:
    """The user namespace of an unprivileged user's containers. Sharing it lets them share other namespaces."""

    owner = -1, -1  # its process and user
    fd = -1
    mappings: Mappings = ((), ())


_the_holder = _Holder()


def _build_unprivileged(root: hostroot.HostRoot | None, inputs: dict[str, int]) -> tuple[list[int], Mappings]:
    """Make the view and the staging, in the existing user namespace or in a new one."""
    known, owner, mappings = _the_holder, (os.getpid(), os.geteuid()), own_mappings()
    names = ("mount", "holder", "view")
    if known.owner == owner and known.mappings == mappings:
        return opened(_in_holder(root), {**inputs, "known holder": known.fd}, names), mappings
    try:
        made = opened(_holder(mappings, root), inputs, names)
    except SetupError as error:
        raise _explained(error) from None
    kept: list[int] = []
    try:
        keep_above(kept, made[1], _native.LOWEST)
    except BaseException:
        close_all(made)
        raise
    known.owner, known.fd, known.mappings = owner, kept[0], mappings
    return made, mappings


def share_holder(fd: int) -> None:
    """Make all later containers in a user namespace of another process of the same user.

    Args:
        fd: its descriptor, which this module owns afterwards.
    """
    known = _the_holder
    if known.fd >= 0 and known.owner[0] == os.getpid() and os.path.sameopenfile(known.fd, fd):
        os.close(fd)
        return
    if known.fd >= 0 and known.owner[0] == os.getpid():
        os.close(known.fd)  # each staging has its own descriptor
    known.owner, known.fd, known.mappings = (os.getpid(), os.geteuid()), fd, own_mappings()
    with _keeper.lock:
        _keeper.kept.clear()


def _in_holder(root: hostroot.HostRoot | None) -> list[Operation]:
    """Return the operations for an existing user namespace: they make a view of the host's present mounts."""
    known = Slot("known holder")
    return [
        calls.setns(known, k.CLONE_NEWUSER, "holder user namespace"),
        calls.call("setresgid", 0, 0, 0),
        calls.call("setresuid", 0, 0, 0),
        calls.unshare(k.CLONE_NEWNS, "view of the host's mounts"),
        _open_own("user", Slot("holder")),
        _open_own("mnt", Slot("view")),
        calls.unshare(k.CLONE_NEWNS, "mount namespace"),
        *_contents(root, privileged=False, makes_nodes=False),
        _open_own("mnt", Slot("mount")),
    ]


def _build_privileged(root: hostroot.HostRoot | None, inputs: dict[str, int], *, makes_nodes: bool) -> list[int]:
    steps = [
        calls.unshare(k.CLONE_NEWNS, "mount namespace"),
        *_contents(root, privileged=True, makes_nodes=makes_nodes),
        _open_own("mnt", Slot("mount")),
    ]
    return opened(steps, inputs, ("mount",))


def opened(
    steps: Sequence[Operation] | Program,
    inputs: dict[str, int],
    names: tuple[str, ...],
    blocks: Mapping[str, bytes] | None = None,
) -> list[int]:
    """Run a plan that leaves no process. Return the descriptors in these slots, with numbers that a start does not use.

    They always have an owner, see :mod:`containerkit.descriptors`.

    Args:
        steps: the plan, or the compiled plan.
        inputs, blocks: as for :meth:`containerkit.plan.program.Program.run`.
        names: the slots.

    Raises:
        SetupError: an operation failed, or another process killed the process that performs them.
    """
    program = steps if isinstance(steps, Program) else Program(Plan(tuple(steps)))
    outcomes: list[Outcome] = []
    low: list[int] | None = None
    made: list[int] = []
    try:
        run = partial(program.run, blocks=blocks, flags=_native.SHARE_FILES | _native.NO_PROCESS)
        keep(outcomes, run, inputs)
        low = _filled(program, outcomes[0], names)
        for fd in low:
            keep_above(made, fd, _native.LOWEST)
        close_all(low)
    except BaseException:
        slots = [program.slot(outcome, name) for outcome in outcomes for name in names] if low is None else low
        close_all([fd for fd in slots if fd >= 0])
        close_all(made)
        raise
    return made


def _filled(program: Program, outcome: Outcome, names: tuple[str, ...]) -> list[int]:
    """Return the descriptors in these slots. If the process was killed, they are empty and no error was reported."""
    found = [program.slot(outcome, name) for name in names]
    if min(found) < 0:
        raise was_killed(names[found.index(min(found))])
    return found


def _explained(error: SetupError) -> SetupError:
    """Add the reason to an error: some hosts let anyone make a user namespace, but without its capabilities."""
    if isinstance(error, UnsupportedError) or error.errno not in (EPERM, EACCES):
        return error
    from containerkit._linux.features import why_no_namespaces
    from containerkit._linux.outer import why_refused

    hint = why_refused(error.operation, error.errno, why_no_namespaces(error.errno))
    return UnsupportedError(error.operation, error.errno, error.target, hint) if hint else error


_passed_on: list[Mappings] = []
"""The ids of the user namespace that this process has entered for its user."""


def pass_on(mappings: Mappings) -> None:
    """Give containers of this process the ids of the user namespace that it has entered, with the same numbers.

    Args:
        mappings: those of that namespace, in which this process is root.
    """
    _passed_on[:] = [(_same(mappings[0]), _same(mappings[1]))]


def _same(mappings: tuple[IdMapping, ...]) -> tuple[IdMapping, ...]:
    return tuple(IdMapping(m.inside, m.inside, m.count) for m in mappings)


def own_mappings() -> Mappings:
    """Return the (uid, gid) mappings that an unprivileged user can set: its ranges, or only its own id as root."""
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
    """Return the operations that make an unprivileged user's user namespace, and in it the view and the staging."""
    pid = Slot("pid")
    flags = k.CLONE_NEWUSER | k.CLONE_NEWNS | k.CLONE_FILES | k.CLONE_PARENT
    return [
        calls.clone(flags, "inside", pid=pid, target="user and mount namespace"),
        *(_write_own(mappings, pid) if _passed_on else write_mappings(mappings, pid, helpers=len(mappings[0]) > 1)),
        calls.release(),
        calls.leave(),
        calls.await_release("inside"),
        calls.call("setresgid", 0, 0, 0),
        calls.call("setresuid", 0, 0, 0),
        calls.open_of_process(pid, "ns/user", k.O_RDONLY, Slot("holder")),
        calls.open_of_process(pid, "ns/mnt", k.O_RDONLY, Slot("view")),
        calls.unshare(k.CLONE_NEWNS, "mount namespace"),
        *_contents(root, privileged=False, makes_nodes=False),
        calls.open_of_process(pid, "ns/mnt", k.O_RDONLY, Slot("mount")),
    ]


def write_mappings(mappings: Mappings, pid: Slot, *, helpers: bool) -> list[Operation]:
    """Return the operations that write a process's id maps.

    To map only the caller's own id, ``deny`` must be written to setgroups first. Otherwise a group whose members are
    denied access could be dropped (CVE-2014-8989). To map more ids, the set-user-ID helpers are needed.

    Source: user_namespaces(7), newuidmap(1).
    """
    if helpers:
        return [_run_helper(name, kind, pid) for name, kind in zip(("newuidmap", "newgidmap"), mappings, strict=True)]
    at = Slot("map")
    return [
        calls.open_of_process(pid, "setgroups", k.O_WRONLY, at),
        calls.write(at, b"deny", "setgroups"),
        calls.close(at),
        *write_map(pid, "uid_map", mapping_text(mappings[0])),
        *write_map(pid, "gid_map", mapping_text(mappings[1])),
    ]


def _write_own(mappings: Mappings, pid: Slot) -> list[Operation]:
    """Return the operations for root of a user namespace, which may map the ids that its namespace has."""
    texts = zip(("uid_map", "gid_map"), map(mapping_text, mappings), strict=True)
    return [step for name, text in texts for step in write_map(pid, name, text)]


def _run_helper(name: str, mappings: tuple[IdMapping, ...], pid: Slot) -> Operation:
    path = which(name)
    if path is None:
        raise UnsupportedError(
            name, 2, "", "install the package with newuidmap (uidmap on Debian), or leave out the mappings"
        )
    words = [os.fsencode(path), b"PID"]
    for m in mappings:
        words += [b"%d" % m.inside, b"%d" % m.outside, b"%d" % m.count]
    return calls.helper(tuple(words), pid, "the ranges must be granted to this user in /etc/subuid and /etc/subgid")


def _open_own(name: str, result: Slot) -> Operation:
    return calls.open_at(_PROC, f"self/ns/{name}".encode(), k.O_RDONLY, result)


def _contents(root: hostroot.HostRoot | None, *, privileged: bool, makes_nodes: bool) -> list[Operation]:
    """Return the operations that make the staging in a new mount namespace and leave the host's mounts behind.

    Args:
        root: the skeleton of ``RootFS.host()``, or None.
        privileged: whether fresh kernel filesystems can be mounted.
        makes_nodes: whether device nodes can be made; else the caller's own are bound.
    """
    return [
        calls.call("umask", 0),
        calls.propagation(b"/", k.MS_REC | k.MS_PRIVATE),
        *_kernel_trees(privileged=privileged),
        *calls.new_mount("tmpfs", {"mode": "755"}, _ROOT, attributes=k.MOUNT_ATTR_NOSUID),
        # The tmpfs may be mounted on any directory that certainly exists. pivot_root leaves that directory behind.
        calls.move_mount(_ROOT, k.AT_FDCWD, b"/proc", target="staging"),
        entries.populate(_ROOT, _made_directories(), "the staging"),
        calls.move_mount(_PROC_TREE, _ROOT, b"proc"),
        calls.move_mount(_SYS_TREE, _ROOT, b"sys"),
        calls.close(_PROC_TREE),
        calls.close(_SYS_TREE),
        *_dev(makes_nodes=makes_nodes),
        *_masked(),
        *(staged_skeleton(root) if root else ()),
        calls.call("fchdir", _ROOT),
        calls.pivot_root(),
        calls.unmount(b"."),
        calls.chdir(b"/"),
        calls.close(_ROOT),
        calls.close(_DEV),
    ]


def _made_directories() -> list[bytes]:
    names = [*(name.encode() for name in _DIRECTORIES), *(b"lower/%d" % number for number in range(LOWERS))]
    return [entries.directory(name, 0o755) for name in names]


def _kernel_trees(*, privileged: bool) -> list[Operation]:
    """Return the operations for proc and sysfs. A user namespace can't mount those of the host, but only bind them."""
    if privileged:
        return [*calls.new_mount("proc", {}, _PROC_TREE), *calls.new_mount("sysfs", {}, _SYS_TREE)]
    return [
        calls.open_tree(k.AT_FDCWD, b"/proc", _PROC_TREE, recursive=True),
        calls.open_tree(k.AT_FDCWD, b"/sys", _SYS_TREE, recursive=True),
    ]


def _dev(*, makes_nodes: bool) -> list[Operation]:
    """Return the operations for a read-only /dev that containers share. Terminals and /dev/shm are separate mounts."""
    steps = calls.new_mount("tmpfs", {"mode": "755", "size": "64k"}, _DEV)
    for name, (major, minor) in NODES.items():
        if makes_nodes:
            steps.append(calls.make_node(_DEV, name.encode(), 0o020666, os.makedev(major, minor)))
        else:
            steps.append(calls.make_node(_DEV, name.encode(), 0o100666))
    steps += [calls.make_symlink(_DEV, name.encode(), content.encode()) for name, content in LINKS.items()]
    steps += [calls.make_directory(_DEV, name.encode()) for name in DIRECTORIES]
    steps.append(calls.make_node(_DEV, b"console", 0o100600))
    steps.append(calls.move_mount(_DEV, _ROOT, b"dev"))
    bound = ["console"] if makes_nodes else ["console", *NODES]
    tree = Slot("tree")
    for name in bound:
        source = b"null" if name == "console" else name.encode()
        own = (
            calls.open_tree(_DEV, source, tree) if makes_nodes else calls.open_tree(k.AT_FDCWD, b"/dev/" + source, tree)
        )
        steps += [
            own,
            calls.move_mount(tree, _DEV, name.encode()),
            calls.close(tree),
        ]
    # Make the filesystem itself read-only. A container that may mount could make its own mount of it writable again,
    # and leave files there for other containers.
    steps += calls.make_filesystem_readonly(_DEV)
    # Writing to devices still works. The nodes, which may be the host's own, can't be changed.
    flags = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
    steps.append(calls.mount_setattr(_DEV, set_flags=flags, recursive=True, target="dev"))
    return steps


def _masked() -> list[Operation]:
    """Make the empty directory that is mounted over masked directories."""
    tree = Slot("tree")
    attributes = k.MOUNT_ATTR_RDONLY | k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC
    return [
        *calls.new_mount("tmpfs", {"ro": None, "size": "4k", "mode": "555"}, tree, attributes=attributes),
        calls.move_mount(tree, _ROOT, b"masked"),
        calls.close(tree),
    ]
