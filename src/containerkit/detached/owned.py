"""Containers that end with the process that started them, their owner. There is no record of them.

A start writes nothing to disk. Their inits are found in /proc: each is the library's own program, and has a pidfd of
the owner, from which the kernel reports the owner's pid.

Source: proc_pid_fdinfo(5); pidfd_open(2).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Mapping
    from typing import Final

__all__ = ["Owned", "owned"]

_INIT: Final = "/memfd:init (deleted)"
_OWNER_FD: Final = 3
"""The descriptor with which an init watches its owner; see init.c."""
_START_TIME: Final = 19
"""The place of the start time among the fields of /proc/PID/stat, counted after the name. Source: proc_pid_stat(5)."""


class Owned(NamedTuple):
    """A container that ends with its owner.

    Attributes:
        pid: of its init.
        owner: the pid of the process that started it.
        id: its id, if one was given; otherwise empty.
        argv: the oldest running command in it; empty for none.
        started_at: seconds since 1970.
    """

    pid: int
    owner: int
    id: str
    argv: tuple[str, ...]
    started_at: float


def owned(without: Container[int] = ()) -> list[Owned]:
    """Return the containers of this user that end with their owners, the oldest first.

    Args:
        without: pids of inits to omit.

    Only processes in the pid namespace of /proc are found. A container without its own pid namespace has no init.
    """
    ids, processes = _ids(), _processes()
    clock = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    ticks = os.sysconf("SC_CLK_TCK")
    inits = {}
    for pid, (name, _, started) in processes.items():
        if name == "init" and pid not in without:
            with suppress(OSError, ValueError):  # it has ended in the meantime, or belongs to another user
                if os.readlink(f"/proc/{pid}/exe") == _INIT and (owner := _owner(pid)):
                    inits[pid] = owner, os.readlink(f"/proc/{pid}/ns/pid"), clock + started / ticks
    commands = _commands(inits, processes)
    found = [Owned(pid, of, ids.get(pid, ""), commands.get(space, ()), at) for pid, (of, space, at) in inits.items()]
    return sorted(found, key=lambda each: each.started_at)


def _processes() -> dict[int, tuple[str, int, int]]:
    """Return the name, the parent and the start time of each process."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            head, _, rest = _read(int(pid), "stat").rpartition(")")
            fields = rest.split()
            found[int(pid)] = head.partition("(")[2], int(fields[1]), int(fields[_START_TIME])
    return found


def _commands(
    inits: Mapping[int, tuple[int, str, float]], processes: Mapping[int, tuple[str, int, int]]
) -> dict[str, tuple[str, ...]]:
    """Return the oldest command in each pid namespace. Commands are children of the init or of its owner."""
    parents = {*inits, *(owner for owner, _, _ in inits.values())}
    found: dict[str, tuple[str, ...]] = {}
    for pid, (_, parent, _) in sorted(processes.items(), key=lambda each: each[1][2]):
        if parent in parents and pid not in inits:
            with suppress(OSError):
                found.setdefault(
                    os.readlink(f"/proc/{pid}/ns/pid"), tuple(_read(pid, "cmdline").rstrip("\0").split("\0"))
                )
    return found


def _read(pid: int, name: str) -> str:
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()


def _owner(pid: int) -> int:
    """Return the pid of an init's owner; 0 if it belongs to another user, or has ended."""
    for line in _read(pid, f"fdinfo/{_OWNER_FD}").splitlines():
        if line.startswith("Pid:"):
            owner = int(line[4:])
            return owner if owner > 0 and os.stat(f"/proc/{owner}").st_uid == os.geteuid() else 0
    return 0


def _ids() -> dict[int, str]:
    """Return the ids of containers that were given one, by the pids of their inits."""
    base = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    try:
        names = os.listdir(f"{base}/containerkit/running")
    except OSError:
        return {}
    parts = (each.rpartition(".") for each in names)
    return {int(pid): name for name, _, pid in parts if pid.isdecimal()}
