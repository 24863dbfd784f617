"""Compressed streams. Their first bytes, not a manifest, tell the format."""

from __future__ import annotations

import gzip
import os
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from struct import pack
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol, cast

from containerkit.archive.limits import DEFAULT_LIMITS, UnpackLimits
from containerkit.descriptors import Closing
from containerkit.errors import ImageError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

__all__ = ["COMPRESSIONS", "Plain", "Sink", "compress", "recognise"]

COMPRESSIONS: Final = ("gzip", "zstd", "none")
_MAGIC: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x42\x5a\x68", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
)
_GZIP_LEVEL: Final = 1  # three times as fast as level 6, with a tenth more bytes
_GZIP_PIECE: Final = 1 << 20
_GZIP_HEADER: Final = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"  # flags: no time, fast, unknown system
_GUNZIP_BLOCK: Final = 32 << 10  # isal has eight blocks of compressed and four of uncompressed data for each stream
_DEFLATE_END: Final = b"\x03\0"  # an empty last block
_MOST_THREADS: Final = 8
_ZSTD_LEVEL: Final = 3


class Sink(Protocol):
    """An object that accepts bytes."""

    def write(self, content: bytes, /) -> object:
        """Accept some bytes."""


def recognise(start: bytes) -> str:
    """Return ``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``none`` for the first six bytes of a stream.

    A zstd stream may begin with a skippable frame.

    Source: RFC 1952, section 2.3.1; RFC 8878, section 3.1.
    """
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    if len(start) >= 4 and start[1:4] == b"\x2a\x4d\x18" and 0x50 <= start[0] <= 0x5F:
        return "zstd"
    return "none"


class Plain(Closing):
    """The uncompressed content of a file. All untrusted compressed data is read with this class.

    In every format, damaged data raises an :class:`ImageError` that describes the damage, and the output is bounded.

    Args:
        file: open at the beginning of the stream, and seekable. It must stay open longer than this object.
        what: its name in errors. Default ``"layer"``.
        limits: bounds on the output. Default: :data:`DEFAULT_LIMITS`.
        threads: with more than 0, gzip is uncompressed in a separate thread. Default 1.

    Attributes:
        kind: ``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``none``.
        unpacked: how many bytes have been returned.

    Raises:
        UnsupportedError: the data is zstd, and no module for it is installed.

    Source: RFC 1952; RFC 8878.
    """

    def __init__(
        self, file: BinaryIO, what: str = "layer", *, limits: UnpackLimits = DEFAULT_LIMITS, threads: int = 1
    ) -> None:
        at = file.tell()
        self.kind = recognise(file.read(6))
        file.seek(at)
        self.unpacked = 0
        self._file = file
        self._what = what
        self._limits = limits
        self._errors = _stream_errors()
        self._stream = _decompress(file, self.kind, threads)

    def __repr__(self) -> str:
        return f"<Plain {self._what}: {self.kind}, {self.unpacked} bytes>"

    def close(self) -> None:
        """End the thread, if there is one. May be called twice. The caller still owns the file."""
        if self._stream is not self._file:
            self._stream.close()

    def compressed(self) -> int:
        """Return how many bytes of the file have been read so far."""
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        """Return up to ``size`` bytes (default all), or nothing at the end.

        Raises:
            ImageError: the data is damaged, cut off or followed by something else, or a bound is exceeded.
        """
        try:
            piece = self._stream.read(size)
        except EOFError as error:
            raise ImageError(f"{self._what}: its {self.kind} data is truncated") from error
        except self._errors as error:
            if self._is_at_an_end(error):
                raise ImageError(f"{self._what}: its {self.kind} data is followed by something else") from error
            raise ImageError(f"{self._what}: its {self.kind} data is damaged ({error})") from error
        self.unpacked += len(piece)
        self._limits.check_bytes(self.unpacked, self.compressed(), self._what)
        return piece

    def _is_at_an_end(self, error: Exception) -> bool:
        """Return whether a complete stream has ended, and what follows is not another one."""
        return isinstance(error, gzip.BadGzipFile) and "Not a gzipped file" in str(error) and self.unpacked > 0


def _decompress(file: BinaryIO, kind: str, threads: int) -> BinaryIO:
    if kind == "gzip":
        return _gunzip(file, threads)
    if kind == "zstd":
        return cast("BinaryIO", _zstd().ZstdFile(file, "rb"))
    if kind == "bzip2":
        import bz2

        return cast("BinaryIO", bz2.BZ2File(file, "rb"))
    if kind == "xz":
        import lzma

        return cast("BinaryIO", lzma.LZMAFile(file, "rb"))
    return file


def _stream_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that reading a damaged stream may raise."""
    import lzma

    errors: list[type[Exception]] = [EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError]
    with suppress(ImportError):
        from isal import isal_zlib

        errors.append(cast("type[Exception]", isal_zlib.error))
    with suppress(UnsupportedError):
        errors.append(_zstd().ZstdError)
    return tuple(errors)


def _gunzip(file: BinaryIO, threads: int) -> BinaryIO:
    try:
        from isal import igzip, igzip_threaded
    except ImportError:
        return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))
    plain: Any = igzip.IGzipFile
    threaded: Any = igzip_threaded.open
    found = (
        threaded(file, "rb", threads=threads, block_size=_GUNZIP_BLOCK) if threads else plain(fileobj=file, mode="rb")
    )
    return cast("BinaryIO", found)


class _Gzip:
    """A gzip stream without name and time, made by zlib alone, so that the same content gives the same bytes.

    It is compressed in independent pieces of a fixed size, so several threads can work on it. Their number does not
    change the result.

    Source: RFC 1951; RFC 1952.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._waiting = bytearray()
        self._running: deque[Future[bytes]] = deque()
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None
        self._crc = 0
        self._size = 0
        self._before = _GZIP_HEADER  # the sink may not be open yet

    def write(self, content: bytes, /) -> int:
        self._crc = zlib.crc32(content, self._crc)
        self._size += len(content)
        self._waiting += content
        while len(self._waiting) >= _GZIP_PIECE:
            piece = bytes(memoryview(self._waiting)[:_GZIP_PIECE])
            del self._waiting[:_GZIP_PIECE]
            self._put(piece)
        return len(content)

    def _put(self, piece: bytes) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "gzip")
        self._running.append(self._pool.submit(_deflate, piece))
        if len(self._running) > 2 * self._threads:
            self._emit(self._running.popleft().result())

    def _emit(self, piece: bytes) -> None:
        self._sink.write(self._before + piece)
        self._before = b""

    def close(self) -> None:
        while self._running:
            self._emit(self._running.popleft().result())
        if self._waiting:
            self._emit(_deflate(bytes(self._waiting)))
        self._emit(_DEFLATE_END + pack("<II", self._crc, self._size & 0xFFFF_FFFF))
        self.abandon()

    def abandon(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def _deflate(piece: bytes) -> bytes:
    state = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return state.compress(piece) + state.flush(zlib.Z_SYNC_FLUSH)


class _Zstd:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._state = _zstd().ZstdCompressor(level=_ZSTD_LEVEL)

    def write(self, content: bytes, /) -> int:
        piece = self._state.compress(content)
        if piece:
            self._sink.write(piece)
        return len(content)

    def close(self) -> None:
        self._sink.write(self._state.flush())

    def abandon(self) -> None:
        """Do nothing: it holds no resources."""


class _Plain:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def write(self, content: bytes, /) -> int:
        self._sink.write(content)
        return len(content)

    def close(self) -> None:
        """Do nothing: no data is buffered."""

    def abandon(self) -> None:
        """Do nothing: it holds no resources."""


Compressor = _Gzip | _Zstd | _Plain


def compress(sink: Sink, compression: str) -> Compressor:
    """Return a writer that compresses to ``sink``. The same content always gives the same bytes.

    Args:
        sink: receives the compressed bytes. It is not closed.
        compression: ``gzip``, ``zstd`` or ``none``.

    Raises:
        SpecError: the compression is unknown.
        UnsupportedError: zstd, and no module for it is installed.

    Source: RFC 1952; RFC 8878.
    """
    makers: dict[str, Callable[[Sink], Compressor]] = {"gzip": _Gzip, "zstd": _Zstd, "none": _Plain}
    if compression not in makers:
        raise SpecError(f"compression {compression!r} is not one of {', '.join(COMPRESSIONS)}")
    return makers[compression](sink)


def _zstd() -> Any:
    """Return the module for zstd: the standard library's, or its backport for older Pythons."""
    try:
        from compression import zstd  # type: ignore[import-not-found,unused-ignore] # from Python 3.14 on
    except ImportError:
        try:
            from backports import zstd  # type: ignore[no-redef,unused-ignore] # one of the two is imported
        except ImportError as error:
            raise UnsupportedError("zstd", 95, "layer", "pip install 'containerkit[image]'") from error
    return zstd
