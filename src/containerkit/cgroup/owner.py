"""The owner of a group is part of its name, so that groups of killed owners can be found and removed.

The name is ``containerkit.PID.START.NAMESPACE.NAME``: the owner's pid, its start time in clock ticks after boot (which
distinguishes processes that had the same pid), and the inode of the pid namespace of both.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from containerkit.plan.program import proc

__all__ = ["PREFIX", "Owner"]

PREFIX: Final = "containerkit."


class Owner(NamedTuple):
    """Identifies a process, also among earlier and later processes with the same pid.

    Attributes:
        pid: the pid in its pid namespace.
        start: clock ticks from the boot to its start, field 22 of /proc/PID/stat.
        namespace: the inode of the pid namespace.
    """

    pid: int
    start: int
    namespace: int

    @classmethod
    def current(cls) -> Owner:
        """Return this process. After fork(2) the child is a different owner than its parent."""
        global _current  # noqa: PLW0603 - a process has one identity, found once
        if _current is None or _current[0] != os.getpid():
            status = _status("self")
            if status is None:
                proc()  # its error has the remedy
                raise OSError(2, os.strerror(2), "/proc/self/stat")
            pid, _, start = status
            _current = os.getpid(), cls(pid, start, os.stat("/proc/self/ns/pid").st_ino)
        return _current[1]

    @classmethod
    def of(cls, group: str) -> Owner | None:
        """Return the owner that a group's name contains, or None if the name is not in this form."""
        fields = group.removeprefix(PREFIX).split(".", 3)
        if not group.startswith(PREFIX) or len(fields) != 4:
            return None
        if not all(field.isascii() and field.isdigit() and len(field) < 20 for field in fields[:3]):
            return None
        return cls(*map(int, fields[:3]))

    def label(self, name: str) -> str:
        """Return the full name of the owner's group ``name``."""
        return f"{PREFIX}{self.pid}.{self.start}.{self.namespace}.{name}"

    def is_gone(self) -> bool:
        """Return whether the owner has certainly ended. For an owner in another pid namespace this returns False."""
        if self.namespace != Owner.current().namespace:
            return False
        status = _status(self.pid)
        if status is None or status[2] != self.start:
            return True
        return status[1] in "ZX" and _threads(self.pid) <= 1


_current: tuple[int, Owner] | None = None


def _status(pid: int | str) -> tuple[int, str, int] | None:
    """Return pid, state and start time, or None if there is no such process. Source: proc_pid_stat(5)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    number, _, rest = text.partition(b" (")
    fields = rest[rest.rindex(b")") + 2 :].split()  # the name of the command may contain parentheses
    return int(number), fields[0].decode(), int(fields[19])


def _threads(pid: int) -> int:
    """Count the threads. If the first thread has ended the state is Z, although other threads still run."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
