"""Find the cause of an error that the kernel returned for an operation, and the remedy.

Source: decision 0049.
"""

from __future__ import annotations

from errno import EACCES, EAGAIN, EINVAL, EMFILE, ENFILE, ENOENT, ENOMEM, ENOSPC, ENOSYS, EPERM, EROFS, EUSERS
from typing import TYPE_CHECKING, Final

from containerkit._linux.outer import CHROOT, UNMASK, mounted_below, why_refused
from containerkit._native import constants as k
from containerkit.errors import ProgramNotFoundError, SetupError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.plan.operation import Operation

__all__ = ["explained", "not_begun"]

_EXHAUSTED: Final = {
    EMFILE: "this process has reached its limit of open files: raise ulimit -n",
    ENFILE: "the machine has reached its limit of open files: raise sysctl fs.file-max",
    ENOMEM: "out of memory: check free(1) and the memory limit of this process's control group",
}
"""Errors that do not depend on the operation."""

_MASKED: Final = (
    "the kernel mounts a new one only where an existing one is fully visible; an outer container probably masks "
    f"parts of it: start the outer container with {UNMASK}"
)
"""Source: mount_too_revealing() in the kernel's fs/namespace.c."""

_CERTAIN: Final = {
    ("clone", ENOMEM): "out of memory, or the container to join has just ended",
    ("execve", ENOENT): "the command, or the interpreter that it names, is not inside the container",
    ("mount_setattr", ENOSYS): "mount_setattr needs Linux 5.12",
    ("open", EACCES): "this process may not inspect its children: it has changed its user since its exec, so the "
    "kernel considers it undumpable; see PR_SET_DUMPABLE in prctl(2)",
    ("open_tree", EINVAL): "it has mounts below that an unprivileged user can't leave out, or it is unbindable: "
    "bind directories without mounts below, or unmount those",
    ("openat2", EROFS): f"it is read-only here; if an outer container did this, start that with {UNMASK}",
}
"""The meaning of an error of an operation, for any purpose of the operation. Source: alloc_pid() in kernel/pid.c,
__do_loopback() in fs/namespace.c."""

_LIKELY: Final = {
    ("clone", EPERM): "this host forbids namespaces to this user: run `containerkit probe` for the reason",
    ("clone", ENOSPC): "a limit on namespaces is reached: see user.max_*_namespaces, or nesting is deeper than 32",
    ("clone", EAGAIN): "a limit on processes is reached: see ulimit -u, pids.max and kernel.pid_max",
    ("clone", EINVAL): "the kernel does not have one of these kinds of namespaces, or they can't be combined",
    ("clone", ENOSYS): "clone3 needs Linux 5.5, and the seccomp filter of this process must allow it",
    ("fsmount", EPERM): _MASKED,
}
"""The meaning of an error if the operation has no hint of its own."""

_IN_A_CHROOT: Final = frozenset(
    {("mount", EINVAL), ("move_mount", ENOENT), ("open_tree", ENOENT), ("pivot_root", EINVAL)}
)
"""Operations that fail in a chroot too, because they start from the root of the mount namespace."""

_FORBIDDEN: Final = frozenset({EPERM, EACCES, ENOSPC, EUSERS})
"""The errors that the kernel or a security module returns to a process that may not make namespaces."""

_ID_MAP: Final = "id map of "


def explained(operation: Operation, error: int) -> SetupError:
    """Return the error with its hint.

    Args:
        operation: the refused operation.
        error: the kernel's error number.
    """
    name, target = operation.name, operation.target
    hint = _CERTAIN.get((name, error)) or _EXHAUSTED.get(error) or operation.hint or _LIKELY.get((name, error), "")
    if (name, error) == ("execve", ENOENT):
        return ProgramNotFoundError(name, error, target, hint)
    if name in ("clone", "unshare") and error in _FORBIDDEN:
        from containerkit._linux.features import why_no_namespaces

        return UnsupportedError(name, error, target, why_refused(name, error, why_no_namespaces(error) or hint))
    if (name, error) in _IN_A_CHROOT and not hint and _is_in_a_chroot():
        return UnsupportedError(name, error, target, CHROOT)
    if (name, error, target) == ("fsmount", EPERM, "proc") and (mounted := mounted_below("/proc")):
        return SetupError(name, error, target, f"{hint} (mounted here: {mounted})")
    if (name, error) == ("open_tree", EINVAL) and (mounted := mounted_below(target)):
        hint = f"{hint} (mounted there: {mounted})"
    hint = why_refused(name, error, hint)
    if error == EINVAL and _maps_a_tree(operation):
        target = _ID_MAP + _first_unmappable_mount(target.removeprefix(_ID_MAP))
    kind = UnsupportedError if error == ENOSYS else SetupError
    return kind(name, error, target, hint)


def _is_in_a_chroot() -> bool:
    from containerkit._linux.features import probe

    try:
        return not probe(10).own_root
    except SetupError:  # a trial is not possible
        return False


def not_begun(operation: Operation, error: int) -> SetupError:
    """Return the error of a start that failed before or at its first operation.

    Args:
        operation: the first operation.
        error: the error number, such as that of a pipe or of memory that this process needs for a start.
    """
    hint = _EXHAUSTED.get(error)
    return explained(operation, error) if hint is None else SetupError("prepare", error, "the start", hint)


def _maps_a_tree(operation: Operation) -> bool:
    """Return whether it sets the id map of a mount and all mounts below. The kernel does not tell which one failed."""
    if operation.name != "mount_setattr" or not operation.target.startswith(f"{_ID_MAP}/"):
        return False
    flags = operation.args[2]
    return isinstance(flags, int) and bool(flags & k.AT_RECURSIVE)


def _first_unmappable_mount(source: str) -> str:
    """Return the first mount below a path whose filesystem can't be id-mapped, with its type; else the path."""
    import os

    from containerkit._linux import mountinfo
    from containerkit._linux.features import probe

    try:
        mounts = mountinfo.read()
        willing = probe(10).idmapped_filesystems
    except OSError:  # then the cause can't be narrowed down
        return source
    path = os.path.realpath(source)
    top = mountinfo.covering(path, mounts)
    if top is None or top.filesystem not in willing:
        return source
    for mount in mountinfo.below(path, mounts):
        if mount.filesystem not in willing:
            return f"{mount.mount_point} ({mount.filesystem}), which is mounted below {source}"
    return source
