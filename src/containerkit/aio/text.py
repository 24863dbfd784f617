"""The streams of a command as text, for asyncio: what the streams of bytes are, decoded and encoded on the way."""

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
    """Reads text, in the manner of :class:`asyncio.StreamReader`. All ends of lines are read as one newline.

    Args:
        reader: where the bytes come from; nobody else reads from it.
        text: how they are text.
        limit: the longest line, in characters.
    """

    def __init__(self, reader: asyncio.StreamReader, text: Text, limit: int) -> None:
        decoder = codecs.getincrementaldecoder(text.encoding)(text.errors)
        self._decode: Any = io.IncrementalNewlineDecoder(decoder, translate=True).decode
        self._reader = reader
        self._limit = limit
        self._rest = ""
        self._ended = False

    async def read(self, n: int = -1) -> str:
        """Return up to so many characters, at least one before the end; without a number, all up to the end.

        Args:
            n: how many (default -1: all).

        Raises:
            UnicodeDecodeError: bytes that are no such text, with ``errors="strict"``.
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
        """Return a line with its end; what there is at the end of the stream, and then ``""``.

        Raises:
            ValueError: it is longer than the limit; what was read of it is dropped, as in asyncio.
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
        """Decode what comes next; False at the end."""
        if self._ended:
            return False
        raw = await self._reader.read(_CHUNK)
        self._ended = not raw
        self._rest += self._decode(raw, final=self._ended)
        return True

    def at_eof(self) -> bool:
        """Whether all was read up to the end."""
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
    """Writes text to the standard input of a command, in the manner of :class:`asyncio.StreamWriter`.

    Args:
        writer: where the bytes go.
        text: how text is bytes.
    """

    def __init__(self, writer: Writer, text: Text) -> None:
        self._writer = writer
        self._text = text

    def write(self, data: str) -> None:
        """Write something, at once as far as the pipe takes it; after that the rest. :meth:`drain` waits for it.

        Raises:
            RuntimeError: it was closed.
            UnicodeEncodeError: the encoding has no such character, with ``errors="strict"``.
        """
        self._writer.write(data.encode(*self._text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several pieces."""
        self.write("".join(lines))

    async def drain(self) -> None:
        """Wait until little is left to be written.

        Raises:
            BrokenPipeError: nobody reads it any more.
        """
        await self._writer.drain()

    def is_closing(self) -> bool:
        """Whether it was closed."""
        return self._writer.is_closing()

    def can_write_eof(self) -> bool:
        """Whether its end can be told: by closing it."""
        return True

    def write_eof(self) -> None:
        """Close it, as :meth:`close` does."""
        self.close()

    def close(self) -> None:
        """Close it, once what was written is through; harmless when repeated."""
        self._writer.close()

    async def wait_closed(self) -> None:
        """Wait until it is closed."""
        await self._writer.wait_closed()
