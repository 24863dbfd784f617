"""Steps of the trials in :mod:`containerkit._linux.trials`. Each changes the calling process."""

from __future__ import annotations

import os
from contextlib import suppress

from containerkit._native import calls
from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


__all__ = [
    "check",
    "enter_user_namespace",
    "forked",
    "make_mounts_private",
    "make_tmpfs",
    "open_mapped_namespace",
    "own_mounts",
    "read",
    "scratch",
    "unshare",
    "write",
]

_SCRATCH = ("/mnt", "/tmp", "/run", "/var", "/usr")


def write(path: str, text: str) -> None:
    """Write a file."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def read(path: str) -> str:
    """Return the content of a file."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def enter_user_namespace(flags: int = 0) -> None:
    """Become root of a new user namespace that maps only the caller's own id."""
    uid, gid = os.geteuid(), os.getegid()
    calls.unshare(k.CLONE_NEWUSER | flags)
    write("/proc/self/setgroups", "deny")
    write("/proc/self/uid_map", f"0 {uid} 1")
    write("/proc/self/gid_map", f"0 {gid} 1")


def unshare(flags: int) -> None:
    """Create namespaces with the caller's privileges, or otherwise as root of a new user namespace."""
    try:
        calls.unshare(flags)
    except PermissionError:
        enter_user_namespace(flags)


def make_mounts_private() -> None:
    """Stop the propagation of mounts from this mount namespace to others."""
    calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)


def own_mounts() -> None:
    """Get a new mount namespace from which no mounts propagate."""
    unshare(k.CLONE_NEWNS)
    make_mounts_private()


def scratch() -> str:
    """Cover a directory with an empty tmpfs, in this mount namespace."""
    place = next(path for path in _SCRATCH if os.path.isdir(path))
    calls.mount("probe", place, "tmpfs")
    os.chdir(place)
    return place


def make_tmpfs() -> int:
    """Return a descriptor of an empty tmpfs that is not mounted anywhere."""
    context = calls.fsopen("tmpfs")
    calls.fsconfig_create(context)
    return calls.fsmount(context)


def forked(body: Callable[[], None]) -> int:
    """Run a function in a forked process. Return the error number with which it ended."""
    pid = os.fork()
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


def check(number: int) -> None:
    """Raise the error for an error number, unless it is 0."""
    if number:
        raise OSError(number, os.strerror(number))


def open_mapped_namespace() -> int:
    """Open a user namespace that maps other ids than the caller's own."""
    reader, writer = os.pipe()
    uid, gid = os.geteuid(), os.getegid()
    pid = calls.clone(k.CLONE_NEWUSER)
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    try:
        with suppress(OSError):
            write(f"/proc/{pid}/setgroups", "deny")
        write(f"/proc/{pid}/uid_map", f"1 {uid} 1")
        write(f"/proc/{pid}/gid_map", f"1 {gid} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writer)
        os.waitpid(pid, 0)
