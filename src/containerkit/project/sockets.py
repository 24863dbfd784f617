"""The paths of the sockets of projects that separate processes hold."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from containerkit._linux.listeners import has_listener
from containerkit.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["alone", "directory", "names", "socket_path", "sweep"]


def directory() -> str:
    """Return the directory of the sockets of this user's projects."""
    if os.geteuid() == 0:
        return "/run/containerkit/projects"
    base = os.environ.get("XDG_RUNTIME_DIR")
    if not base:
        raise StateError("projects: XDG_RUNTIME_DIR is not set: log in through a session manager, or set it")
    return os.path.join(base, "containerkit", "projects")


def socket_path(name: str) -> str:
    """Return the path of a project's socket."""
    return os.path.join(directory(), f"{name}.sock")


def names() -> Iterator[str]:
    """Iterate over the names of this user's projects that are up."""
    try:
        entries = sorted(os.listdir(directory()))
    except (FileNotFoundError, StateError):
        return
    for entry in entries:
        if entry.endswith(".sock"):
            if has_listener(_path(entry)):
                yield entry.removesuffix(".sock")
            else:  # its process was killed
                with suppress(FileNotFoundError):
                    os.unlink(_path(entry))


@contextmanager
def alone() -> Iterator[None]:
    """Wait until no other process gives a socket its name, and keep others from doing so."""
    os.makedirs(directory(), mode=0o700, exist_ok=True)
    fd = os.open(directory(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sweep() -> list[str]:
    """Remove the sockets of killed processes. Return their paths."""
    try:
        if not os.path.isdir(directory()):
            return []
    except StateError:
        return []
    with alone():
        gone = [path for path in map(_path, os.listdir(directory())) if not has_listener(path)]
        for path in gone:
            with suppress(FileNotFoundError):
                os.unlink(path)
    return gone


def _path(entry: str) -> str:
    return os.path.join(directory(), entry)
