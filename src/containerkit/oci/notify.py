"""``NOTIFY_SOCKET``: a container tells the caller's service manager that it is ready.

The manager accepts messages only from processes that it knows. So the program gets a socket of the runtime, in its own
directory. ``start`` and ``run`` wait there until the program sends ``READY=1`` or ends, and forward its readiness.
Nothing else is forwarded, because other messages could control the manager.

Source: sd_notify(3), sd_pid_notify_barrier(3).
"""

from __future__ import annotations

import _socket
import os
import select
from struct import pack

from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from containerkit.oci.config import Config
    from containerkit.oci.log import Log
    from containerkit.oci.store import Entry

__all__ = ["DIRECTORY", "Listener", "add_socket", "manager"]

DIRECTORY = "notify"
"""The directory in the container's record whose only file is the socket."""

_VARIABLE = "NOTIFY_SOCKET"
_NAME = "notify"
_READY = b"READY=1"
_BARRIER_MS = 5000


def manager() -> str:
    """Return the address of the caller's service manager: a path, an abstract name with ``@``, or empty for none."""
    name = os.environ.get(_VARIABLE, "")
    return name if name[:1] in ("/", "@") and len(name) > 1 else ""


def add_socket(config: Config, entry: Entry) -> bool:
    """Make the directory for the container's socket, mount it inside, and set the variable that names the socket.

    Args:
        config: the container's configuration, which is changed.
        entry: its record.

    Returns:
        Whether there is a manager to notify. If the configuration names a socket, its author serves that one.
    """
    from containerkit.oci.config import Mount

    process = config.process
    name = manager()
    if not name or process is None or any(each.startswith(f"{_VARIABLE}=") for each in process.env):
        return False
    os.mkdir(DIRECTORY, 0o755, dir_fd=entry.fd)
    place = name if name.startswith("/") else "/run/notify"
    options = ["bind", "private", "ro", "nosuid", "nodev", "noexec"]
    content = {"destination": place, "type": "bind", "source": f"{entry.path}/{DIRECTORY}", "options": options}
    config.mounts = [*config.mounts, Mount.read(content, f"mounts[{len(config.mounts)}]")]
    process.env = [*process.env, f"{_VARIABLE}={place}/{_NAME}"]
    return True


class Listener:
    """The runtime's end of the socket, until the container is ready.

    Args:
        entry: the container's record; its first process is alive.
        name: the address of the manager.
        journal: gets a warning if the manager can't be notified. The container runs anyway.

    Raises:
        RuntimeFailure: the socket can't be made.
    """

    def __init__(self, entry: Entry, name: str, journal: Log) -> None:
        self.manager = name
        self.journal = journal
        self.pid = entry.pid
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        self._pidfd = -1
        path = f"/proc/self/fd/{entry.fd}/{DIRECTORY}/{_NAME}"  # a longer one may not fit into an address
        try:
            self._pidfd = os.pidfd_open(entry.pid)
            self._socket.bind(path)
            os.chmod(path, 0o777)  # for any user that the program may have
        except OSError as error:
            self.close()
            raise RuntimeFailure(f"make {entry.path}/{DIRECTORY}/{_NAME}: {strerror(error.errno or 0)}") from None

    @classmethod
    def of(cls, entry: Entry, journal: Log) -> Listener | None:
        """Return the listener of a container that was made to notify a manager, if this call has one."""
        name = manager()
        return cls(entry, name, journal) if name and entry.record.get("notifies") else None

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is a message."""
        return self._socket.fileno()

    def wait(self) -> None:
        """Wait until the container is ready, and notify the manager, or until it ends. Then close the socket."""
        with self:
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.register(self.fileno(), select.POLLIN)
            while True:
                ready = dict(poller.poll())
                if self.fileno() in ready:
                    if self._is_ready():
                        self._notify(self.pid)
                        return
                elif self._pidfd in ready:
                    return

    def serve(self) -> bool:
        """Receive a message. If it says that the container is ready, notify the manager and close the socket.

        The manager continues to watch the runtime, whose exit status is the container's.

        Returns:
            Whether the container is ready.
        """
        if not self._is_ready():
            return False
        with self:
            self._notify(0)
        return True

    def _is_ready(self) -> bool:
        return _READY in self._socket.recv(4096).split(b"\n")

    def _notify(self, main: int) -> None:
        """Tell the manager that the container is ready, and to watch process ``main`` if that is not 0."""
        outside = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
        try:
            outside.connect("\0" + self.manager[1:] if self.manager[0] == "@" else self.manager)
            outside.send(_READY)
            if main:
                outside.send(b"MAINPID=%d" % main)
            self._await_barrier(outside)
        except OSError as error:
            self.journal.warning(f"{_VARIABLE} {self.manager}: {strerror(error.errno or 0)}")
        finally:
            outside.close()

    def _await_barrier(self, outside: _socket.socket) -> None:
        """Wait until the manager has read the message.

        The manager identifies a sender by its process, which must still exist then.
        It closes the pipe when it has read the message.
        """
        reading, writing = os.pipe()
        try:
            outside.sendmsg([b"BARRIER=1"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", writing))])
            os.close(writing)
            writing = -1
            poller = select.poll()
            poller.register(reading, select.POLLIN)
            if not poller.poll(_BARRIER_MS):
                seconds = _BARRIER_MS // 1000
                self.journal.warning(f"{_VARIABLE} {self.manager}: the message was not read within {seconds} s")
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def close(self) -> None:
        """Close the socket; may be called twice."""
        self._socket.close()
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
