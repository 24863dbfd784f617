"""Feeding a process and draining it, as ``communicate`` does."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import IO, TYPE_CHECKING, Any, Final

from containerkit.errors import ContainerTimeout, SpecError

if TYPE_CHECKING:
    from containerkit.process import Process

__all__ = ["LONGEST_POLL_MS", "Conversation", "check_input"]

LONGEST_POLL_MS: Final = 2**31 - 1
"""What poll(2) takes, some 24 days; who wants to wait longer asks again."""

_CHUNK: Final = 65536
_FIONREAD: Final = 0x541B
_TERMINAL_BYTES: Final = 1024 * 1024  # more than a terminal buffers


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
        self.cut = False
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
        check_input(given, text=hasattr(stdin, "encoding"))
        _flush_quietly(stdin)
        if given is None or len(given) == 0:
            if not self.process.terminal:
                _close_quietly(stdin)
            return
        if isinstance(given, str):
            given = given.encode(
                getattr(stdin, "encoding", None) or "utf-8", getattr(stdin, "errors", None) or "strict"
            )
        self.rest = memoryview(given).cast("B")
        self.input_fd = stdin.fileno()
        os.set_blocking(self.input_fd, False)
        self.poll.register(self.input_fd, select.POLLOUT)

    def hold(self) -> tuple[Any, Any]:
        """Talk to the end, and return what was said on both outputs."""
        with self.process.watch() as pidfd:
            if pidfd >= 0:
                self.poll.register(pidfd, select.POLLIN)
                self._until_ended(pidfd)
        self._drain()
        self.process.wait()
        return self._results()

    def _results(self) -> tuple[Any, Any]:
        return self.out and self.out.result(cut=self.cut), self.err and self.err.result(cut=self.cut)

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
        return min(max(0.0, (self.deadline - time.monotonic()) * 1000 + 0.5), LONGEST_POLL_MS)

    def _give_up(self) -> None:
        process = self.process
        process._timed_out = True  # noqa: SLF001
        process._kill_all()  # noqa: SLF001
        process.wait()
        self.cut = True
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
        else:
            self.open[fd].chunks.append(chunk)
        return True

    def _overflow(self, fd: int, chunk: bytes) -> None:
        assert self.limit is not None
        kept = len(chunk) - (self.total - self.limit)
        if kept > 0:
            self.open[fd].chunks.append(chunk[:kept])
        self.cut = True
        process = self.process
        process._kill_all()  # noqa: SLF001
        process.wait()
        process.cause = "output"

    def _drain(self) -> None:
        """Take what lies in the pipes; what comes after the end of the process is nobody's.

        Something that it left behind may write on and on: no more is taken than there is now.
        """
        for fd in list(self.open):
            left = self._lying(fd)
            while left > 0 and (self.limit is None or self.total <= self.limit):
                before = self.total
                if not self._read(fd):
                    break
                left -= self.total - before
        for pipe in self.open.values():
            _close_quietly(pipe.file)
        if self.process.stdin is not None:
            _close_quietly(self.process.stdin)

    def _lying(self, fd: int) -> int:
        """Return how many bytes there are to read. Source: ioctl(2), FIONREAD."""
        if self.process.terminal:
            return _TERMINAL_BYTES
        import fcntl

        return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), sys.byteorder)


def check_input(given: Any, *, text: bool) -> None:
    """Refuse an input that does not fit its pipe.

    Raises:
        SpecError: str where bytes are wanted, or the other way round, or neither.
    """
    if given is None or isinstance(given, str if text else (bytes, bytearray, memoryview)):
        return
    wanted = "str, since text, encoding or errors is given" if text else "bytes (or say text=True for str)"
    raise SpecError(f"input: must be {wanted}, not {type(given).__name__}")


class _Pipe:
    """One output of a process: its file, and what came out of it."""

    def __init__(self, file: IO[Any]) -> None:
        self.file = file
        self.chunks: list[bytes] = []

    def result(self, *, cut: bool) -> Any:
        """Return all of it; where it was cut off that may be in the midst of a character."""
        raw = b"".join(self.chunks)
        encoding = getattr(self.file, "encoding", None)
        if encoding is None:
            return raw
        errors = getattr(self.file, "errors", None) or "strict"
        text = raw.decode(encoding, "replace" if cut and errors == "strict" else errors)
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
