"""The caller's side of a process inside that runs code.

::

    caller                          process inside
    run, code                   ->
                                <-  {"display": {...}}     any number
                                <-  {"result": {...}, "error": {...}, "usage": {...}}
    fork, save, restore + fds   ->                         the child takes socket, stdout, stderr
                                <-  {"ready": pid} + pidfd on the child's own socket

Each message is a length, 4 bytes in network byte order, followed by words separated by NUL, or JSON. Answers are not
trusted: an invalid one ends the process.
"""

from __future__ import annotations

import codecs
import json
import os
import select
import signal
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    Heard = Callable[[str], object] | None

__all__ = ["Branch", "LostError", "Talk"]

_LONGEST: Final = 64 * 1024 * 1024
_CHUNK: Final = 65536
_ANSWERS_S: Final = 10.0
"""The time limit of a fork in seconds. A fork copies the files of the workspace."""

_GROUP: Final = 4  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class LostError(Exception):
    """The process has ended, or has sent an invalid message."""


class Branch:
    """One process: its socket, its output and its pidfd.

    Args:
        sock: the caller's end of the socket.
        streams: the read ends of its stdout and stderr.
        pidfd: its pidfd, or -1.
    """

    def __init__(self, sock: socket.socket, streams: tuple[int, int], pidfd: int = -1) -> None:
        self.sock = sock
        self.streams = streams
        self.pidfd = pidfd
        self.poll = select.poll()
        self._owner = os.getpid()

    @property
    def is_open(self) -> bool:
        """Whether it is not closed."""
        return self.sock.fileno() >= 0

    def send(self, *words: str, fds: tuple[int, ...] = (), deadline: float | None = None) -> None:
        """Send a message.

        Raises:
            LostError: the process does not accept it.
        """
        raw = "\0".join(words).encode("utf-8", "surrogatepass")
        data = struct.pack("!I", len(raw)) + raw
        try:
            sent = socket.send_fds(self.sock, [data], list(fds)) if fds else self._sent(data)
            if sent < len(data):
                self._send_rest(memoryview(data)[sent:], deadline)
        except OSError as error:
            raise LostError(str(error)) from None

    def _sent(self, data: bytes) -> int:
        """Send what is accepted at once, usually all of it. Return the number of bytes."""
        try:
            return self.sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0

    def _send_rest(self, data: memoryview, deadline: float | None) -> None:
        try:
            while data:
                self.sock.settimeout(_left(deadline))
                data = data[self.sock.send(data) :]
        finally:
            self.sock.settimeout(None)  # with a timeout each call of the socket would poll first

    def fork(self, *, save: str = "", restore: str = "") -> Branch:
        """Fork the process in its present state.

        Args:
            save: a directory inside that receives a copy of the workspace (default: none).
            restore: a directory inside whose content replaces that of the workspace (default: none).

        Raises:
            LostError: the fork failed.
        """
        if not self.is_open:
            raise LostError("it was closed")
        ours, theirs = socket.socketpair()
        made: list[int] = []
        try:
            pairs = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
            made = [fd for pair in pairs for fd in pair]
            ends = theirs.fileno(), pairs[0][1], pairs[1][1]
            self.send("fork", save, restore, fds=ends, deadline=time.monotonic() + _ANSWERS_S)
            theirs.close()
            for _, write in pairs:
                os.close(write)
                made.remove(write)
            child = Branch(ours, (pairs[0][0], pairs[1][0]))
            child.greet()
        except BaseException:
            ours.close()
            theirs.close()
            for fd in made:
                os.close(fd)
            raise
        return child

    def greet(self) -> None:
        """Wait until it runs, and receive its pidfd.

        Raises:
            LostError: it does not run.
        """
        deadline = time.monotonic() + _ANSWERS_S
        message, fds = self._receive(deadline)
        self.sock.settimeout(None)
        for extra in fds[1:]:
            os.close(extra)
        self.pidfd = fds[0] if fds else -1
        for fd in self.streams:
            os.set_blocking(fd, False)
        for fd in (self.sock.fileno(), *self.streams, self.pidfd):
            if fd >= 0:
                self.poll.register(fd, select.POLLIN)
        if not isinstance(message.get("ready"), int):
            self.kill()
            raise LostError(f"it could not be forked: {message.get('error')!r:.300}")

    def _receive(self, deadline: float) -> tuple[dict[str, Any], list[int]]:
        fds: list[int] = []
        try:
            self.sock.settimeout(_left(deadline))
            head, fds, _, _ = socket.recv_fds(self.sock, 4, 4, socket.MSG_CMSG_CLOEXEC)
            raw = self._exactly(4 - len(head), deadline, head)
            body = self._exactly(_length(raw), deadline)
            return _message(body), fds
        except (OSError, LostError) as error:
            for fd in fds:
                os.close(fd)
            raise LostError(str(error)) from None

    def _exactly(self, size: int, deadline: float, before: bytes = b"") -> bytes:
        pieces, left = [before], size
        while left:
            self.sock.settimeout(_left(deadline))
            piece = self.sock.recv(min(left, _CHUNK))
            if not piece:
                raise LostError("it has ended")
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the code that it runs."""
        self._signal(signal.SIGINT, 0)

    def kill(self) -> None:
        """Kill it and its process group. May be called twice."""
        if not self._signal(signal.SIGKILL, _GROUP):
            self._signal(signal.SIGKILL, 0)

    def _signal(self, number: int, flags: int) -> bool:
        if self.pidfd < 0:
            return False
        try:
            signal.pidfd_send_signal(self.pidfd, number, None, flags)
        except OSError:  # it has ended, it has sent something else than a pidfd, or the kernel is too old
            return False
        return True

    def close(self) -> None:
        """Kill it and close its descriptors. May be called twice. A forked child only closes them."""
        if not self.is_open:
            return
        if os.getpid() == self._owner:
            self.kill()
        self.sock.close()
        for fd in self.streams:
            os.close(fd)
        if self.pidfd >= 0:
            fd, self.pidfd = self.pidfd, -1
            os.close(fd)


class Talk:
    """Receives the output and the answers of a process while it runs a piece of code.

    Args:
        branch: the process.
        on_stdout, on_stderr: called with each piece of text.
        on_result: called with each result.
        limit: the number of bytes of output and results to keep.
    """

    def __init__(
        self, branch: Branch, on_stdout: Heard, on_stderr: Heard, on_result: Callable[[Any], object] | None, limit: int
    ) -> None:
        self._branch = branch
        self._poll = branch.poll
        out, err = branch.streams
        self._outputs = {out: _Output(on_stdout), err: _Output(on_stderr)}
        self._socket = branch.sock.fileno()
        self._raw = bytearray()
        self._on_result = on_result
        self._left = limit
        self.shown: list[dict[str, Any]] = []
        self.truncated = False
        self.answer: dict[str, Any] | None = None

    @property
    def texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The output on stdout and stderr."""
        out, err = self._outputs.values()
        return tuple(out.pieces), tuple(err.pieces)

    def hold(self, deadline: float | None) -> bool:
        """Wait for an answer. Return False if the deadline passes before.

        Raises:
            LostError: the process has ended, or has sent an invalid message.
        """
        while self.answer is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000 + 0.5
            ready = self._poll.poll(left)
            if not ready and deadline is not None and time.monotonic() >= deadline:
                return False
            fds = [fd for fd, _ in ready]
            for fd in fds:
                if fd in self._outputs:
                    self._read(fd)
            if self._socket in fds:
                self._hear()
            elif self._branch.pidfd in fds:  # its children may keep the socket open
                raise LostError("it has ended")
        return True

    def finish(self) -> None:
        """Read the rest of the output that exists now."""
        for fd, _ in self._poll.poll(0):
            while fd in self._outputs and self._read(fd):
                pass
        for output in self._outputs.values():
            output.end()

    def _read(self, fd: int) -> bool:
        try:
            raw = os.read(fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            raw = b""
        if not raw:  # all writers have closed it
            with suppress(KeyError):
                self._poll.unregister(fd)
            return False
        kept = raw[: self._left]
        self._left -= len(kept)
        self.truncated |= len(kept) < len(raw)
        if kept:
            self._outputs[fd].take(kept)
        return bool(kept)

    def _hear(self) -> None:
        try:
            piece = self._branch.sock.recv(1 << 20 if self._raw else _CHUNK, socket.MSG_DONTWAIT)
        except OSError as error:
            raise LostError(str(error)) from None
        if not piece:
            raise LostError("it has ended")
        self._raw += piece
        while self.answer is None and len(self._raw) >= 4:
            size = _length(self._raw[:4])
            if len(self._raw) < 4 + size:
                return
            message = _message(bytes(self._raw[4 : 4 + size]))
            del self._raw[: 4 + size]
            self._take(message, size)

    def _take(self, message: dict[str, Any], size: int) -> None:
        shown = message.get("display")
        if not isinstance(shown, dict):
            self.answer = message
            return
        if size > self._left:
            self.truncated = True
            return
        self._left -= size
        self.shown.append(shown)
        if self._on_result is not None:
            self._on_result(shown)


class _Output:
    """The output of one stream, as text."""

    def __init__(self, hear: Heard) -> None:
        self.pieces: list[str] = []
        self._hear = hear
        self._decoder: codecs.IncrementalDecoder | None = None

    def take(self, raw: bytes, *, last: bool = False) -> None:
        if self._decoder is None:
            self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = self._decoder.decode(raw, last)
        if text:
            self.pieces.append(text)
            if self._hear is not None:
                self._hear(text)

    def end(self) -> None:
        """Take a last character that is incomplete."""
        if self._decoder is not None:
            self.take(b"", last=True)


def _left(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise LostError("it does not answer")
    return left


def _length(raw: bytes | bytearray) -> int:
    size: int = struct.unpack("!I", raw)[0]
    if size > _LONGEST:
        raise LostError("its answer is too long")
    return size


def _message(raw: bytes) -> dict[str, Any]:
    try:
        message = json.loads(raw)
    except (ValueError, RecursionError):
        raise LostError("its answer is not JSON") from None
    if not isinstance(message, dict):
        raise LostError("its answer is not a valid message")
    return message


def check_open(branch: Branch, what: str) -> None:
    """Refuse a closed branch.

    Raises:
        StateError: it was closed, or its process has ended.
    """
    if not branch.is_open:
        raise StateError(f"{what}: it was closed, or its process has ended")
