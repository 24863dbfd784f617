"""The kernel's calls for containers, for direct use from Python.

Each function has the name of its system call and the arguments in the order of the man page. It follows the
conventions of Python:

* A refusal is an :class:`OSError` with ``errno`` and, as ``filename``, the target of the call. A wrong argument (a NUL
  inside a path, a flag that would break the interpreter) is a :class:`ValueError`.
* A file descriptor that a call creates is closed on exec (PEP 446), whatever its flags. The caller owns it.
* The GIL is released during the call, and a call that a signal interrupts is made again (PEP 475).
* Nothing is emulated: a call that this kernel lacks fails with ``ENOSYS``, which the caller can catch.

Flags are in :mod:`containerkit._native.constants`. In the kernel, namespaces, credentials and capabilities belong to a
*thread*: ``setns``, ``unshare`` and ``capset`` change only the calling thread.
"""

from __future__ import annotations

from containerkit._native.calls_mount import (
    fsconfig_create,
    fsconfig_reconfigure,
    fsconfig_set_fd,
    fsconfig_set_flag,
    fsconfig_set_path,
    fsconfig_set_string,
    fsmount,
    fsopen,
    fspick,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    openat2,
    pivot_root,
    umount2,
)
from containerkit._native.calls_process import (
    capget,
    capset,
    clone,
    close_range,
    keyctl,
    ns_get_nstype,
    ns_get_owner_uid,
    ns_get_parent,
    ns_get_userns,
    pidfd_getfd,
    pidfd_open,
    pidfd_send_signal,
    prctl,
    setdomainname,
    sethostname,
    setns,
    unshare,
    waitid,
)
from containerkit._native.calls_seam import syscall

__all__ = [
    "capget",
    "capset",
    "clone",
    "close_range",
    "fsconfig_create",
    "fsconfig_reconfigure",
    "fsconfig_set_fd",
    "fsconfig_set_flag",
    "fsconfig_set_path",
    "fsconfig_set_string",
    "fsmount",
    "fsopen",
    "fspick",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "ns_get_nstype",
    "ns_get_owner_uid",
    "ns_get_parent",
    "ns_get_userns",
    "open_tree",
    "openat2",
    "pidfd_getfd",
    "pidfd_open",
    "pidfd_send_signal",
    "pivot_root",
    "prctl",
    "setdomainname",
    "sethostname",
    "setns",
    "syscall",
    "umount2",
    "unshare",
    "waitid",
]
