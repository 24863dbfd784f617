"""Who made a group, written into its name, so that what a killed owner left behind can be told and swept.

The name is ``containerkit.PID.START.NAMESPACE.NAME``: the owner's pid and start time (in clock ticks after boot, which
tells a reused pid apart) and the inode of the pid namespace that both are counted in.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

__all__ = ["PREFIX", "Owner"]

PREFIX: Final = "containerkit."


class Owner(NamedTuple):
    """A process, told apart from every other that had or will have its pid.

    Attributes:
        pid: in its pid namespace.
        start: clock ticks from the boot to its start, field 22 of /proc/PID/stat.
        namespace: the inode of the pid namespace.
    """

    pid: int
    start: int
    namespace: int

    @classmethod
    def current(cls) -> Owner:
        """Return this process; a fork's child is another owner than its parent."""
        global _current  # noqa: PLW0603 - one process, one identity, found once
        if _current is None or _current[0] != os.getpid():
            status = _status("self")
            if status is None:
                raise OSError(2, os.strerror(2), "/proc/self/stat")
            pid, _, start = status
            _current = os.getpid(), cls(pid, start, os.stat("/proc/self/ns/pid").st_ino)
        return _current[1]

    @classmethod
    def of(cls, group: str) -> Owner | None:
        """Return the owner that a group's name tells, None for a group of somebody else."""
        fields = group.removeprefix(PREFIX).split(".", 3)
        if not group.startswith(PREFIX) or len(fields) != 4:
            return None
        if not all(field.isascii() and field.isdigit() and len(field) < 20 for field in fields[:3]):
            return None
        return cls(*map(int, fields[:3]))

    def label(self, name: str) -> str:
        """Return the name of the owner's group ``name``."""
        return f"{PREFIX}{self.pid}.{self.start}.{self.namespace}.{name}"

    def is_gone(self) -> bool:
        """Tell whether the owner has surely ended. Of another pid namespace nothing is sure, and so this is False."""
        if self.namespace != Owner.current().namespace:
            return False
        status = _status(self.pid)
        if status is None or status[2] != self.start:
            return True
        return status[1] in "ZX" and _threads(self.pid) <= 1


_current: tuple[int, Owner] | None = None


def _status(pid: int | str) -> tuple[int, str, int] | None:
    """Return pid, state and start time; None where there is no such process. Source: proc_pid_stat(5)."""
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
    fields = rest[rest.rindex(b")") + 2 :].split()  # the command may hold anything, parentheses too
    return int(number), fields[0].decode(), int(fields[19])


def _threads(pid: int) -> int:
    """Count the threads: of a process whose first thread has ended the state is Z while the others run on."""
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
