"""Read facts about processes from ``/proc``.

Each function has the argument ``proc``, the mount point of a procfs (default ``/proc``). It raises
:class:`ProcessLookupError` with the pid if there is no such process, and :class:`PermissionError` if the caller may not
inspect it. A pid can be the number of a process, ``"self"`` or ``"thread-self"``.

It has no heavy imports, because the shortest commands of the OCI runtime use it.
"""

from __future__ import annotations

import os
from errno import ESRCH

TYPE_CHECKING = False
if TYPE_CHECKING:
    Pid = int | str

__all__ = [
    "Stat",
    "children",
    "cmdline",
    "descendants",
    "id_map",
    "inner_pids",
    "is_same",
    "namespaces",
    "parse_stat",
    "parse_status",
    "pid_of_pidfd",
    "pids",
    "start_time",
    "stat",
    "status",
    "threads",
]


class Stat:
    """The content of ``/proc/PID/stat``. Do not change the fields.

    Attributes:
        pid: the process.
        comm: its name of at most 15 bytes. The process can choose it freely, with parentheses and newlines.
        state: one letter: R running, S sleeping, D in uninterruptible sleep, T stopped, t traced, Z zombie, X dead.
        ppid: the parent, or 0 if the parent is outside this pid namespace.
        pgrp: the process group.
        session: the session.
        tty: the device number of its terminal, or 0.
        user_ticks: the time used in user mode, in units of 1 / ``os.sysconf("SC_CLK_TCK")`` seconds.
        system_ticks: the time used in kernel mode.
        threads: the number of threads.
        start_ticks: the start time in the same units since boot. Pid and start time together identify a process.

    Source: proc_pid_stat(5).
    """

    __slots__ = (
        "comm",
        "pgrp",
        "pid",
        "ppid",
        "session",
        "start_ticks",
        "state",
        "system_ticks",
        "threads",
        "tty",
        "user_ticks",
    )

    def __init__(self, pid: int, comm: bytes, state: str, numbers: list[int]) -> None:
        self.pid = pid
        self.comm = comm
        self.state = state
        # Field 4 of the man page, the parent, comes first here.
        self.ppid, self.pgrp, self.session, self.tty = numbers[0:4]
        self.user_ticks, self.system_ticks = numbers[10:12]
        self.threads = numbers[16]
        self.start_ticks = numbers[18]

    def __repr__(self) -> str:
        return f"<Stat {self.pid} {self.comm!r} {self.state}>"


def parse_stat(content: bytes) -> Stat:
    """Parse the line of ``/proc/PID/stat``.

    Raises:
        ValueError: the line is not in this format.

    Source: proc_pid_stat(5).
    """
    # The name may contain anything, even a closing parenthesis. After the last parenthesis there are only numbers.
    head, _, tail = content.rpartition(b")")
    pid, _, comm = head.partition(b"(")
    state, *numbers = tail.split() or [b""]
    if len(numbers) < 19:
        raise ValueError(f"not the content of a stat file: {content!r}")
    return Stat(int(pid), comm, state.decode(), [int(number) for number in numbers[:19]])


def parse_status(content: bytes) -> dict[str, str]:
    """Parse the lines of ``/proc/PID/status``: a name, a colon and a value. Source: proc_pid_status(5)."""
    # The kernel escapes newlines in the name of the process, so each line is a field.
    lines = content.decode(errors="surrogateescape").split("\n")
    return {name: value.strip() for name, colon, value in (line.partition(":") for line in lines) if colon}


def _gone(pid: Pid) -> ProcessLookupError:
    return ProcessLookupError(ESRCH, os.strerror(ESRCH), f"pid {pid}")


def _read(pid: Pid, name: str, proc: str) -> bytes:
    try:
        with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:
            pieces = []
            while piece := file.read(65536):
                pieces.append(piece)
            return b"".join(pieces)
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def stat(pid: Pid = "self", proc: str = "/proc") -> Stat:
    """Read the state, family and times of a process. Source: proc_pid_stat(5)."""
    return parse_stat(_read(pid, "stat", proc))


def start_time(pid: Pid = "self", proc: str = "/proc") -> int:
    """Return when a process started, in clock ticks since boot. Source: proc_pid_stat(5), field 22."""
    return stat(pid, proc).start_ticks


def is_same(pid: int, start_ticks: int, proc: str = "/proc") -> bool:
    """Return whether the process with this pid is the one that started at this time, and has not ended.

    A zombie counts as ended, because nothing can be done to it any more.
    """
    try:
        now = stat(pid, proc)
    except ProcessLookupError:
        return False
    return now.start_ticks == start_ticks and now.state not in "ZX"


def status(pid: Pid = "self", proc: str = "/proc") -> dict[str, str]:
    """Read the fields of ``/proc/PID/status`` by their names, such as ``"NoNewPrivs"``. Source: proc_pid_status(5)."""
    return parse_status(_read(pid, "status", proc))


def inner_pids(pid: Pid = "self", proc: str = "/proc") -> tuple[int, ...]:
    """Return the pid of a process in each of its pid namespaces, outermost first. Source: proc_pid_status(5)."""
    return tuple(int(number) for number in status(pid, proc)["NSpid"].split())


def cmdline(pid: Pid = "self", proc: str = "/proc") -> tuple[str, ...]:
    """Return the argv of a process, empty for a zombie or a kernel thread. Source: proc_pid_cmdline(5)."""
    content = _read(pid, "cmdline", proc)
    return tuple(os.fsdecode(each) for each in content.removesuffix(b"\0").split(b"\0")) if content else ()


def pids(proc: str = "/proc") -> list[int]:
    """Return the pids of the processes that this procfs shows, in ascending order. Source: proc(5)."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def threads(pid: Pid = "self", proc: str = "/proc") -> list[int]:
    """Return the ids of a process's threads, in ascending order. Source: proc_pid_task(5)."""
    try:
        return sorted(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def children(pid: Pid = "self", proc: str = "/proc") -> list[int]:
    """Return the children of a process, whichever thread created them, in ascending order.

    The list is exact while the process and its children are stopped or frozen. Otherwise some may be missing, as the
    man page warns. Without CONFIG_PROC_CHILDREN the parents of all processes are read instead.

    Source: proc_pid_children(5).
    """
    found: list[int] = []
    for thread in threads(pid, proc):
        try:
            with open(f"{proc}/{pid}/task/{thread}/children", "rb") as file:
                found += [int(number) for number in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            if os.path.exists(f"{proc}/{pid}/task/{thread}"):
                return _children_by_parent(pid, proc)
    return sorted(found)


def _children_by_parent(pid: Pid, proc: str) -> list[int]:
    parent = stat(pid, proc).pid
    found = []
    for other in pids(proc):
        try:
            if stat(other, proc).ppid == parent:
                found.append(other)
        except ProcessLookupError:
            continue
    return found


def descendants(pid: Pid = "self", proc: str = "/proc") -> list[int]:
    """Return all descendants of a process, parents before their children. Source: proc_pid_children(5)."""
    found = children(pid, proc)
    for each in found:  # the list grows during the loop
        try:
            found += children(each, proc)
        except ProcessLookupError:
            continue
    return found


def namespaces(pid: Pid = "self", proc: str = "/proc") -> dict[str, int]:
    """Return the inode of each namespace of a process, by the name of its file.

    Source: proc_pid_ns(5).
    """
    directory = f"{proc}/{pid}/ns"
    try:
        links = {name: os.readlink(f"{directory}/{name}") for name in os.listdir(directory)}
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None
    return {name: int(link.partition("[")[2].rstrip("]")) for name, link in sorted(links.items())}


def id_map(pid: Pid = "self", name: str = "uid_map", proc: str = "/proc") -> tuple[tuple[int, int, int], ...]:
    """Return the id mapping of a process's user namespace: ranges of ``(inside, outside, count)``.

    Args:
        pid: the process.
        name: ``"uid_map"``, ``"gid_map"`` or ``"projid_map"``.
        proc: where a procfs is mounted.

    Source: user_namespaces(7).
    """
    ranges = []
    for line in _read(pid, name, proc).splitlines():
        inside, outside, count = (int(number) for number in line.split())
        ranges.append((inside, outside, count))
    return tuple(ranges)


def pid_of_pidfd(pidfd: int, proc: str = "/proc") -> int:
    """Return the pid of the process that a pidfd refers to, as numbered in this procfs.

    The pid is valid only until the process is reaped. After using it, check the pidfd with signal 0.

    Raises:
        ProcessLookupError: the process has been reaped, or is outside this pid namespace.
        ValueError: the descriptor is not a pidfd.

    Source: pidfd_open(2), proc_pid_fdinfo(5).
    """
    with open(f"{proc}/thread-self/fdinfo/{pidfd}", "rb") as file:
        fields = parse_status(file.read())
    if "Pid" not in fields:
        raise ValueError(f"fd {pidfd} is not a pidfd")
    pid = int(fields["Pid"])
    if pid <= 0:
        raise ProcessLookupError(ESRCH, os.strerror(ESRCH), f"pidfd {pidfd}")
    return pid
