"""Send input to a process and read its output, as ``communicate`` does."""

from __future__ import annotations

import os
import select
import sys
import time

from containerkit import _native
from containerkit.errors import SpecError
from containerkit.process.lines import Lines
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final

    from containerkit.process.process import Process
    from containerkit.process.stdio import End

__all__ = ["LONGEST_POLL_MS", "Communication", "LineCallbacks", "check_input"]

LONGEST_POLL_MS: Final = 2**31 - 1
"""The longest timeout of poll(2), some 24 days. For longer waits it is called again."""

_CHUNK: Final = 65536
_FIONREAD: Final = 0x541B
_TERMINAL_BYTES: Final = 1024 * 1024  # more than a terminal buffers
_HANGUP_S: Final = 0.2  # a terminal hangs up within some milliseconds after the end of its session


class Communication:
    """Sends input to a process and reads its output, until it has ended and its pipes are empty.

    It stops at the end of the process, not of the pipe, because a process that was left behind may hold the pipe open.
    """

    def __init__(
        self,
        process: Process[Any],
        given: Any,
        timeout: float | None,
        limit: int | None,
        callbacks: LineCallbacks | None = None,
    ) -> None:
        self.process = process
        self._hears = callbacks is not None
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.limit = limit
        self.total = 0
        self.cut = False
        self.rest = memoryview(b"")
        self.stdin, out, err = process.ends
        on_out, on_err, kept = callbacks or (None, None, True)
        self.out = None if out is None else _Output(out, on_out, kept=kept or on_out is None)
        self.err = None if err is None else _Output(err, on_err, kept=kept or on_err is None)
        self._prepare_input(given)

    def _prepare_input(self, given: Any) -> None:
        stdin = self.stdin
        if stdin is None or stdin.closed:
            if given:
                raise SpecError("input: stdin is not a pipe")
            return
        check_input(given, text=stdin.text is not None)
        stdin.flush()
        if given is None or len(given) == 0:
            if not self.process.terminal:
                stdin.close()
            return
        if isinstance(given, str):
            assert stdin.text is not None
            given = given.encode(stdin.text.encoding, stdin.text.errors)
        self.rest = memoryview(given).cast("B")

    def continue_with(self, heard: Sequence[bytes], deadline: float | None) -> None:
        """Continue after another object has read a part of the output. The deadline is by the monotonic clock."""
        self.deadline = deadline
        self._keep(heard)

    def _keep(self, heard: Sequence[bytes]) -> None:
        for output, chunk in zip((self.out, self.err), heard, strict=True):
            if output is not None and chunk:
                output.take(chunk)
                self.total += len(chunk)

    def hold(self) -> tuple[Any, Any]:
        """Communicate to the end, and return both outputs."""
        self.process.watched(self._hold)
        for end in self.process.ends:
            if end is not None:
                end.close()
        self.process.wait()
        self.finish()
        return self.results()

    def finish(self) -> None:
        """Pass on an unfinished line."""
        for output in (self.out, self.err):
            if output is not None:
                output.finish()

    def _hold(self, pidfd: int) -> None:
        if pidfd < 0 or not self._read_both(pidfd):
            _Polling(self).hold(pidfd)

    def _read_both(self, pidfd: int) -> bool:
        """Read both outputs to the end in one call, if there is no input. Return False if that was not possible.

        What was read until then is kept.
        """
        if self.rest or self.process.terminal or self._hears:
            return False
        fds = [-1 if output is None or output.end.closed else output.end.fileno() for output in (self.out, self.err)]
        left = None if self.limit is None else max(0, self.limit - self.total)
        problem, *heard = _native.interpreter().listen(pidfd, *fds, left, self.deadline)
        self._keep(heard)
        return not problem

    def results(self) -> tuple[Any, Any]:
        """Return the outputs so far."""
        return self.out and self.out.result(cut=self.cut), self.err and self.err.result(cut=self.cut)


class _Polling:
    """Communication by poll(2): with input, or with an unusual end."""

    def __init__(self, talk: Communication) -> None:
        self.talk = talk
        self.process = talk.process
        self.poll = select.poll()
        self.open: dict[int, _Output] = {}
        self.input_fd = -1
        for output in (talk.out, talk.err):
            if output is not None and not output.end.closed:
                fd = output.end.fileno()
                self.open[fd] = output
                os.set_blocking(fd, False)
                self.poll.register(fd, select.POLLIN)
        if talk.rest and talk.stdin is not None:
            self.input_fd = talk.stdin.fileno()
            os.set_blocking(self.input_fd, False)
            self.poll.register(self.input_fd, select.POLLOUT)

    def hold(self, pidfd: int) -> None:
        """Communicate to the end. A ``pidfd`` of -1 means that the process has ended."""
        if pidfd >= 0:
            self.poll.register(pidfd, select.POLLIN)
            self._until_ended(pidfd)
        self._drain()

    def _until_ended(self, pidfd: int) -> None:
        while True:
            for fd, _ in self.poll.poll(self._milliseconds()):
                if fd == pidfd:
                    return
                if fd == self.input_fd:
                    self._feed()
                else:
                    self._read(fd)
            if self.talk.deadline is not None and time.monotonic() >= self.talk.deadline:
                self._give_up()

    def _milliseconds(self) -> float | None:
        if self.talk.deadline is None:
            return None
        return min(max(0.0, (self.talk.deadline - time.monotonic()) * 1000 + 0.5), LONGEST_POLL_MS)

    def _give_up(self) -> None:
        from containerkit.errors import ContainerTimeout  # late: it imports subprocess

        process, talk = self.process, self.talk
        process.kill_all("timeout")
        process.wait()
        talk.cut = True
        self._drain()
        talk.finish()
        assert talk.timeout is not None
        raise ContainerTimeout(process.args, talk.timeout, *talk.results())

    def _feed(self) -> None:
        talk = self.talk
        try:
            sent = os.write(self.input_fd, talk.rest[:_CHUNK])
        except BlockingIOError:
            return
        except BrokenPipeError:
            sent = len(talk.rest)
        talk.rest = talk.rest[sent:]
        if not talk.rest:
            self.poll.unregister(self.input_fd)
            if not self.process.terminal and talk.stdin is not None:
                talk.stdin.close()

    def _read(self, fd: int) -> bool:
        """Read once. Return False if there is nothing more."""
        talk = self.talk
        try:
            chunk = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # EIO: the other side of a terminal is closed
            chunk = b""
        if not chunk:
            self.poll.unregister(fd)
            self.open.pop(fd).end.close()
            return False
        output = self.open[fd]
        if output.kept:
            talk.total += len(chunk)
        if output.kept and talk.limit is not None and talk.total > talk.limit:
            self._overflow(fd, chunk, talk.limit)
        else:
            output.take(chunk)
        return True

    def _overflow(self, fd: int, chunk: bytes, limit: int) -> None:
        kept = len(chunk) - (self.talk.total - limit)
        if kept > 0:
            self.open[fd].take(chunk[:kept])
        self.talk.cut = True
        process = self.process
        process.kill_all()
        process.wait()
        process.cause = "output"

    def _drain(self) -> None:
        """Read what is in the pipes. Output after the end of the process is ignored.

        A process that was left behind may write without end, so only the bytes that are there now are read.
        """
        talk = self.talk
        for fd in list(self.open):
            if self.process.terminal:
                self._drain_terminal(fd)
                continue
            left = self._available(fd)
            output = self.open[fd]
            while left > 0 and (talk.limit is None or talk.total <= talk.limit):
                before = output.size
                if not self._read(fd):
                    break
                left -= output.size - before
        for end in self.process.ends:
            if end is not None:
                end.close()

    def _drain_terminal(self, fd: int) -> None:
        """Read until it hangs up. Output passes through a worker of the kernel and may arrive a moment later.

        A process that was left behind may prevent the hangup, and continue to write.
        """
        until = time.monotonic() + _HANGUP_S
        most = self.talk.total + _TERMINAL_BYTES
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while self.talk.total < most and (self.talk.limit is None or self.talk.total <= self.talk.limit):
            if self._read(fd):
                continue
            left = until - time.monotonic()
            if fd not in self.open or left <= 0 or not poll.poll(left * 1000):
                return

    def _available(self, fd: int) -> int:
        """Return how many bytes there are to read. Source: ioctl(2), FIONREAD."""
        import fcntl

        return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), sys.byteorder)


def check_input(given: Any, *, text: bool) -> None:
    """Refuse an input that does not fit its pipe.

    Raises:
        SpecError: it is str instead of bytes, or the other way round, or neither.
    """
    if given is None or isinstance(given, str if text else (bytes, bytearray, memoryview)):
        return
    wanted = "str, since text, encoding or errors is given" if text else "bytes (or pass text=True for str)"
    raise SpecError(f"input: must be {wanted}, not {type(given).__name__}")


class LineCallbacks(NamedTuple):
    """The functions that get the lines of a command as they are written.

    Attributes:
        on_stdout, on_stderr: called with each line, without its end.
        kept: whether the output is also kept.
    """

    on_stdout: Callable[[Any], object] | None
    on_stderr: Callable[[Any], object] | None
    kept: bool = True

    @classmethod
    def of(
        cls, on_stdout: Callable[[Any], object] | None, on_stderr: Callable[[Any], object] | None, *, kept: bool
    ) -> LineCallbacks | None:
        """Return the listeners, or None without any.

        Raises:
            SpecError: one can't be called.
        """
        for name, call in (("on_stdout", on_stdout), ("on_stderr", on_stderr)):
            if call is not None and not callable(call):
                raise SpecError(f"{name}: {call!r:.100} can't be called with a line; pass for example on_stdout=print")
        return None if on_stdout is None and on_stderr is None else cls(on_stdout, on_stderr, kept)


class _Output:
    """One output of a process, and what was read from it.

    Args:
        end: the caller's end.
        hear: called with each line.
        kept: whether the output is kept.
    """

    def __init__(self, end: End, hear: Callable[[Any], object] | None, *, kept: bool) -> None:
        self.end = end
        self.kept = kept
        self.size = 0
        self._chunks: list[bytes] = []
        self._lines = None if hear is None else Lines(hear, end.text)

    def take(self, chunk: bytes) -> None:
        """Add a piece."""
        self.size += len(chunk)
        if self.kept:
            self._chunks.append(chunk)
        if self._lines is not None:
            self._lines.feed(chunk)

    def finish(self) -> None:
        """Mark the end of the output."""
        if self._lines is not None:
            self._lines.finish()

    def result(self, *, cut: bool) -> Any:
        """Return all of it, or None if it was not kept."""
        if not self.kept:
            return None
        raw = b"".join(self._chunks)
        return raw if self.end.text is None else self.end.text.decode(raw, cut=cut)
