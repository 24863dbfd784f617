"""Tries what this kernel lets its caller do, in processes that end right afterwards.

A fresh interpreter runs this module for :func:`containerkit._linux.features.probe`: a trial changes namespaces and
credentials for good, and a copy of the caller's memory and threads would serve nothing. Each trial runs in a process
cloned from that interpreter and prints one line: its name, an error number (0 when it succeeded, negative for the
signal that killed it) and a detail. Nothing that a trial makes outlives it but a cgroup, which it removes.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from errno import ECANCELED, EINVAL, ENODEV, ENOENT, EPERM
from struct import pack

from containerkit._linux import mountinfo
from containerkit._native import calls
from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRIALS", "main"]

_NOBODY = 65534
_EVERYTHING_BELOW = k.MS_REC | k.MS_PRIVATE
_SCRATCH = ("/mnt", "/tmp", "/run", "/var", "/usr")
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
_LANDLOCK_CREATE_RULESET_VERSION = 1
_SECCOMP_GET_ACTION_AVAIL = 2
_SECCOMP_RET_ALLOW = 0x7FFF0000
_SECCOMP_RET_USER_NOTIF = 0x7FC00000


# --- What trials are made of


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _enter_user_namespace(flags: int = 0) -> None:
    """Become root of a new user namespace that holds the own id alone."""
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(k.CLONE_NEWUSER | flags)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _unshare(flags: int) -> None:
    """Make namespaces by the own right, or else by that of root in a new user namespace."""
    try:
        calls.unshare(flags)
    except PermissionError:
        _enter_user_namespace(flags)


def _own_mounts() -> None:
    _unshare(k.CLONE_NEWNS)
    calls.mount(None, "/", None, _EVERYTHING_BELOW)


def _scratch() -> str:
    """Cover a folder with an empty tmpfs, in the own mount namespace."""
    place = next(path for path in _SCRATCH if os.path.isdir(path))
    calls.mount("probe", place, "tmpfs")
    os.chdir(place)
    return place


def _tmpfs() -> int:
    context = calls.fsopen("tmpfs")
    calls.fsconfig_create(context)
    return calls.fsmount(context)


def _cloned(body: Callable[[], None]) -> int:
    """Run in a cloned process; returns the error number that it ended with."""
    pid = calls.clone()
    if pid == 0:
        status = 255
        try:
            body()
            status = 0
        except OSError as error:
            status = error.errno or 255
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _check(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))


# --- The trials, each named as the feature


def _clone3() -> str:
    try:
        calls.syscall("clone3", b"", 0)
    except OSError as error:
        if error.errno != EINVAL:  # the call is there: it found its structure too short
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
    _own_mounts()
    tree = calls.open_tree(k.AT_FDCWD, "/", k.OPEN_TREE_CLONE | k.AT_RECURSIVE)
    os.close(tree)
    calls.move_mount(_tmpfs(), "", k.AT_FDCWD, _scratch(), k.MOVE_MOUNT_F_EMPTY_PATH)
    return ""


def _mount_setattr() -> str:
    _own_mounts()
    calls.mount_setattr(_tmpfs(), "", k.AT_EMPTY_PATH | k.AT_RECURSIVE, attr_set=k.MOUNT_ATTR_RDONLY)
    return ""


def _namespaces() -> str:
    refused = {}
    for name, flag in _NAMESPACES.items():
        if number := _cloned(lambda flag=flag: _unshare(flag)):  # type: ignore[misc]
            refused[name] = number
    if refused:
        number = next(iter(refused.values()))
        raise OSError(number, os.strerror(number), " ".join(refused))
    return " ".join(_NAMESPACES)


def _user_namespaces() -> str:
    # Some hosts let anyone make one, only to withhold its capabilities: so one of them is put to use.
    _enter_user_namespace(k.CLONE_NEWNS)
    calls.mount(None, "/", None, _EVERYTHING_BELOW)
    _scratch()
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
        calls.prctl(k.PR_SET_DUMPABLE, 1)  # the change of ids cleared it, and with it the right to write the maps
    return _user_namespaces()


def _nested_user_namespaces() -> str:
    _enter_user_namespace()
    _enter_user_namespace()
    return ""


def _proc_in_user_namespace() -> str:
    _enter_user_namespace(k.CLONE_NEWNS | k.CLONE_NEWPID)
    calls.mount(None, "/", None, _EVERYTHING_BELOW)
    _check(_cloned(lambda: calls.mount("proc", "/proc", "proc")))
    return ""


def _time_namespace_on_exec() -> str:
    _unshare(k.CLONE_NEWTIME)
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


def _mapped_namespace() -> int:
    """Open a user namespace whose ids are others than the own."""
    reader, writer = os.pipe()
    uid, gid = os.geteuid(), os.getegid()
    pid = calls.clone(k.CLONE_NEWUSER)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        with suppress(OSError):
            _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", f"1 {uid} 1")
        _write(f"/proc/{pid}/gid_map", f"1 {gid} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)


def _idmapped_mounts() -> str:
    mounts = {mount.filesystem: mount.mount_point for mount in mountinfo.read() if mount.root == "/"}
    _own_mounts()
    userns = _mapped_namespace()
    mapped = []
    refused = OSError(EINVAL, os.strerror(EINVAL))
    for filesystem, path in {"tmpfs": "", **mounts}.items():
        try:
            tree = calls.open_tree(k.AT_FDCWD, path, k.OPEN_TREE_CLONE) if filesystem != "tmpfs" else _tmpfs()
            calls.mount_setattr(tree, "", k.AT_EMPTY_PATH, userns_fd=userns)
        except OSError as error:
            if filesystem == "tmpfs":
                refused = error
        else:
            mapped.append(filesystem)
    if not mapped:
        raise refused
    return " ".join(sorted(mapped))


def _overlay(options: str) -> str:
    _scratch()
    for name in ("lower", "upper", "work", "merged"):
        os.mkdir(name)
    calls.mount("probe", "merged", "overlay", 0, f"lowerdir=lower,upperdir=upper,workdir=work{options}")
    _write("merged/file", "")
    return ""


def _overlay_by_root() -> str:
    _own_mounts()
    return _overlay("")


def _overlay_in_user_namespace() -> str:
    _enter_user_namespace(k.CLONE_NEWNS)
    calls.mount(None, "/", None, _EVERYTHING_BELOW)
    return _overlay(",userxattr")


def _own_group() -> str:
    """Return the folder of the own group in the version 2 tree."""
    tree = next((mount for mount in mountinfo.read() if mount.filesystem == "cgroup2"), None)
    lines = [line for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")]
    if tree is None or not lines:
        raise OSError(ENODEV, os.strerror(ENODEV))
    return os.path.normpath(f"{tree.mount_point}/{os.path.relpath(lines[0][3:], tree.root)}")


def _cgroup2() -> str:
    folder = _own_group()
    controllers = _read(f"{folder}/cgroup.controllers").split()
    return f"{folder}: {' '.join(controllers) or 'no controllers'}"


def _cgroup_kill() -> str:
    folder = _own_group()
    if os.path.exists(f"{folder}/cgroup.kill"):
        return ""
    made = f"{folder}/containerkit-probe-{os.getpid()}"  # the root of the tree has no such file, only those below
    os.mkdir(made)
    try:
        if not os.path.exists(f"{made}/cgroup.kill"):
            raise OSError(ENOENT, os.strerror(ENOENT))
    finally:
        os.rmdir(made)
    return ""


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


def _privileged() -> str:
    calls.unshare(k.CLONE_NEWUTS)
    return ""


TRIALS: dict[str, Callable[[], str]] = {
    "privileged": _privileged,
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
    "overlay": _overlay_by_root,
    "overlay_in_user_namespace": _overlay_in_user_namespace,
    "cgroup2": _cgroup2,
    "cgroup_kill": _cgroup_kill,
    "landlock": _landlock,
    "seccomp": _seccomp,
    "seccomp_notify": _seccomp_notify,
    "keyrings": _keyrings,
}
"""Each trial by the name of its feature: it returns a detail, or raises the kernel's refusal."""


def _run(name: str, trial: Callable[[], str]) -> None:
    """Run one trial in this process, say how it ended, and end."""
    number, detail = 0, ""
    try:
        detail = trial()
    except OSError as error:
        number, detail = error.errno or EPERM, str(error.filename or "")
    except Exception as error:  # noqa: BLE001 - one trial gone wrong must not take the report with it
        number, detail = ECANCELED, repr(error)
    print(name, number, " ".join(detail.split()), sep="\t", flush=True)  # noqa: T201 - the protocol with the prober
    os._exit(0)


def main() -> None:
    """Run every trial, each in a process of its own, and print a line for each."""
    for name, trial in TRIALS.items():
        sys.stdout.flush()
        pid = calls.clone()
        if pid == 0:
            _run(name, trial)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            print(name, status if status < 0 else ECANCELED, "", sep="\t", flush=True)  # noqa: T201 - the protocol with the prober
