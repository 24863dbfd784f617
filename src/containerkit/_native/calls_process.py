"""The calls of :mod:`containerkit._native.calls` for processes and namespaces."""

from __future__ import annotations

import os
from struct import pack, unpack, unpack_from

from containerkit._native import calls_seam as seam
from containerkit._native import constants as k
from containerkit._native.calls_seam import named, refusal, syscall, terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from resource import struct_rusage

    from containerkit._native.calls_seam import Argument

__all__ = [
    "capget",
    "capset",
    "clone",
    "close_range",
    "keyctl",
    "ns_get_nstype",
    "ns_get_owner_uid",
    "ns_get_parent",
    "ns_get_userns",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "prctl",
    "setdomainname",
    "sethostname",
    "setns",
    "unshare",
    "waitid",
]

_TEARING = (
    k.CLONE_VM | k.CLONE_VFORK | k.CLONE_PIDFD | k.CLONE_SIGHAND | k.CLONE_THREAD | k.CLONE_SETTLS
    | k.CLONE_PARENT_SETTID | k.CLONE_CHILD_SETTID | k.CLONE_CHILD_CLEARTID
)  # fmt: skip


def clone(flags: int = 0, *, exit_signal: int = 17, cgroup_fd: int | None = None) -> int:
    """Clone this process like :func:`os.fork`, with new namespaces.

    Both processes return from the call, each with its own copy of the interpreter. It needs the same care as
    ``os.fork``, and more: Python's own hooks run (:func:`os.register_at_fork`), but those of the C library do not. In a
    process with other threads, one of them may hold the lock of ``malloc`` at that moment, and the child would wait for
    it forever. There the child may only make a few calls of this module and then ``execve`` or :func:`os._exit`. The
    page tables of the memory are copied, which takes about 25 ms for each GB. Containers are not started with this
    call.

    Args:
        flags: ``CLONE_NEW*``, ``CLONE_FS``, ``CLONE_FILES``, ``CLONE_PARENT``, ``CLONE_CLEAR_SIGHAND``; default none.
        exit_signal: the signal for the parent when the child ends; 0 for none (then only ``WALL`` waits for it).
            Default ``SIGCHLD``.
        cgroup_fd: a cgroup2 directory in which the child is created, or None.

    Returns:
        The child's pid, and 0 in the child.

    Raises:
        ValueError: flags that would break one of the two interpreters, such as ``CLONE_VM``.
        OSError: ``EPERM`` without CAP_SYS_ADMIN for a namespace; ``EINVAL`` for flags that exclude each other;
            ``ENOSPC`` or ``EUSERS`` at a limit of ``/proc/sys/user``.

    Source: clone3(2).
    """
    if flags & _TEARING:
        raise ValueError(f"clone: flags {flags & _TEARING:#x} share or redirect what two interpreters can't share")
    if cgroup_fd is not None:
        flags |= k.CLONE_INTO_CGROUP
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
    # set_tid_size, cgroup
    if flags & (k.CLONE_PARENT | k.CLONE_THREAD):
        exit_signal = 0  # the kernel requires it: the signal is the parent's own
    arguments = pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd or 0)
    pid = seam.backend.fork(arguments)
    if pid < 0:
        raise refusal(-pid, f"flags {flags:#x}")
    return pid


def pidfd_open(pid: int, flags: int = 0) -> int:
    """Open a descriptor that refers to a process, and never to a later process with the same pid.

    Args:
        pid: the process, as numbered in this pid namespace.
        flags: ``os.PIDFD_NONBLOCK`` or 0.

    Raises:
        OSError: ``ESRCH`` if there is no such process.

    Source: pidfd_open(2).
    """
    return syscall("pidfd_open", pid, flags, target=f"pid {pid}")


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """Send a signal to the process that a pidfd refers to. Signal 0 only checks whether it could be sent.

    Args:
        pidfd: a pidfd of the process.
        signal: the signal's number.

    Raises:
        OSError: ``ESRCH`` if the process has ended and been reaped; ``EPERM`` if the caller may not signal it.

    Source: pidfd_send_signal(2).
    """
    syscall("pidfd_send_signal", pidfd, signal, 0, 0, target=f"pidfd {pidfd}")


def pidfd_getfd(pidfd: int, target_fd: int) -> int:
    """Duplicate a descriptor of another process.

    Args:
        pidfd: a pidfd of the process.
        target_fd: the number of the descriptor in that process.

    Returns:
        The duplicate. It refers to the same open file, including its offset.

    Raises:
        OSError: ``EPERM`` without ptrace access to the process; ``EBADF`` if it has no such descriptor.

    Source: pidfd_getfd(2).
    """
    return syscall("pidfd_getfd", pidfd, target_fd, 0, target=f"fd {target_fd} of pidfd {pidfd}")


def waitid(pidfd: int, options: int = os.WEXITED) -> tuple[os.waitid_result, struct_rusage] | None:
    """Wait for a child. Return how it ended and what it and its reaped children used.

    Unlike :func:`os.waitid` it also returns the resource usage, and with ``constants.WALL`` among the options it
    accepts children that send no signal when they end.

    Args:
        pidfd: a pidfd of the child.
        options: ``os.WEXITED``, ``WSTOPPED``, ``WCONTINUED``, ``WNOHANG``, ``WNOWAIT``, ``constants.WALL``.

    Returns:
        The result and the usage, or None if ``WNOHANG`` was given and nothing had happened.

    Raises:
        OSError: ``ECHILD`` if it is not an unreaped child of this process; ``EAGAIN`` from a non-blocking pidfd.

    Source: waitid(2), getrusage(2).
    """
    from resource import struct_rusage

    info, usage = bytearray(128), bytearray(144)
    syscall("waitid", os.P_PIDFD, pidfd, info, options, usage, target=f"pidfd {pidfd}")
    signal, _, code, pid, uid, status = unpack_from("=iii4xiIi", info)
    if pid == 0:
        return None
    times = unpack_from("=4q", usage)
    seconds = (times[0] + times[1] / 1e6, times[2] + times[3] / 1e6)
    return os.waitid_result((pid, uid, signal, status, code)), struct_rusage(
        (*seconds, *unpack_from("=14q", usage, 32))
    )


def close_range(first: int, last: int = 0xFFFF_FFFF, flags: int = 0) -> None:
    """Close descriptors from ``first`` to ``last`` inclusive, or mark them to be closed on exec.

    Args:
        first: the lowest number.
        last: the highest number. Default: the highest possible.
        flags: ``CLOSE_RANGE_CLOEXEC`` marks instead of closing. ``CLOSE_RANGE_UNSHARE`` first gives the thread its own
            descriptor table.

    Raises:
        OSError: ``EINVAL`` if first is greater than last.

    Source: close_range(2).
    """
    syscall("close_range", first, last, flags, target=f"fd {first} to {last}")


def prctl(option: int, arg2: Argument = 0, arg3: Argument = 0, arg4: Argument = 0, arg5: Argument = 0) -> int:
    """Read or change an attribute of the calling thread or of its process.

    Args:
        option: ``PR_*``.
        arg2: the argument of the option; a bytearray if the kernel writes to it.
        arg3: the same.
        arg4: the same.
        arg5: the same.

    Returns:
        What the option returns, usually 0.

    Raises:
        OSError: ``EINVAL`` for an option that this kernel does not know; others depend on the option.

    Source: prctl(2).
    """
    return syscall("prctl", option, arg2, arg3, arg4, arg5, target=f"option {option}")


_CAPABILITY_VERSION = 0x20080522


def capget(pid: int = 0) -> tuple[int, int, int]:
    """Return the effective, permitted and inheritable capabilities of a thread as bit masks.

    Args:
        pid: the thread. Default: the calling one.

    Raises:
        OSError: ``ESRCH`` if there is no such thread.

    Source: capget(2), capabilities(7).
    """
    data = bytearray(24)
    syscall("capget", pack("=Ii", _CAPABILITY_VERSION, pid), data, target=f"pid {pid}")
    low_e, low_p, low_i, high_e, high_p, high_i = unpack("=6I", data)
    return low_e | high_e << 32, low_p | high_p << 32, low_i | high_i << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the capabilities of the calling thread.

    Args:
        effective: the capabilities in effect, as a bit mask; a subset of the permitted ones.
        permitted: those that may be in effect. A capability dropped here can't be regained.
        inheritable: those that an exec of a file with inheritable capabilities keeps.

    Raises:
        OSError: ``EPERM`` for a capability that the thread does not have.

    Source: capset(2), capabilities(7).
    """
    low = [value & 0xFFFF_FFFF for value in (effective, permitted, inheritable)]
    high = [value >> 32 for value in (effective, permitted, inheritable)]
    syscall("capset", pack("=Ii", _CAPABILITY_VERSION, 0), pack("=6I", *low, *high), target="capabilities")


def keyctl(operation: int, *args: int | str | bytes) -> int:
    """Perform an operation on the kernel's keyrings.

    Args:
        operation: ``KEYCTL_*``. ``KEYCTL_JOIN_SESSION_KEYRING`` with 0 joins a new session keyring.
        args: at most four, depending on the operation.

    Returns:
        What the operation returns: a key's serial number, a length or 0.

    Raises:
        OSError: ``EACCES``, ``ENOKEY``, ``EDQUOT``, ... depending on the operation.

    Source: keyctl(2).
    """
    encoded = [argument if isinstance(argument, int) else terminated(argument, "key") for argument in args]
    return syscall("keyctl", operation, *encoded, target=f"operation {operation}")


def sethostname(name: str | bytes) -> None:
    """Set the host name of this thread's uts namespace.

    Args:
        name: at most 64 bytes.

    Raises:
        OSError: ``EPERM`` without CAP_SYS_ADMIN; ``EINVAL`` if it is longer.

    Source: sethostname(2).
    """
    encoded = terminated(name, "hostname")
    syscall("sethostname", encoded, len(encoded), target=name)


def setdomainname(name: str | bytes) -> None:
    """Set the NIS domain name of this thread's uts namespace.

    Args:
        name: at most 64 bytes.

    Raises:
        OSError: ``EPERM`` without CAP_SYS_ADMIN; ``EINVAL`` if it is longer.

    Source: setdomainname(2).
    """
    encoded = terminated(name, "domainname")
    syscall("setdomainname", encoded, len(encoded), target=name)


def setns(fd: int, nstype: int = 0) -> None:
    """Move the calling thread into namespaces. For pid and time only its future children are moved.

    Args:
        fd: a namespace, or a pidfd. With a pidfd all namespaces of the kinds in ``nstype`` are joined at once.
        nstype: ``CLONE_NEW*``: the kinds to join. 0 accepts any namespace that ``fd`` is.

    Raises:
        OSError: ``EINVAL`` if ``fd`` is of another kind, for a user or time namespace in a process with other threads,
            and for a mount namespace while the thread shares its CLONE_FS attributes; ``EPERM`` without CAP_SYS_ADMIN
            over the namespace.

    Source: setns(2).
    """
    try:
        syscall("setns", fd, nstype)
    except OSError as error:
        error.filename = named(fd)
        raise


def unshare(flags: int) -> None:
    """Give the calling thread its own namespaces (or its own descriptor table or working directory).

    Args:
        flags: ``CLONE_NEW*``, ``CLONE_FS``, ``CLONE_FILES``. New pid and time namespaces apply to future children only.

    Raises:
        OSError: ``EPERM`` without CAP_SYS_ADMIN; ``EINVAL`` for a user namespace in a process with other threads;
            ``ENOSPC`` at a limit of ``/proc/sys/user``.

    Source: unshare(2).
    """
    syscall("unshare", flags, target=f"flags {flags:#x}")


def _ioctl(fd: int, request: int, argument: int | bytearray = 0) -> int:
    try:
        return syscall("ioctl", fd, request, argument)
    except OSError as error:
        error.filename = named(fd)
        raise


def ns_get_userns(fd: int) -> int:
    """Open the user namespace that owns a namespace.

    Args:
        fd: a namespace of any kind.

    Raises:
        OSError: ``EPERM`` if the owner is outside the caller's own user namespace.

    Source: ioctl_ns(2), NS_GET_USERNS.
    """
    return _ioctl(fd, k.NS_GET_USERNS)


def ns_get_parent(fd: int) -> int:
    """Open the parent of a user or pid namespace.

    Args:
        fd: a user or pid namespace.

    Raises:
        OSError: ``EINVAL`` for kinds without a parent; ``EPERM`` if there is no parent, or the caller may not see it.

    Source: ioctl_ns(2), NS_GET_PARENT.
    """
    return _ioctl(fd, k.NS_GET_PARENT)


def ns_get_nstype(fd: int) -> int:
    """Return the kind of a namespace, as one of ``CLONE_NEW*``.

    Args:
        fd: a namespace of any kind.

    Raises:
        OSError: ``ENOTTY`` if ``fd`` is not a namespace.

    Source: ioctl_ns(2), NS_GET_NSTYPE.
    """
    return _ioctl(fd, k.NS_GET_NSTYPE)


def ns_get_owner_uid(fd: int) -> int:
    """Return the uid that created a user namespace, as seen from the caller's own.

    Args:
        fd: a user namespace.

    Raises:
        OSError: ``EINVAL`` for a namespace of another kind.

    Source: ioctl_ns(2), NS_GET_OWNER_UID.
    """
    uid = bytearray(4)
    _ioctl(fd, k.NS_GET_OWNER_UID, uid)
    return int(unpack("=I", uid)[0])
