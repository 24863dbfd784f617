"""Try in short-lived processes what this kernel lets its caller do.

A fresh interpreter runs this module for :func:`containerkit._linux.features.probe`, because trials change namespaces
and credentials permanently and do not need a copy of the caller's memory and threads. Each trial runs in a process
that is forked from that interpreter and prints one line: its name, an error number (0 for success, negative for the
signal that killed it) and a detail. Only a cgroup outlives a trial, and the trial removes it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from errno import EACCES, ECANCELED, EINVAL, ENODEV, ENOENT, ENOSYS, ENOTDIR, EPERM, EROFS
from struct import pack

from containerkit._linux import cgroupfs, hostroot, mountinfo, outer
from containerkit._linux.trial_steps import (
    check,
    enter_user_namespace,
    forked,
    make_mounts_private,
    make_tmpfs,
    open_mapped_namespace,
    own_mounts,
    read,
    scratch,
    unshare,
    write,
)
from containerkit._native import calls
from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit._linux.cgroupfs import Hierarchy

__all__ = ["TRIALS", "main"]

_NOBODY = 65534
_NAMESPACES = {
    "mount": k.CLONE_NEWNS,
    "pid": k.CLONE_NEWPID,
    "network": k.CLONE_NEWNET,
    "ipc": k.CLONE_NEWIPC,
    "uts": k.CLONE_NEWUTS,
    "user": k.CLONE_NEWUSER,
    "cgroup": k.CLONE_NEWCGROUP,
    "time": k.CLONE_NEWTIME,
}
_LEASES = "/run/containerkit/ids"
_HARMLESS: dict[str, tuple[int, ...]] = {
    "clone3": (0, 0),
    "close_range": (1, 0, 0),
    "keyctl": (-1,),
    "landlock_create_ruleset": (0, 0, 1),
    "memfd_create": (0, 0),
    "mount": (0, 0, 0, 0, 0),
    "openat2": (-1, 0, 0, 0),
    "personality": (0xFFFFFFFF,),
    "pidfd_open": (0, 0),
    "seccomp": (-1, 0, 0),
    "setns": (-1, 0),
    "umount2": (0, 0),
    "unshare": (0,),
}
"""Arguments with which an allowed call does nothing: the kernel checks them before it checks privileges."""
_HARMLESS_TO_ROOT: dict[str, tuple[int, ...]] = {
    "fsconfig": (-1, 0, 0, 0, 0),
    "fsmount": (-1, 0, 0),
    "fsopen": (0, 0),
    "fspick": (-1, 0, 0),
    "mount_setattr": (-1, 0, 0, 0, 0),
    "move_mount": (-1, 0, -1, 0, 0),
    "open_tree": (-1, 0, 0),
    "pivot_root": (0, 0),
    "sethostname": (0, -1),
}
"""The same for calls where the kernel checks privileges first."""
_LANDLOCK_CREATE_RULESET_VERSION = 1
_SECCOMP_GET_ACTION_AVAIL = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_USER_NOTIF = 0x7FC00000


def _clone3() -> str:
    try:
        calls.syscall("clone3", b"", 0)
    except OSError as error:
        if error.errno != EINVAL:  # EINVAL: the call exists, and its structure is too short
            raise
    return ""


def _openat2() -> str:
    calls.openat2(k.AT_FDCWD, "/", os.O_PATH, resolve=k.RESOLVE_IN_ROOT)
    return ""


def _close_range() -> str:
    calls.close_range(1 << 20, (1 << 20) + 1)
    return ""


def _pidfd() -> str:
    calls.pidfd_send_signal(calls.pidfd_open(os.getpid()), 0)
    return ""


def _mount_api() -> str:
    own_mounts()
    tree = calls.open_tree(k.AT_FDCWD, "/", k.OPEN_TREE_CLONE | k.AT_RECURSIVE)
    os.close(tree)
    calls.move_mount(make_tmpfs(), "", k.AT_FDCWD, scratch(), k.MOVE_MOUNT_F_EMPTY_PATH)
    return ""


def _mount_setattr() -> str:
    own_mounts()
    calls.mount_setattr(make_tmpfs(), "", k.AT_EMPTY_PATH | k.AT_RECURSIVE, attr_set=k.MOUNT_ATTR_RDONLY)
    return ""


def _namespaces() -> str:
    refused = {}
    for name, flag in _NAMESPACES.items():
        if number := forked(lambda flag=flag: unshare(flag)):  # type: ignore[misc] # mypy does not infer a lambda with a default
            refused[name] = number
    if refused:
        number = next(iter(refused.values()))
        raise OSError(number, os.strerror(number), " ".join(refused))
    return " ".join(_NAMESPACES)


def _user_namespaces() -> str:
    # Some hosts let anyone create one but without its capabilities, so a capability is used here.
    enter_user_namespace(k.CLONE_NEWNS)
    make_mounts_private()
    scratch()
    return ""


def _user_namespaces_unprivileged() -> str:
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(_NOBODY, _NOBODY, _NOBODY)
            os.setresuid(_NOBODY, _NOBODY, _NOBODY)
        except OSError as error:
            error.filename = f"becoming uid {_NOBODY}"
            raise
        calls.prctl(k.PR_SET_DUMPABLE, 1)  # the change of ids cleared it, and with it the permission to write the maps
    return _user_namespaces()


def _nested_user_namespaces() -> str:
    enter_user_namespace()
    enter_user_namespace()
    return ""


def _proc_in_user_namespace() -> str:
    enter_user_namespace(k.CLONE_NEWNS | k.CLONE_NEWPID)
    make_mounts_private()
    check(forked(lambda: calls.mount("proc", "/proc", "proc")))
    return ""


def _time_namespace_on_exec() -> str:
    unshare(k.CLONE_NEWTIME)
    pending = os.readlink("/proc/self/ns/time_for_children")
    code = (
        "import os, sys; at = os.readlink('/proc/self/ns/time'); "
        f"print('time_namespace_on_exec', 0 if at == sys.argv[1] else {EINVAL}, '', sep='\\t')"
    )
    sys.stdout.flush()
    os.execv(
        sys.executable,
        [
            sys.executable,
            "-S",
            "-E",
            "-c",
            code,
            pending,
        ],
    )


def _idmapped_mounts() -> str:
    mounts = {mount.filesystem: mount.mount_point for mount in mountinfo.read() if mount.root == "/"}
    own_mounts()
    userns = open_mapped_namespace()
    mapped = []
    refused = OSError(EINVAL, os.strerror(EINVAL))
    for filesystem, path in {"tmpfs": "", **mounts}.items():
        try:
            tree = calls.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE) if filesystem != "tmpfs" else make_tmpfs()
            calls.mount_setattr(tree, "", k.AT_EMPTY_PATH, userns_fd=userns)
        except OSError as error:
            if filesystem == "tmpfs":
                refused = error
        else:
            mapped.append(filesystem)
    if not mapped:
        raise refused
    return " ".join(sorted(mapped))


def _idmapped_programs() -> str:
    own_mounts()
    userns = open_mapped_namespace()
    paths = [f"/{name}" for name in hostroot.programs()]
    for path in paths:
        try:
            tree = calls.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE)
            calls.mount_setattr(tree, "", k.AT_EMPTY_PATH, userns_fd=userns)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or EINVAL), path) from None
    return " ".join(paths)


def _overlay(options: str) -> str:
    scratch()
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(name)
    calls.mount("probe", "merged", "overlay", 0, f"lowerdir=lower,upperdir=upper,workdir=work{options}")
    write("merged/file", "")
    return ""


def _overlay_by_root() -> str:
    own_mounts()
    return _overlay("")


def _overlay_in_user_namespace() -> str:
    enter_user_namespace(k.CLONE_NEWNS)
    make_mounts_private()
    return _overlay(",userxattr")


def _with_group(hierarchy: Hierarchy | None, look: Callable[[str, str], str]) -> str:
    """Create a group in the caller's own group, as a start does, inspect both, and remove the new one."""
    own = None if hierarchy is None else hierarchy.locate(hierarchy.own)
    if own is None:
        raise OSError(ENODEV, os.strerror(ENODEV))
    made = f"{own}/containerkit-probe-{os.getpid()}"
    try:
        os.mkdir(made)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), own) from None
    try:
        return look(own, made)
    finally:
        os.rmdir(made)


def _cgroup1() -> str:
    found: list[str] = []
    refusal = OSError(ENODEV, os.strerror(ENODEV))
    for hierarchy in cgroupfs.read_hierarchies():
        if hierarchy.controllers:
            try:
                _with_group(hierarchy, lambda *_: "")
            except OSError as error:
                refusal = error
            else:
                found += hierarchy.controllers
    if not found:
        raise refusal
    return " ".join(sorted(found))


def _unified() -> Hierarchy | None:
    return next((hierarchy for hierarchy in cgroupfs.read_hierarchies() if hierarchy.version == 2), None)


def _cgroup2() -> str:
    return _with_group(_unified(), lambda own, _: f"{own}: {' '.join(_enabled_for_children(own)) or 'no controllers'}")


def _enabled_for_children(own: str) -> list[str]:
    """Return the controllers that a new group in the caller's own group has or can be given.

    A group can enable more controllers for child groups while it has no processes of its own. The root group may have
    processes. A caller that is alone in its group moves into a leaf when it starts a container.
    """
    root = not os.path.exists(f"{own}/cgroup.type")
    prober = os.getppid()
    status = read(f"/proc/{prober}/status").splitlines()
    caller = next(line.split()[1] for line in status if line.startswith("PPid:"))
    others = set(read(f"{own}/cgroup.procs").split()) - {str(os.getpid()), str(prober), caller}
    may = os.access(f"{own}/cgroup.subtree_control", os.W_OK) and (root or not others)
    return sorted(read(f"{own}/cgroup.{'controllers' if may else 'subtree_control'}").split())


def _cgroup_kill() -> str:
    def look(_: str, made: str) -> str:
        if not os.path.exists(f"{made}/cgroup.kill"):
            raise OSError(ENOENT, os.strerror(ENOENT))
        return ""

    return _with_group(_unified(), look)


def _landlock() -> str:
    return f"ABI {calls.syscall('landlock_create_ruleset', 0, 0, _LANDLOCK_CREATE_RULESET_VERSION)}"


def _seccomp() -> str:
    calls.syscall("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, pack("=I", _SECCOMP_RET_ALLOW))
    return ""


def _seccomp_notify() -> str:
    calls.syscall("seccomp", _SECCOMP_GET_ACTION_AVAIL, 0, pack("=I", _SECCOMP_RET_USER_NOTIF))
    return ""


def _keyrings() -> str:
    calls.keyctl(k.KEYCTL_JOIN_SESSION_KEYRING, 0)
    return ""


def _system_calls() -> str:
    if not outer.is_filtered():
        return "no filter"
    attempts = dict(_HARMLESS)
    with suppress(OSError):
        unshare(k.CLONE_NEWNS | k.CLONE_NEWUTS)
        attempts |= _HARMLESS_TO_ROOT
    refused = []
    for name, arguments in attempts.items():
        try:
            calls.syscall(name, *arguments)
        except OSError as error:
            if error.errno in (EPERM, ENOSYS):
                refused.append(name)
    if refused:
        raise OSError(EPERM, os.strerror(EPERM), " ".join(sorted(refused)))
    return ""


def _own_root() -> str:
    """Compare the root with that of the mount namespace. In a chroot the kernel creates no user namespaces."""
    in_chroot = OSError(ENOTDIR, os.strerror(ENOTDIR))
    if not any(mount.mount_point == "/" for mount in mountinfo.read()):
        raise in_chroot
    facts = os.open("/proc/self/fdinfo", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before = _root_mount(facts)
    try:
        calls.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC), k.CLONE_NEWNS)
    except PermissionError:  # other trials report what else prevents user namespaces
        try:
            calls.unshare(k.CLONE_NEWUSER)
        except OSError as error:
            if error.errno == EPERM:
                raise
        return ""
    if _root_mount(facts) != before:
        raise in_chroot
    return ""


def _root_mount(facts: int) -> str:
    """Return the line with the mount id of ``/``. ``facts`` is a descriptor of /proc/self/fdinfo."""
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    with open(os.open(str(root), os.O_RDONLY | os.O_CLOEXEC, dir_fd=facts), encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))


def _leases() -> str:
    if os.geteuid() != 0:
        return "not needed"
    place = _LEASES
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.access(place, os.W_OK | os.X_OK):
        number = EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else EACCES
        raise OSError(number, os.strerror(number), place)
    return ""


def _privileged() -> str:
    calls.unshare(k.CLONE_NEWUTS)
    return ""


TRIALS: dict[str, Callable[[], str]] = {
    "privileged": _privileged,
    "system_calls": _system_calls,
    "own_root": _own_root,
    "leases": _leases,
    "clone3": _clone3,
    "pidfd": _pidfd,
    "close_range": _close_range,
    "openat2": _openat2,
    "mount_api": _mount_api,
    "mount_setattr": _mount_setattr,
    "namespaces": _namespaces,
    "user_namespaces": _user_namespaces,
    "user_namespaces_unprivileged": _user_namespaces_unprivileged,
    "nested_user_namespaces": _nested_user_namespaces,
    "proc_in_user_namespace": _proc_in_user_namespace,
    "time_namespace_on_exec": _time_namespace_on_exec,
    "idmapped_mounts": _idmapped_mounts,
    "idmapped_programs": _idmapped_programs,
    "overlay": _overlay_by_root,
    "overlay_in_user_namespace": _overlay_in_user_namespace,
    "cgroup1": _cgroup1,
    "cgroup2": _cgroup2,
    "cgroup_kill": _cgroup_kill,
    "landlock": _landlock,
    "seccomp": _seccomp,
    "seccomp_notify": _seccomp_notify,
    "keyrings": _keyrings,
}
"""Each trial by the name of its feature. It returns a detail, or raises the kernel's refusal."""


def _run(name: str, trial: Callable[[], str]) -> None:
    """Run one trial in this process, print its result, and exit."""
    number, detail = 0, ""
    try:
        detail = trial()
    except OSError as error:
        number, detail = error.errno or EPERM, str(error.filename or "")
    except Exception as error:  # noqa: BLE001 - a failed trial must not affect the others
        number, detail = ECANCELED, repr(error)
    print(name, number, " ".join(detail.split()), sep="\t", flush=True)  # noqa: T201 - the protocol with probe()
    os._exit(0)


def main() -> None:
    """Run every trial in its own process, and print a line for each."""
    for name, trial in TRIALS.items():
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _run(name, trial)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            print(name, status if status < 0 else ECANCELED, "", sep="\t", flush=True)  # noqa: T201 - the protocol with probe()
