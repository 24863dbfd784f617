"""Waits for a descriptor, and reads the output of a command, on the event loop."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containerkit.process.process import Process

__all__ = ["LineCallbacks", "lying", "readable"]

_CHUNK: Final = 65536
_FIONREAD: Final = 0x541B


async def readable(fd: int) -> None:
    """Wait until a descriptor is readable. A copy is watched, because its owner may close it in the meantime.

    Args:
        fd: such as a pidfd, which is readable after its process has ended; -1 if it has ended already.
    """
    if fd < 0:
        return
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    copy = os.dup(fd)
    try:
        loop.add_reader(copy, _set, ready)
        await ready
    finally:
        loop.remove_reader(copy)
        os.close(copy)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def lying(fd: int) -> int:
    """Return the number of bytes that can be read now. Source: ioctl(2), FIONREAD."""
    import fcntl

    return int.from_bytes(fcntl.ioctl(fd, _FIONREAD, bytes(4)), sys.byteorder)


class LineCallbacks:
    """Writes a command's input and keeps its output, until it has ended, has written too much, or the time is up.

    Args:
        process: the command. Nothing else uses its streams.
        given: its standard input.
        limit: the number of bytes to keep.
        listeners: functions that are called with each piece of stdout and of stderr. An exception ends the command.
    """

    def __init__(
        self,
        process: Process[Any],
        given: bytes,
        limit: int | None,
        listeners: tuple[Callable[[bytes], object] | None, Callable[[bytes], object] | None] = (None, None),
    ) -> None:
        self._listeners = listeners
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._rest = memoryview(given)
        self._left = limit
        self._watched: set[int] = set()
        self._chunks: tuple[list[bytes], list[bytes]] = ([], [])
        self._over: asyncio.Future[None] = self._loop.create_future()

    @property
    def heard(self) -> tuple[bytes, bytes]:
        """Its output on stdout and on stderr."""
        out, err = self._chunks
        return b"".join(out), b"".join(err)

    async def until(self, deadline: float | None) -> None:
        """Continue until it has ended, or there is nothing more to read.

        Args:
            deadline: by the loop's clock, which is the monotonic one, in seconds.
        """
        with self._watching():
            timer = None if deadline is None else self._loop.call_at(deadline, _set, self._over)
            try:
                await self._over
            finally:
                if timer is not None:
                    timer.cancel()

    @contextmanager
    def _watching(self) -> Iterator[None]:
        process = self._process
        pidfd = process.watched(lambda fd: os.dup(fd) if fd >= 0 else -1)
        if pidfd < 0:
            _set(self._over)
        try:
            if pidfd >= 0:
                self._loop.add_reader(pidfd, _set, self._over)
            streams = process.stdout, process.stderr
            for stream, chunks, listener in zip(streams, self._chunks, self._listeners, strict=True):
                if stream is not None and not stream.closed:
                    self._listen(stream.fileno(), chunks, listener)
            stdin = process.stdin
            if self._rest and stdin is not None and not stdin.closed:
                os.set_blocking(stdin.fileno(), False)
                self._loop.add_writer(stdin.fileno(), self._feed, stdin.fileno())
            elif stdin is not None and not process.terminal:
                stdin.close()
            yield
        finally:
            if pidfd >= 0:
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
            for fd in self._watched:
                self._loop.remove_reader(fd)
            self._watched.clear()
            if self._rest:
                self._stop_feeding()

    def _listen(self, fd: int, chunks: list[bytes], listener: Callable[[bytes], object] | None) -> None:
        os.set_blocking(fd, False)
        self._watched.add(fd)
        self._loop.add_reader(fd, self._read, fd, chunks, listener)

    def _read(self, fd: int, chunks: list[bytes], listener: Callable[[bytes], object] | None) -> None:
        most = _CHUNK if self._left is None else min(_CHUNK, self._left)
        if most == 0:  # the caller ends the command if it writes more
            if lying(fd) > 0:
                _set(self._over)
                return
            most = 1
        try:
            chunk = os.read(fd, most)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side of a terminal is closed
            chunk = b""
        if not chunk:
            self._watched.discard(fd)
            self._loop.remove_reader(fd)
            return
        if self._left is not None:
            self._left -= len(chunk)
        chunks.append(chunk)
        if listener is not None:
            try:
                listener(chunk)
            except BaseException as error:  # noqa: BLE001 - raised again by the one who waits
                if not self._over.done():
                    self._over.set_exception(error)

    def _feed(self, fd: int) -> None:
        try:
            sent = os.write(fd, self._rest[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:  # EPIPE: no reader is left
            sent = len(self._rest)
        self._rest = self._rest[sent:]
        if not self._rest:
            self._stop_feeding()

    def _stop_feeding(self) -> None:
        self._rest = memoryview(b"")
        stdin = self._process.stdin
        if stdin is not None and not stdin.closed:
            self._loop.remove_writer(stdin.fileno())
            if not self._process.terminal:
                stdin.close()
