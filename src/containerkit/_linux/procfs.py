"""Reads facts about processes from ``/proc``.

Each function takes ``proc``, the place where a procfs is mounted (default ``/proc``), and raises
:class:`ProcessLookupError` naming the pid when there is no such process; one that is not ours to look at is a
:class:`PermissionError`. A pid may be the number of a process or ``"self"`` or ``"thread-self"``.

Free of heavy imports: it stands on the way of the runtime's shortest commands.
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
    """What ``/proc/PID/stat`` tells; not meant to be changed.

    Attributes:
        pid: the process.
        comm: its name of at most 15 bytes, which it may choose freely, parentheses and newlines included.
        state: one letter: R running, S sleeping, D in uninterruptible sleep, T stopped, t traced, Z zombie, X dead.
        ppid: the parent, 0 when that lies outside of this pid namespace.
        pgrp: the process group.
        session: the session.
        tty: the device number of its terminal, or 0.
        user_ticks: the time that it used in user mode, in ``os.sysconf("SC_CLK_TCK")`` parts of a second.
        system_ticks: the same in kernel mode.
        threads: how many it has.
        start_ticks: when it started, in the same ticks since boot. Together with the pid it names one process.

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
    """Read the line of ``/proc/PID/stat``.

    Raises:
        ValueError: it is not of this format.

    Source: proc_pid_stat(5).
    """
    # The name may hold anything, a closing parenthesis too: what follows the last one is numbers only.
    head, _, tail = content.rpartition(b")")
    pid, _, comm = head.partition(b"(")
    state, *numbers = tail.split() or [b""]
    if len(numbers) < 19:
        raise ValueError(f"not a process's stat: {content!r}")
    return Stat(int(pid), comm, state.decode(), [int(number) for number in numbers[:19]])


def parse_status(content: bytes) -> dict[str, str]:
    """Read the lines of ``/proc/PID/status``, each a name, a colon and a value. Source: proc_pid_status(5)."""
    # The kernel escapes newlines inside of the name, so that each line is a field.
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
    """Read a process's state, family and times. Source: proc_pid_stat(5)."""
    return parse_stat(_read(pid, "stat", proc))


def start_time(pid: Pid = "self", proc: str = "/proc") -> int:
    """Return when a process started, in clock ticks since boot. Source: proc_pid_stat(5), field 22."""
    return stat(pid, proc).start_ticks


def is_same(pid: int, start_ticks: int, proc: str = "/proc") -> bool:
    """Return True when the process of this pid is the one that started then, and has not ended.

    A zombie counts as ended: whoever asks wants to know whether there is something left to act on.
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
    """Return a process's pid in each pid namespace that it is in, outermost first. Source: proc_pid_status(5)."""
    return tuple(int(number) for number in status(pid, proc)["NSpid"].split())


def cmdline(pid: Pid = "self", proc: str = "/proc") -> tuple[str, ...]:
    """Return a process's argument vector, empty for a zombie or a kernel thread. Source: proc_pid_cmdline(5)."""
    content = _read(pid, "cmdline", proc)
    return tuple(os.fsdecode(each) for each in content.removesuffix(b"\0").split(b"\0")) if content else ()


def pids(proc: str = "/proc") -> list[int]:
    """Return the processes that this procfs shows, ascending. Source: proc(5)."""
    return sorted(int(name) for name in os.listdir(proc) if name.isdecimal())


def threads(pid: Pid = "self", proc: str = "/proc") -> list[int]:
    """Return the threads of a process, ascending. Source: proc_pid_task(5)."""
    try:
        return sorted(int(name) for name in os.listdir(f"{proc}/{pid}/task"))
    except (FileNotFoundError, ProcessLookupError):
        raise _gone(pid) from None


def children(pid: Pid = "self", proc: str = "/proc") -> list[int]:
    """Return the children of a process, whichever of its threads made them, ascending.

    It is exact while the process and its children stand still (stopped or frozen); otherwise some may be missed, as
    the man page warns. A kernel without CONFIG_PROC_CHILDREN is asked the long way round, by everyone's parent.

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
    """Return all who come from a process, parents before their children. Source: proc_pid_children(5)."""
    found = children(pid, proc)
    for each in found:  # it grows on the way
        try:
            found += children(each, proc)
        except ProcessLookupError:
            continue
    return found


def namespaces(pid: Pid = "self", proc: str = "/proc") -> dict[str, int]:
    """Return the inode of each namespace of a process, by its name there.

    Source: proc_pid_ns(5).
    """
    folder = f"{proc}/{pid}/ns"
    try:
        links = {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
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
    """Return the pid of the process that a pidfd refers to, as this procfs numbers it.

    The number is good only for as long as the process has not been reaped; ask the pidfd (signal 0) after its use.

    Raises:
        ProcessLookupError: it has been reaped, or lies outside of this pid namespace.
        ValueError: the descriptor is no pidfd.

    Source: pidfd_open(2), proc_pid_fdinfo(5).
    """
    with open(f"{proc}/thread-self/fdinfo/{pidfd}", "rb") as file:
        fields = parse_status(file.read())
    if "Pid" not in fields:
        raise ValueError(f"fd {pidfd} is no pidfd")
    pid = int(fields["Pid"])
    if pid <= 0:
        raise ProcessLookupError(ESRCH, os.strerror(ESRCH), f"pidfd {pidfd}")
    return pid
