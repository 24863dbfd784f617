"""The kernel's numeric constants as plain integers.

They are written out because the reference interpreter needs them without the compiled module. A unit test compares each
of them with the compiler's value for the same name in ``cdef.h``, so that no error goes unnoticed.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes longer than starting a container
if TYPE_CHECKING:
    from typing import Final

# Kinds of step and of argument: enum ck_step_kind and enum ck_argument_kind in native.h.
STEP_CALL: Final = 0
STEP_CLONE: Final = 1
STEP_AWAIT: Final = 2
STEP_RELEASE: Final = 3
STEP_LEAVE: Final = 4
STEP_OPEN_PROC: Final = 5
STEP_HELPER: Final = 6
STEP_SIGNALS: Final = 7
STEP_STORE_SLOT: Final = 8
STEP_STORE_ADDRESS: Final = 9
STEP_INIT: Final = 10
STEP_CLOSE: Final = 11
STEP_ENTER: Final = 12
STEP_HOLD: Final = 13
STEP_STRIP: Final = 14
STEP_LIVES: Final = 15
STEP_NETLINK: Final = 16
STEP_OWN_PID: Final = 17
STEP_POPULATE: Final = 18

TELL_OUTSIDE: Final = 0
TELL_ITSELF: Final = 1
TELL_MARKED: Final = 2

ARG_INTEGER: Final = 0
ARG_DATA: Final = 1
ARG_SLOT: Final = 2
ARG_ARGV: Final = 3
ARG_ENVP: Final = 4

O_PATH: Final = os.O_PATH
O_CLOEXEC: Final = os.O_CLOEXEC
O_DIRECTORY: Final = os.O_DIRECTORY
O_NOFOLLOW: Final = os.O_NOFOLLOW
O_RDONLY: Final = os.O_RDONLY
O_WRONLY: Final = os.O_WRONLY
O_RDWR: Final = os.O_RDWR
O_CREAT: Final = os.O_CREAT
O_EXCL: Final = os.O_EXCL
O_NOCTTY: Final = os.O_NOCTTY
O_NONBLOCK: Final = os.O_NONBLOCK

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_REMOVEDIR: Final = 0x200
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

CLONE_NEWTIME: Final = 0x00000080
CLONE_VM: Final = 0x00000100
CLONE_FS: Final = 0x00000200
CLONE_FILES: Final = 0x00000400
CLONE_VFORK: Final = 0x00004000
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_PIDFD: Final = 0x00001000
CLONE_SIGHAND: Final = 0x00000800
CLONE_THREAD: Final = 0x00010000
CLONE_SETTLS: Final = 0x00080000
CLONE_PARENT_SETTID: Final = 0x00100000
CLONE_CHILD_CLEARTID: Final = 0x00200000
CLONE_CHILD_SETTID: Final = 0x01000000
CLONE_CLEAR_SIGHAND: Final = 0x100000000
CLONE_INTO_CGROUP: Final = 0x200000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_REMOUNT: Final = 32
MS_MANDLOCK: Final = 64
MS_DIRSYNC: Final = 128
MS_NOSYMFOLLOW: Final = 256
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_SILENT: Final = 32768
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
MNT_EXPIRE: Final = 4
UMOUNT_NOFOLLOW: Final = 8

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70
MOUNT_ATTR_RELATIME: Final = 0x0
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x00200000

OPEN_TREE_CLONE: Final = 1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_SYMLINKS: Final = 0x1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_SYMLINKS: Final = 0x10
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
FSOPEN_CLOEXEC: Final = 1
FSMOUNT_CLOEXEC: Final = 1
FSPICK_CLOEXEC: Final = 1
FSPICK_SYMLINK_NOFOLLOW: Final = 2
FSPICK_NO_AUTOMOUNT: Final = 4
FSPICK_EMPTY_PATH: Final = 8
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_SET_BINARY: Final = 2
FSCONFIG_SET_PATH: Final = 3
FSCONFIG_SET_PATH_EMPTY: Final = 4
FSCONFIG_SET_FD: Final = 5
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20

CLOSE_RANGE_UNSHARE: Final = 2
CLOSE_RANGE_CLOEXEC: Final = 4

PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_GET_SECCOMP: Final = 21
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_SECUREBITS: Final = 28
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_GET_NO_NEW_PRIVS: Final = 39
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

KEYCTL_GET_KEYRING_ID: Final = 0
KEYCTL_JOIN_SESSION_KEYRING: Final = 1
KEYCTL_DESCRIBE: Final = 6

NS_GET_USERNS: Final = 0xB701
NS_GET_PARENT: Final = 0xB702
NS_GET_NSTYPE: Final = 0xB703
NS_GET_OWNER_UID: Final = 0xB704

WALL: Final = 0x40000000
"""``__WALL``: wait for all children, whatever signal they send when they end."""

_X86_64: Final = {
    "read": 0, "write": 1, "close": 3, "lseek": 8, "ioctl": 16, "access": 21, "dup": 32, "socket": 41, "bind": 49,
    "sendto": 44, "recvfrom": 45, "sendmsg": 46, "setsockopt": 54,
    "execve": 59, "exit": 60, "kill": 62, "fchdir": 81, "fchmod": 91, "fchown": 93,
    "ftruncate": 77, "chdir": 80,
    "umask": 95, "getuid": 102, "setuid": 105, "setgid": 106, "setpgid": 109, "setsid": 112, "setgroups": 116,
    "setresuid": 117, "setresgid": 119, "setfsuid": 122, "setfsgid": 123, "capget": 125, "capset": 126,
    "personality": 135, "setpriority": 141, "sched_setscheduler": 144, "pivot_root": 155, "prctl": 157,
    "chroot": 161, "mount": 165, "umount2": 166, "sethostname": 170, "setdomainname": 171, "sched_setaffinity": 203,
    "keyctl": 250, "ioprio_set": 251, "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260,
    "unlinkat": 263, "linkat": 265, "symlinkat": 266, "fchmodat": 268, "unshare": 272, "set_mempolicy": 238,
    "utimensat": 280, "dup3": 292, "pipe2": 293, "perf_event_open": 298, "prlimit64": 302, "setns": 308,
    "sched_setattr": 314, "renameat2": 316, "seccomp": 317, "memfd_create": 319, "bpf": 321, "execveat": 322,
    "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437, "pidfd_getfd": 438,
    "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446, "setxattr": 188, "fsetxattr": 190, "fcntl": 72, "fstat": 5, "waitid": 247,
    "wait4": 61,
    "clone": 56, "futex": 202, "io_uring_setup": 425,
}  # fmt: skip

_AARCH64: Final = {
    "read": 63, "write": 64, "close": 57, "lseek": 62, "ioctl": 29, "dup": 23, "socket": 198, "bind": 200,
    "sendto": 206, "recvfrom": 207, "sendmsg": 211, "setsockopt": 208,
    "execve": 221, "exit": 93, "kill": 129, "fchdir": 50, "fchmod": 52, "fchown": 55,
    "ftruncate": 46, "chdir": 49,
    "umask": 166, "getuid": 174, "setuid": 146, "setgid": 144, "setpgid": 154, "setsid": 157, "setgroups": 159,
    "setresuid": 147, "setresgid": 149, "setfsuid": 151, "setfsgid": 152, "capget": 90, "capset": 91,
    "personality": 92, "setpriority": 140, "sched_setscheduler": 119, "pivot_root": 41, "prctl": 167,
    "chroot": 51, "mount": 40, "umount2": 39, "sethostname": 161, "setdomainname": 162, "sched_setaffinity": 122,
    "keyctl": 219, "ioprio_set": 30, "openat": 56, "mkdirat": 34, "mknodat": 33, "fchownat": 54,
    "unlinkat": 35, "linkat": 37, "symlinkat": 36, "fchmodat": 53, "unshare": 97, "set_mempolicy": 237,
    "utimensat": 88, "dup3": 24, "pipe2": 59, "perf_event_open": 241, "prlimit64": 261, "setns": 268,
    "sched_setattr": 274, "renameat2": 276, "seccomp": 277, "memfd_create": 279, "bpf": 280, "execveat": 281,
    "pidfd_send_signal": 424, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "pidfd_open": 434, "clone3": 435, "close_range": 436, "openat2": 437, "pidfd_getfd": 438,
    "mount_setattr": 442, "quotactl_fd": 443, "landlock_create_ruleset": 444, "landlock_add_rule": 445,
    "landlock_restrict_self": 446, "setxattr": 5, "fsetxattr": 7, "fcntl": 25, "fstat": 80, "waitid": 95,
    "wait4": 260,
    "clone": 220, "futex": 98, "io_uring_setup": 425,
}  # fmt: skip

MACHINE: Final = os.uname().machine

SYSTEM_CALLS: Final[dict[str, int]] = {"aarch64": _AARCH64, "x86_64": _X86_64}.get(MACHINE, {})
"""System call numbers of this machine, by name. Source: the kernel's syscall tables."""
