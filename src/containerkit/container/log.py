"""The log of a container: the last part of the output that its commands write to it."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque

from containerkit.descriptors import close_all, keep
from containerkit.errors import StateError, telling_of_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["LOG_BYTES", "Log"]

LOG_BYTES: Final = 1024 * 1024
"""How many bytes are kept. Older output is dropped."""

_CHUNK: Final = 65536


class Log:
    """A log that commands of a container write to: ``c.popen(argv, stdout=c.log, stderr=c.log)``.

    The last MiB is kept in the memory of this process. One thread reads the logs of all containers, so no command is
    blocked.

    Args:
        owner: a uid outside that owns the pipe, so that commands can open it by name; None for the caller.
    """

    def __init__(self, owner: int | None) -> None:
        self._lock = threading.Lock()
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._ends: list[int] = []
        self._make(owner)

    @telling_of_descriptors("open")
    def _make(self, owner: int | None) -> None:
        pairs: list[tuple[int, int]] = []
        keep(pairs, os.pipe2, os.O_CLOEXEC)
        self._ends += pairs[0]
        try:
            os.set_blocking(self._ends[0], False)
            if owner is not None:
                os.fchown(self._ends[1], owner, -1)
            _pump.add(self)
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor that commands write to.

        Raises:
            StateError: the container has stopped.
        """
        with self._lock:
            if not self._ends:
                raise StateError("log: its container has stopped")
            return self._ends[1]

    @property
    def source(self) -> int:
        """The descriptor that is read; -1 once it is closed."""
        ends = self._ends
        return ends[0] if ends else -1

    def take(self) -> None:
        """Read the content of the pipe."""
        with self._lock:
            # Read at most one pipe's capacity at a time, because a command may write without end.
            for _ in range(2 * LOG_BYTES // _CHUNK):
                if not self._ends or not self._take():
                    return

    def _take(self) -> bool:
        try:
            piece = os.read(self._ends[0], _CHUNK)
        except BlockingIOError:
            return False
        self._pieces.append(piece)
        self._size += len(piece)
        while self._size - len(self._pieces[0]) >= LOG_BYTES:
            self._size -= len(self._pieces.popleft())
        return bool(piece)

    def read(self) -> bytes:
        """Return the kept output, including all that commands have written so far."""
        self.take()
        with self._lock:
            return b"".join(self._pieces)[-LOG_BYTES:]

    def close(self) -> None:
        """Read the content of the pipe, and close it. The kept output remains. May be called twice."""
        self.take()
        _pump.remove(self)
        with self._lock:
            close_all(self._ends)


class _Pump:
    """The thread that reads the logs of all containers; it begins with the first log, and ends with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: dict[int, Log] = {}
        self._thread: threading.Thread | None = None
        self._wake: list[int] = []

    def add(self, log: Log) -> None:
        with self._lock:
            self._logs[log.source] = log
            if not self._wake:
                keep(self._wake, os.eventfd, 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="containerkit logs", daemon=True)
                self._thread.start()
            os.eventfd_write(self._wake[0], 1)

    def remove(self, log: Log) -> None:
        """Stop reading a log. The thread may try once more and then finds it closed."""
        with self._lock:
            if self._logs.get(log.source) is not log:
                return
            del self._logs[log.source]
            os.eventfd_write(self._wake[0], 1)

    def _run(self) -> None:
        while True:
            with self._lock:
                logs = list(self._logs.values())
                if not logs:
                    self._thread = None
                    close_all(self._wake)
                    return
                poll = select.poll()
                poll.register(self._wake[0], select.POLLIN)
                for log in logs:
                    if log.source >= 0:
                        poll.register(log.source, select.POLLIN)
                wake = self._wake[0]
            ready = {fd for fd, _ in poll.poll()}
            if wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(wake)
            for log in logs:
                if log.source in ready:
                    log.take()


_pump = _Pump()


def _after_fork() -> None:
    global _pump  # noqa: PLW0603 - the thread belongs to the parent
    _pump = _Pump()


os.register_at_fork(after_in_child=_after_fork)
