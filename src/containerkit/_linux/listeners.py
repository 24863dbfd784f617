"""Who listens on a Unix socket, and whether it can answer.

Source: unix(7), SO_PEERCRED; connect(2); proc_pid_stat(5).
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

__all__ = ["has_listener", "listener_of", "refuse_stopped"]


def has_listener(path: str) -> bool:
    """Return whether a process listens on a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # it has many connections to answer
            return True
        except OSError:
            return False
    return True


def listener_of(connection: socket.socket) -> tuple[int, int]:
    """Return the pid and the uid of the process that listens on the other side."""
    pid, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def refuse_stopped(connection: socket.socket, what: str) -> None:
    """Refuse to wait for a process that was stopped by a signal.

    Raises:
        StateError: it was.
    """
    from containerkit.errors import StateError

    pid, _ = listener_of(connection)
    state = b""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        state = file.read().rpartition(b")")[2].split()[0]
    if state == b"T":  # a debugger's "t" is short
        raise StateError(f"{what}: its process {pid} is stopped, so it does not answer: kill -CONT {pid}")
