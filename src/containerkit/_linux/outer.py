"""Find out, after a refusal, what an outer container, a service or a chroot denies to its processes."""

from __future__ import annotations

from errno import ENOSYS, EPERM
from typing import Final

__all__ = ["CHROOT", "FILTERED", "RUN", "UNMASK", "is_filtered", "mounted_below", "remedy", "why_refused"]

FILTERED: Final = frozenset(
    {
        *("add_key", "clone", "close_range", "enter", "fsconfig", "fsmount", "fsopen", "fspick", "keyctl"),
        *("memfd_create", "mknodat", "mount", "mount_setattr", "move_mount", "open_tree", "openat2", "personality"),
        *("pidfd_open", "pivot_root", "seccomp", "setdomainname", "sethostname", "setns", "umount2", "unshare"),
    }
)
"""Operations that container engines and services deny with EPERM, also by profiles that are older than the call.
Source: the default profiles of podman, Docker and systemd-nspawn."""

_MADE_OF: Final = {"clone": ("clone3",), "enter": ("close_range", "execveat")}
"""The system calls of operations with a different name."""

CHROOT: Final = (
    "this process is probably in a chroot, where the kernel creates no user namespaces and containers would see a "
    "different root: enter the directory with pivot_root instead (`systemd-nspawn --directory=DIR`, `bwrap "
    "--dev-bind DIR /`), or start the container outside, with RootFS.dir(DIR)"
)
"""Source: current_chrooted() in create_user_ns() of the kernel's kernel/user_namespace.c."""

RUN: Final = "mount a tmpfs on /run (podman and docker run: --tmpfs /run)"
"""The remedy for a read-only /run."""

UNMASK: Final = (
    "masked_paths=() and readonly_paths=() (podman run: --security-opt unmask=ALL; docker run: --security-opt "
    "systempaths=unconfined)"
)
"""The options with which an outer container shows all of /proc and /sys."""

_SHOWN: Final = 4


def is_filtered() -> bool:
    """Return whether this process is under a seccomp filter. Source: Seccomp in proc_pid_status(5)."""
    try:
        with open("/proc/thread-self/status", encoding="ascii", errors="replace") as file:
            return any(line.split() == ["Seccomp:", "2"] for line in file)
    except OSError:
        return False


def mounted_below(path: str) -> str:
    """List the mounts below a path as text. Empty if there are none or they can't be read."""
    import os

    from containerkit._linux import mountinfo

    try:
        top = os.path.realpath(path)
        points = sorted({mount.mount_point for mount in mountinfo.below(top, mountinfo.read())} - {top})
    except OSError:
        return ""
    more = f" and {len(points) - _SHOWN} more" if len(points) > _SHOWN else ""
    return ", ".join(points[:_SHOWN]) + more


def why_refused(operation: str, number: int, hint: str = "") -> str:
    """Return the hint for a refusal. If there is an outer filter, the hint names it first.

    Args:
        operation: the system call.
        number: the error number.
        hint: another possible cause.
    """
    denied = number == ENOSYS or (number == EPERM and operation in FILTERED)
    if not denied or not is_filtered():
        return hint
    calls = _MADE_OF.get(operation, (operation,))
    cause = f"a seccomp filter of this process probably refuses {' or '.join(calls)}: {remedy(*calls)}"
    return f"{cause}; or else {hint}" if hint and number == EPERM else cause


def remedy(*calls: str) -> str:
    """Return how to make the filter of an outer container or service allow system calls."""
    names = calls[0] if len(calls) == 1 else f"'{' '.join(calls)}'"
    return (
        "start the outer container with a filter that allows it (podman and docker run: --cap-add SYS_ADMIN, or "
        f"--security-opt seccomp=unconfined; systemd-nspawn: --system-call-filter={names}), a service without "
        "SystemCallFilter= against it"
    )
