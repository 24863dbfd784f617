"""The paths of the sockets of projects that separate processes hold."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

from containerkit.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["directory", "names", "socket_path"]


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
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                try:
                    probe.connect(os.path.join(directory(), entry))
                except OSError:  # its process was killed
                    with suppress(FileNotFoundError):
                        os.unlink(os.path.join(directory(), entry))
                    continue
            yield entry.removesuffix(".sock")
