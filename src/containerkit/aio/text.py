"""The streams of a command as text, for asyncio: the streams of bytes with decoding and encoding."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from containerkit.aio.streams import Writer
    from containerkit.process.stdio import Text

__all__ = ["TextReader", "TextWriter"]

_CHUNK: Final = 65536


class TextReader:
    """Reads text, like :class:`asyncio.StreamReader`. All line endings are read as one newline.

    Args:
        reader: the source of the bytes. It must have no other reader.
        text: the encoding.
        limit: the maximum length of a line, in characters.
    """

    def __init__(self, reader: asyncio.StreamReader, text: Text, limit: int) -> None:
        decoder = codecs.getincrementaldecoder(text.encoding)(text.errors)
        self._decode: Any = io.IncrementalNewlineDecoder(decoder, translate=True).decode
        self._reader = reader
        self._limit = limit
        self._rest = ""
        self._ended = False

    async def read(self, n: int = -1) -> str:
        """Return between 1 and ``n`` characters, or an empty string at the end. By default read to the end.

        Args:
            n: the maximum number of characters (default -1: all).

        Raises:
            UnicodeDecodeError: invalid bytes, with ``errors="strict"``.
        """
        if n < 0:
            while await self._more():
                continue
            n = len(self._rest)
        elif n > 0:
            while not self._rest and await self._more():
                continue
        found, self._rest = self._rest[:n], self._rest[n:]
        return found

    async def readline(self) -> str:
        """Return a line with its newline, the rest at the end of the stream, and then ``""``.

        Raises:
            ValueError: it is longer than the limit; the part that was read is dropped, as in asyncio.
            UnicodeDecodeError: as for :meth:`read`.
        """
        searched = 0
        while (end := self._rest.find("\n", searched)) < 0:
            searched = len(self._rest)
            if searched > self._limit:
                self._rest = ""
                raise ValueError(f"a line is longer than {self._limit} characters (hint: raise line_limit_bytes)")
            if not await self._more():
                end = len(self._rest)
                break
        found, self._rest = self._rest[: end + 1], self._rest[end + 1 :]
        return found

    async def _more(self) -> bool:
        """Decode the next bytes. Return False at the end."""
        if self._ended:
            return False
        raw = await self._reader.read(_CHUNK)
        self._ended = not raw
        self._rest += self._decode(raw, final=self._ended)
        return True

    def at_eof(self) -> bool:
        """Return whether everything up to the end was read."""
        return not self._rest and (self._ended or self._reader.at_eof())

    def __aiter__(self) -> TextReader:
        """Iterate over the lines."""
        return self

    async def __anext__(self) -> str:
        """Return the next line."""
        line = await self.readline()
        if not line:
            raise StopAsyncIteration
        return line


class TextWriter:
    """Writes text to the standard input of a command, like :class:`asyncio.StreamWriter`.

    Args:
        writer: the destination of the bytes.
        text: the encoding.
    """

    def __init__(self, writer: Writer, text: Text) -> None:
        self._writer = writer
        self._text = text

    def write(self, data: str) -> None:
        """Write text. What does not fit in the pipe is buffered and written later; :meth:`drain` waits for it.

        Raises:
            RuntimeError: it was closed.
            UnicodeEncodeError: the encoding has no such character, with ``errors="strict"``.
        """
        self._writer.write(data.encode(*self._text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several pieces."""
        self.write("".join(lines))

    async def drain(self) -> None:
        """Wait until the buffer is nearly empty.

        Raises:
            BrokenPipeError: the command has closed its standard input.
        """
        await self._writer.drain()

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self._writer.is_closing()

    def can_write_eof(self) -> bool:
        """Return whether the end of file can be signalled: always, by closing it."""
        return True

    def write_eof(self) -> None:
        """Close it, as :meth:`close` does."""
        self.close()

    def close(self) -> None:
        """Close it after the buffer was written. May be called twice."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._writer.wait_closed()
