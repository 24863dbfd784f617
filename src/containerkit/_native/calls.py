"""The kernel's calls for containers, for direct use from Python.

Each function is named after its system call and takes its arguments in the order of the man page, with Python's
manners:

* A refusal is an :class:`OSError` with ``errno`` and, as ``filename``, what the call acted on. A wrong argument (a NUL
  inside a path, a flag that would tear the interpreter apart) is a :class:`~containerkit.errors.SpecError`.
* A file descriptor that a call makes is closed on exec (PEP 446), whatever its flags say; whoever called owns it.
* The GIL is released while the kernel works, and a call that a signal interrupts is made again (PEP 475).
* Nothing is emulated: a call that this kernel lacks fails with ``ENOSYS``, and whoever can do without catches that.

Flags come from :mod:`containerkit._native.constants`. Namespaces, credentials and capabilities belong to a *thread* in
the kernel's eyes: ``setns``, ``unshare`` and ``capset`` change the calling thread and no other.
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
