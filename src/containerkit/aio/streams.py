"""The ends of pipes on the event loop.

``connect_read_pipe`` is not used: uvloop closes its descriptor twice. In between, a thread that starts another command
may have got the same number. Here each descriptor has one owner, and is watched before the first ``await``.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Source", "Writer"]

_CHUNK: Final = 65536
_HIGH_WATER_BYTES: Final = 65536


class Source(asyncio.ReadTransport):
    """Reads a descriptor into a StreamReader.

    Args:
        fd: the descriptor. This object closes it.
        limit: of the reader, in bytes.
    """

    def __init__(self, fd: int, limit: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self.reader = asyncio.StreamReader(limit=limit, loop=self._loop)
        self.reader.set_transport(self)
        os.set_blocking(fd, False)
        self._loop.add_reader(fd, self._read)

    @classmethod
    def of(cls, fd: int, limit: int) -> Self:
        """Return one for a copy of a descriptor."""
        copy = os.dup(fd)
        try:
            return cls(copy, limit)
        except BaseException:
            os.close(copy)
            raise

    def _read(self) -> None:
        try:
            chunk = os.read(self._fd, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the other side of a terminal is gone
            chunk = b""
        if chunk:
            self.reader.feed_data(chunk)
        else:
            self.close()

    def read_all(self) -> None:
        """Read the bytes that are in the pipe now. Processes that the command left running may write more forever."""
        from containerkit.aio.waiting import lying

        left = 0 if self._fd < 0 else lying(self._fd)
        while left > 0 and self._fd >= 0:
            chunk = os.read(self._fd, min(left, _CHUNK))
            self.reader.feed_data(chunk)
            left -= len(chunk)
        self.close()

    def pause_reading(self) -> None:
        """Stop reading for now: the reader's buffer is full."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Continue reading."""
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._read)

    def is_closing(self) -> bool:
        """Return whether it is closed."""
        return self._fd < 0

    def close(self) -> None:
        """Close it. The reader gets the end of file. May be called twice."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        if not self._loop.is_closed():
            self._loop.remove_reader(fd)
        os.close(fd)
        self.reader.feed_eof()


class Writer:
    """Writes to the standard input of a command, like :class:`asyncio.StreamWriter`."""

    def __init__(self, fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._rest = bytearray()
        self._closing = False
        self._broken = False
        self._told: asyncio.Event = asyncio.Event()
        os.set_blocking(fd, False)

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return one for a copy of a descriptor."""
        copy = os.dup(fd)
        try:
            return cls(copy)
        except BaseException:
            os.close(copy)
            raise

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write data. What does not fit in the pipe is buffered and written later; :meth:`drain` waits for it.

        Data is dropped if the command has closed its standard input; :meth:`drain` then raises an error.

        Raises:
            RuntimeError: it was closed.
        """
        if self._closing:
            raise RuntimeError("write: the standard input was closed")
        if self._broken:
            return
        self._rest += data
        if len(self._rest) == len(data):
            self._send()
            if self._rest:
                self._loop.add_writer(self._fd, self._go_on)

    def writelines(self, lines: Iterable[bytes]) -> None:
        """Write several pieces."""
        self.write(b"".join(lines))

    def _go_on(self) -> None:
        self._send()
        if not self._rest:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self._close()

    def _send(self) -> None:
        try:
            sent = os.write(self._fd, memoryview(self._rest)[:_CHUNK])
        except BlockingIOError:
            return
        except OSError:  # EPIPE: no reader is left; EIO: the terminal is closed
            self._broken = True
            sent = len(self._rest)
        del self._rest[:sent]
        if len(self._rest) <= _HIGH_WATER_BYTES:
            self._told.set()

    async def drain(self) -> None:
        """Wait until the buffer is nearly empty.

        Raises:
            BrokenPipeError: the command has closed its standard input.
        """
        while len(self._rest) > _HIGH_WATER_BYTES and not self._broken:
            self._told.clear()
            await self._told.wait()
        if self._broken:
            raise BrokenPipeError("the command has closed its standard input")

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._closing

    def can_write_eof(self) -> bool:
        """Return whether the end of file can be signalled: always, by closing it."""
        return True

    def write_eof(self) -> None:
        """Close it, as :meth:`close` does."""
        self.close()

    def close(self) -> None:
        """Close it after the buffer was written. May be called twice."""
        self._closing = True
        if not self._rest:
            self._close()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        while self._fd >= 0:
            self._told.clear()
            await self._told.wait()

    def abort(self) -> None:
        """Close it immediately. The buffer is lost."""
        self._closing = True
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_writer(fd)
            os.close(fd)
        self._rest.clear()
        self._told.set()
