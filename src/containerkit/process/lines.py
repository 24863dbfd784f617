"""Split a stream into lines, and pass each to a function when it arrives."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from containerkit.process.stdio import Text

__all__ = ["LONGEST_LINE", "Lines"]

LONGEST_LINE: Final = 65536
"""A longer line is passed on in parts."""


class Lines:
    """Takes pieces of a stream, and calls a function with each line.

    Args:
        hear: called with each line without its end, as bytes, or as str for a text stream.
        text: how to decode its bytes. None for bytes.
    """

    __slots__ = ("_decode", "_end", "_hear", "_rest", "_return")

    def __init__(self, hear: Callable[[Any], object], text: Text | None) -> None:
        self._hear = hear
        self._decode: Any = None
        self._rest: Any = b""
        self._end: Any = b"\n"
        self._return: Any = b"\r"
        if text is not None:
            import codecs

            self._decode = codecs.getincrementaldecoder(text.encoding)(text.errors).decode
            self._rest, self._end, self._return = "", "\n", "\r"

    def feed(self, piece: bytes) -> None:
        """Pass on the lines that end in a piece."""
        *lines, self._rest = (self._rest + self._decoded(piece, last=False)).split(self._end)
        for line in lines:
            self._hear(self._cut(line).removesuffix(self._return))
        self._rest = self._cut(self._rest)

    def _cut(self, line: Any) -> Any:
        """Pass on the parts of a line that is too long, and return the rest. Parts have a fixed length."""
        while len(line) >= LONGEST_LINE:
            self._hear(line[:LONGEST_LINE])
            line = line[LONGEST_LINE:]
        return line

    def finish(self) -> None:
        """Pass on the rest without an end of line."""
        rest, self._rest = self._rest + self._decoded(b"", last=True), self._rest[:0]
        if rest:
            self._hear(rest)

    def _decoded(self, piece: bytes, *, last: bool) -> Any:
        return piece if self._decode is None else self._decode(piece, last)
