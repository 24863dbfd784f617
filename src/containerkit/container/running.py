"""Records of running containers that were given an id, so that other processes of the same user can find them.

Each record is a file below /run (for a user: $XDG_RUNTIME_DIR), named after the id and the pid of its PID 1. It
contains the start time of that process, by which the record of a killed owner is recognised.
"""

from __future__ import annotations

import os
from contextlib import suppress

from containerkit._linux import procfs
from containerkit.errors import StateError

__all__ = ["find", "forget", "note", "sweep"]


def directory() -> str | None:
    """Return the directory of this user's records; None if the user has no runtime directory."""
    if os.geteuid() == 0:
        return "/run/containerkit/running"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return f"{base}/containerkit/running" if os.path.isdir(base) else None


def note(name: str, pid: int) -> str | None:
    """Record a container, and return the path of its record; None if records are not possible.

    If /run is not writable, the container starts anyway, but can't be found by its id.
    """
    place = directory()
    if place is None:
        return None
    path = f"{place}/{name}.{pid}"
    try:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            os.makedirs(place, mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, f"{procfs.start_time(pid)}\n".encode())
        finally:
            os.close(fd)
    except OSError:
        forget(path)
        return None
    return path


def forget(path: str | None) -> None:
    """Remove the record of a container. Has no effect if there is none."""
    if path is not None:
        with suppress(OSError):
            os.unlink(path)


def _alive(place: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Return the id and pid of each running container, and the paths of the other records."""
    alive, dead = [], []
    with suppress(OSError):
        for entry in sorted(os.listdir(place)):
            name, _, number = entry.rpartition(".")
            started = ""
            with suppress(OSError), open(f"{place}/{entry}", encoding="utf-8") as file:
                started = file.read().strip()
            if not number.isdecimal() or not started.isdecimal():
                continue  # it is being written, or is not a record
            if procfs.is_same(int(number), int(started)):
                alive.append((name, int(number)))
            else:
                dead.append(f"{place}/{entry}")
    return alive, dead


def find(name: str) -> int | None:
    """Return a pidfd of a running container's PID 1, which the caller then owns; None if none has this id.

    Raises:
        StateError: several containers have it.
    """
    place = directory()
    found = [] if place is None else [pid for known, pid in _alive(place)[0] if known == name]
    if len(found) > 1:
        raise StateError(f"container {name!r}: {len(found)} have that id (pids {', '.join(map(str, found))})")
    if not found:
        return None
    try:
        pidfd = os.pidfd_open(found[0])
    except ProcessLookupError:
        return None
    if name not in [known for known, pid in _alive(str(place))[0] if pid == found[0]]:  # the pid has been reused
        os.close(pidfd)
        return None
    return pidfd


def sweep() -> list[str]:
    """Remove the records of containers whose owners were killed. Return their descriptions for messages."""
    place = directory()
    dead = [] if place is None else _alive(place)[1]
    for path in dead:
        forget(path)
    return [f"record of container {os.path.basename(path).rpartition('.')[0]}" for path in dead]
