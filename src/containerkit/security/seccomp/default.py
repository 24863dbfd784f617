"""The default filter of containers.

It is a list of allowed calls, so a call that is not in the list is denied. It allows nothing that Docker's default
profile denies. It also denies calls that Docker's profile allows although few programs use them and attackers do
(``ptrace`` and reading another process's memory, ``io_uring``, ``userfaultfd``, ``modify_ldt``, socket families that
only reach rarely tested kernel code, pushing bytes into a terminal). Each can be allowed by name.
"""

from __future__ import annotations

from errno import ENOSYS
from functools import lru_cache
from typing import Final

from containerkit.security.capabilities import canonical
from containerkit.security.seccomp.profile import ALLOW, Action, Condition, Rule, Seccomp

__all__ = ["default"]

_FILES: Final = """
access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync
flock fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64
inotify_add_watch inotify_init inotify_init1 inotify_rm_watch lchown lchown32 link linkat _llseek lseek lstat lstat64
mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 readahead readlink readlinkat rename
renameat renameat2 rmdir stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range sync_file_range2
arm_sync_file_range arm_fadvise64_64 syncfs truncate truncate64 umask unlink unlinkat utime utimensat
utimensat_time64 utimes cachestat listmount statmount
fgetxattr flistxattr fremovexattr fsetxattr getxattr getxattrat lgetxattr listxattr listxattrat llistxattr
lremovexattr lsetxattr removexattr removexattrat setxattr setxattrat
"""

_INPUT_AND_OUTPUT: Final = """
read readv pread64 preadv preadv2 write writev pwrite64 pwritev pwritev2 sendfile sendfile64 splice tee vmsplice
io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit
epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
pipe pipe2 poll ppoll ppoll_time64 pselect6 pselect6_time64 select _newselect signalfd signalfd4
timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""

_NETWORK: Final = """
accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64 recvmsg
send sendmmsg sendmsg sendto setsockopt shutdown
"""

_MEMORY: Final = """
brk madvise map_shadow_stack membarrier memfd_create mincore mlock mlock2 mlockall mmap mmap2 mprotect mremap mseal
msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""

_PROCESSES: Final = """
alarm capget capset execve execveat exit exit_group fork vfork futex futex_requeue futex_time64 futex_wait futex_waitv
futex_wake get_robust_list set_robust_list get_thread_area set_thread_area set_tid_address arch_prctl prctl rseq
getcpu getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
getpriority getresgid getresgid32 getresuid getresuid32 getrlimit ugetrlimit getrusage getsid gettid getuid getuid32
setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid setregid32
setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit prlimit64 setsid setuid setuid32
ioprio_get ioprio_set kill tgkill tkill pidfd_open pidfd_send_signal process_mrelease restart_syscall
rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sigaltstack sigprocmask sigreturn
sched_getaffinity sched_getattr sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler
sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler
sched_yield sysinfo times uname wait4 waitid waitpid uretprobe pause
breakpoint cacheflush set_tls riscv_flush_icache riscv_hwprobe swapcontext
"""

_TIME: Final = """
adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
clock_nanosleep_time64 getitimer setitimer gettimeofday nanosleep time timer_create timer_delete timer_getoverrun
timer_gettime timer_gettime64 timer_settime timer_settime64 getrandom
"""

_SYSTEM_V_AND_POSIX_QUEUES: Final = """
mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""

_SANDBOXING_ITSELF: Final = "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"

_ALLOWED: Final = (
    _FILES
    + _INPUT_AND_OUTPUT
    + _NETWORK
    + _MEMORY
    + _PROCESSES
    + _TIME
    + _SYSTEM_V_AND_POSIX_QUEUES
    + _SANDBOXING_ITSELF
)

_WITH_CAPABILITY: Final = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": (
        "bpf clone clone3 fanotify_init fanotify_mark fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr "
        "lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl "
        "quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare"
    ),
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYSLOG": "syslog",
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
}

_TOO_NEW: Final = "file_getattr file_setattr listns open_tree_attr"
"""New calls that programs try first. On kernels without them they fall back to older calls."""

_NEW_NAMESPACES: Final = 0x7E020000
"""``CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET``: flags that ``clone`` must not have.

``CLONE_NEWTIME`` is among the bits of the exit signal, so only ``unshare`` and ``clone3`` accept it.
"""

_PERSONALITIES: Final = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux, 32-bit Linux, both also as version 2.6 for old programs, and the query of the current value."""

_UNIX: Final = 1
_FAMILIES: Final = (_UNIX, 2, 10, 16)
"""``AF_UNIX``, ``AF_INET``, ``AF_INET6``, ``AF_NETLINK``. Source: linux/socket.h."""

_PACKET: Final = 17
_TERMINAL_INJECTION: Final = (0x5412, 0x541C)
"""``TIOCSTI`` and ``TIOCLINUX``: bytes pushed into a terminal become commands of the next process that reads it."""

_LOW_HALF: Final = 0xFFFFFFFF
"""The kernel reads an ``ioctl`` request, a family and a personality as 32 bits, so the upper bits are ignored."""


def _equal(argument: int, value: int, mask: int = _LOW_HALF) -> tuple[Condition, ...]:
    return (Condition(argument=argument, op="masked_eq", value=value, mask=mask),)


def _conditional(held: frozenset[str]) -> list[Rule]:
    """Return the rules for calls that depend on their arguments."""
    injected = [
        Rule(names=("ioctl",), action=Action.errno(), when=_equal(1, request)) for request in _TERMINAL_INJECTION
    ]
    families = (*_FAMILIES, _PACKET) if "CAP_NET_RAW" in held else _FAMILIES
    return [
        *injected,
        Rule(names=("ioctl",), action=ALLOW),
        *[Rule(names=("socket",), action=ALLOW, when=_equal(0, family)) for family in families],
        Rule(names=("socketpair",), action=ALLOW, when=_equal(0, _UNIX)),
        *[Rule(names=("personality",), action=ALLOW, when=_equal(0, persona)) for persona in _PERSONALITIES],
        Rule(names=("clone",), action=ALLOW, when=_equal(0, 0, _NEW_NAMESPACES)),
        # A filter can't see the flags of clone3, which are in memory. On this error libraries fall back to clone.
        Rule(names=("clone3",), action=Action.errno(ENOSYS)),
        Rule(names=tuple(_TOO_NEW.split()), action=Action.errno(ENOSYS)),
    ]


@lru_cache(maxsize=64)
def default(capabilities: frozenset[str]) -> Seccomp:
    """Return the default filter for a container that has some capabilities.

    Raises:
        SpecError: a capability is unknown.
    """
    held = frozenset(canonical(name) for name in capabilities)
    granted = [_WITH_CAPABILITY[name] for name in sorted(held & set(_WITH_CAPABILITY))]
    rules = [Rule(names=tuple(" ".join([_ALLOWED, *granted]).split()), action=ALLOW), *_conditional(held)]
    return Seccomp(default_action=Action.errno(), unknown_action=Action.errno(ENOSYS), rules=rules)
