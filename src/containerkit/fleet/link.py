"""The worker's side of the connection to a driver. All tasks of a process share one connection per driver."""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import threading
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from containerkit.fleet.engine import Outcome
from containerkit.fleet.errors import FleetError, NodeLost
from containerkit.fleet.wire import Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.fleet.channel import Ticket

__all__ = ["Job", "Link"]

_CONNECT_S: Final = 10.0
_UNHEARD_BYTES: Final = 4 << 20
"""The maximum bytes of lines that the driver's listeners have not read. Commands that write more must wait."""


Where: TypeAlias = "str | tuple[int, str]"


class Job(Protocol):
    """A job that a worker runs for a driver."""

    id: str

    def cancel(self) -> None:
        """End it, or prevent its beginning. Returns soon."""

    def call(self, *message: Any) -> None:
        """Accept a call to a held container. Returns soon."""


class Link:
    """A connection to a driver.

    Args:
        ticket: the address of the driver, and the key.
        tls: returns the certificates of this node, for a driver that requires TLS (default: it has none).

    Raises:
        NodeLost: it can't be reached.
    """

    def __init__(self, ticket: Ticket, tls: Callable[[], ssl.SSLContext] | None = None) -> None:
        self._where = ticket[:3]
        self._condition = threading.Condition()
        self._sending = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._answers: dict[str, list[bytes]] = {}
        self._lines: list[tuple[str, Where, Any]] = []
        self._unsent = 0
        self._size = 0
        self._writes = False
        self.closed = False
        try:
            context = _context(tls) if ticket.tls else None
            sock = socket.create_connection((ticket.host, ticket.port), timeout=_CONNECT_S)
            self._wire = Wire(sock, ticket.key, driver=False, tls=context)
        except (OSError, EOFError) as error:
            raise NodeLost(
                f"task {ticket.id}: the driver at {ticket.host} port {ticket.port} can't be reached from node "
                f"{socket.gethostname()}: {error} (hint: listen= of the fleet, an address that nodes reach"
                f"{'; certificates that one authority signed' if ticket.tls else ''})"
            ) from error
        threading.Thread(target=self._hear, name="containerkit fleet", daemon=True).start()

    @classmethod
    def to(cls, ticket: Ticket, tls: Callable[[], ssl.SSLContext] | None = None) -> Link:
        """Return the connection to a driver. Create one if there is none."""
        where = ticket[:3]
        with _known_lock:
            link = _known.get(where)
            if link is None or link.closed:
                link = _known[where] = cls(ticket, tls)
            return link

    # --- Jobs

    def claim(self, job: Job, node: str) -> bytes | None:
        """Ask whether a job may begin here. From then on it can be cancelled.

        Returns:
            The task, pickled; None if it may not begin, or the driver has ended.
        """
        with self._condition:
            self._jobs[job.id] = job
            if self.closed:
                return None
        with contextlib.suppress(OSError):
            self._wire.send("claim", job.id, node)
        with self._condition:
            while job.id not in self._answers and not self.closed:
                self._condition.wait()
            answer = self._answers.pop(job.id, [])
        return answer[0] if answer else None

    def forget(self, job: Job) -> None:
        """Remove a job from this connection."""
        with self._condition:
            self._jobs.pop(job.id, None)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Report the end of a job to the driver, after all of its output."""
        self.forget(job)
        try:
            self.send("ended", job.id, outcome)
        except OSError:
            self._wire.close()
        except Exception as error:  # noqa: BLE001 - pickling runs foreign code
            told = FleetError(f"task {job.id}: its outcome can't be sent: {error!r:.500}")
            with contextlib.suppress(OSError):
                self.send("ended", job.id, Outcome(error=told, run_s=outcome.run_s))

    # --- Messages

    def send(self, *message: Any) -> None:
        """Send a message, after all earlier lines.

        Raises:
            OSError: the driver has ended.
        """
        with self._sending:
            self._send_lines()
            self._wire.send(*message)

    def write(self, task: str, stream: Where, line: Any) -> None:
        """Queue a line, to be sent soon together with others. Wait while too many bytes are unread.

        Args:
            task: the id of the task.
            stream: the stream of its command; in a held container after the number of the call.
            line: the line, without its newline.
        """
        size = len(line) + 64
        with self._condition:
            while self._size > _UNHEARD_BYTES and not self.closed:
                self._condition.wait()
            self._lines.append((task, stream, line))
            self._unsent += size
            self._size += size
            if not self._writes:
                self._writes = True
                threading.Thread(target=self._write, name="containerkit lines", daemon=True).start()
            self._condition.notify_all()

    def _write(self) -> None:
        while True:
            with self._condition:
                while not self._lines and not self.closed:
                    self._condition.wait()
                if self.closed:
                    return
            with self._sending, contextlib.suppress(OSError):
                self._send_lines()

    def _send_lines(self) -> None:
        with self._condition:
            lines, self._lines = self._lines, []
            size, self._unsent = self._unsent, 0
        if lines:
            self._wire.send("wrote", lines, size)

    def _hear(self) -> None:
        with contextlib.suppress(Exception):  # after any error this connection can't be used any more
            while True:
                word, task, *rest = self._wire.receive()
                if word == "took":
                    with self._condition:
                        self._size -= task
                        self._condition.notify_all()
                    continue
                if word == "go":
                    with self._condition:
                        self._answers[task] = [bytes(rest[0])] if rest[0] else []
                        self._condition.notify_all()
                    continue
                job = self._jobs.get(task)
                if job is not None:
                    job.cancel() if word == "cancel" else job.call(*rest)
        self._wire.close()
        with _known_lock:
            if _known.get(self._where) is self:
                del _known[self._where]
        with self._condition:
            self.closed = True
            jobs = list(self._jobs.values())
            self._condition.notify_all()
        for job in jobs:
            with contextlib.suppress(Exception):
                job.cancel()


def _context(tls: Callable[[], ssl.SSLContext] | None) -> ssl.SSLContext:
    if tls is None:
        raise PermissionError("the driver requires TLS, for which this worker has no certificates")
    return tls()


_known: dict[object, Link] = {}
_known_lock = threading.Lock()


def _after_fork() -> None:
    global _known_lock  # noqa: PLW0603 - a thread of the parent, which does not exist here, may hold it
    _known_lock = threading.Lock()
    _known.clear()  # the connections are the parent's


os.register_at_fork(after_in_child=_after_fork)


def loads(content: bytes) -> Any:
    """Return a task from the driver, which has proved that it has the key of the ticket."""
    return pickle.loads(content)  # noqa: S301 - those who submit tasks may run code here: that is the purpose of engines
