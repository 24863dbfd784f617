"""Feeding a process and draining it, as ``communicate`` does."""

from __future__ import annotations

import os
import select
import time
from typing import IO, TYPE_CHECKING, Any, Final

from containerkit.errors import ContainerTimeout, SpecError

if TYPE_CHECKING:
    from containerkit.process import Process

__all__ = ["Conversation"]

_CHUNK: Final = 65536


class Conversation:
    """Feeds a process and drains it, until the process has ended and its pipes have nothing more to give.

    The end is the end of the process, not the end of the pipe: something that it left behind may hold the pipe open.
    """

    def __init__(self, process: Process, given: Any, timeout: float | None, limit: int | None) -> None:
        self.process = process
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.limit = limit
        self.poll = select.poll()
        self.open: dict[int, _Pipe] = {}
        self.total = 0
        self.rest = memoryview(b"")
        self.input_fd = -1
        self.out = self._listen(process.stdout)
        self.err = self._listen(process.stderr)
        self._prepare_input(given)

    def _listen(self, file: IO[Any] | None) -> _Pipe | None:
        if file is None:
            return None
        pipe = _Pipe(file)
        if not file.closed:
            fd = file.fileno()
            self.open[fd] = pipe
            os.set_blocking(fd, False)
            self.poll.register(fd, select.POLLIN)
        return pipe

    def _prepare_input(self, given: Any) -> None:
        stdin = self.process.stdin
        if stdin is None or stdin.closed:
            if given:
                raise SpecError("input: stdin is no pipe")
            return
        if given is None or len(given) == 0:
            if not self.process.terminal:
                _close_quietly(stdin)
            return
        _flush_quietly(stdin)
        if isinstance(given, str):
            given = given.encode(
                getattr(stdin, "encoding", None) or "utf-8", getattr(stdin, "errors", None) or "strict"
            )
        self.rest = memoryview(given).cast("B")
        self.input_fd = stdin.fileno()
        os.set_blocking(self.input_fd, False)
        self.poll.register(self.input_fd, select.POLLOUT)

    def hold(self) -> tuple[Any, Any]:
        process = self.process
        if process._pidfd >= 0:  # noqa: SLF001 - the other half of Process
            self.poll.register(process._pidfd, select.POLLIN)  # noqa: SLF001
            self._until_ended(process._pidfd)  # noqa: SLF001
        self._drain()
        process.wait()
        return self._results()

    def _results(self) -> tuple[Any, Any]:
        return self.out and self.out.result(), self.err and self.err.result()

    def _until_ended(self, pidfd: int) -> None:
        while True:
            for fd, _ in self.poll.poll(self._milliseconds()):
                if fd == pidfd:
                    return
                if fd == self.input_fd:
                    self._feed()
                else:
                    self._read(fd)
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self._give_up()

    def _milliseconds(self) -> float | None:
        if self.deadline is None:
            return None
        return max(0.0, (self.deadline - time.monotonic()) * 1000 + 0.5)

    def _give_up(self) -> None:
        process = self.process
        process._timed_out = True  # noqa: SLF001
        process._kill_all()  # noqa: SLF001
        process.wait()
        self._drain()
        assert self.timeout is not None
        raise ContainerTimeout(process.args, self.timeout, *self._results())

    def _feed(self) -> None:
        try:
            sent = os.write(self.input_fd, self.rest[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(self.rest)
        self.rest = self.rest[sent:]
        if not self.rest:
            self.poll.unregister(self.input_fd)
            if not self.process.terminal and self.process.stdin is not None:
                _close_quietly(self.process.stdin)

    def _read(self, fd: int) -> bool:
        """Read once; False when there is nothing more, now or ever."""
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the other side of a terminal is gone
            chunk = b""
        if not chunk:
            self.poll.unregister(fd)
            _close_quietly(self.open.pop(fd).file)
            return False
        self.total += len(chunk)
        if self.limit is not None and self.total > self.limit:
            self._overflow(fd, chunk)
            return True
        self.open[fd].chunks.append(chunk)
        return True

    def _overflow(self, fd: int, chunk: bytes) -> None:
        assert self.limit is not None
        kept = len(chunk) - (self.total - self.limit)
        if kept > 0:
            self.open[fd].chunks.append(chunk[:kept])
        process = self.process
        process._kill_all()  # noqa: SLF001
        process.wait()
        process.cause = "output"

    def _drain(self) -> None:
        """Take what lies in the pipes; what comes after the end of the process is nobody's."""
        for fd in list(self.open):
            while self._read(fd):
                if self.limit is not None and self.total > self.limit:
                    break
        for pipe in self.open.values():
            _close_quietly(pipe.file)
        if self.process.stdin is not None:
            _close_quietly(self.process.stdin)


class _Pipe:
    """One output of a process: its file, and what came out of it."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.chunks: list[bytes] = []

    def result(self) -> Any:
        raw = b"".join(self.chunks)
        encoding = getattr(self.file, "encoding", None)
        if encoding is None:
            return raw
        text = raw.decode(encoding, getattr(self.file, "errors", None) or "strict")
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _close_quietly(file: IO[Any]) -> None:
    try:
        file.close()
    except (BrokenPipeError, BlockingIOError):
        return


def _flush_quietly(file: IO[Any]) -> None:
    try:
        file.flush()
    except BrokenPipeError:
        return
