"""Read an untrusted tar archive once, from start to end.

:mod:`tarfile` parses the headers. This module supplies the data, limits what may be read, hashes everything that is
read, and converts each member to an :class:`Entry`.
"""

from __future__ import annotations

import tarfile
from struct import Struct
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from containerkit.archive.limits import DEFAULT_LIMITS, UnpackLimits
from containerkit.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from containerkit.archive.compression import Plain, Sink

__all__ = ["Entry", "ForwardReader", "Source", "copy_archive", "read_entries", "split_path"]

_PIECE: Final = 64 << 10
_LONGEST_PATH: Final = 1 << 15  # eight times what the kernel accepts at once
_LARGEST_ID: Final = 0xFFFF_FFFE
_HEADER: Final = Struct("100s8s8s8s12s12s8sc100s8x64x8s8s155s12x")
_GNU_KINDS: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.GNUTYPE_SPARSE)
_LARGEST_DEVICE: Final = 0xFFFFF
_FARTHEST_S: Final = 1 << 34
_KINDS: Final = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.GNUTYPE_SPARSE: "file",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "directory",
    tarfile.FIFOTYPE: "fifo",
    b"D": "directory",  # a directory in an incremental archive of GNU tar; its listing is skipped
}
_LABEL: Final = b"V"  # the name of a GNU volume, which is ignored


class Source(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, or nothing at the end."""


class ForwardReader:
    """A stream that is read once. It is hashed, counted, and refused if it exceeds its bounds.

    Args:
        stream: the uncompressed bytes.
        state: a hash object, or another object with ``update``, that receives all bytes.
        limits: the bounds.
        compressed: returns how many compressed bytes have been read so far.
    """

    def __init__(self, stream: Source, state: Any, limits: UnpackLimits, compressed: Callable[[], int]) -> None:
        self._stream = stream
        self._state = state
        self._limits = limits
        self._compressed = compressed
        self._piece = memoryview(b"")
        self._at = 0
        self._before = 0  # bytes in earlier pieces
        self._header_bytes = 0

    def _next_piece(self) -> bool:
        piece = self._stream.read(_PIECE)
        self._before += len(self._piece)
        self._piece = memoryview(piece)
        self._at = 0
        self._state.update(piece)
        self._limits.check_bytes(self._before + len(piece), self._compressed())
        return bool(piece)

    def tell(self) -> int:
        """Return the position in the uncompressed stream."""
        return self._before + self._at

    def seek(self, position: int) -> None:
        """Skip forward. A position after the end of the stream counts as the end."""
        distance = position - self.tell()
        if distance < 0:
            raise ImageError("layer: a header refers to a position that has already been read")
        while distance > 0:
            left = len(self._piece) - self._at
            if left == 0 and not self._next_piece():
                return
            step = min(distance, len(self._piece) - self._at)
            self._at += step
            distance -= step

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes of a header. The total for one entry is limited."""
        self._header_bytes += size
        if not 0 <= size <= self._limits.header_bytes or self._header_bytes > self._limits.header_bytes:
            raise ImageError(f"layer: the headers of an entry have more than {self._limits.header_bytes} bytes")
        if size <= len(self._piece) - self._at:
            self._at += size
            return bytes(self._piece[self._at - size : self._at])
        return b"".join(bytes(piece) for piece in self.pieces(size, whole=False))

    def next_entry(self) -> None:
        """Start counting the header bytes of the next entry."""
        self._header_bytes = 0

    def pieces(self, size: int, *, whole: bool = True) -> Iterator[memoryview]:
        """Yield ``size`` bytes of the content of a file in pieces, without copying.

        Raises:
            ImageError: the stream ends too early (if ``whole`` is True).
        """
        while size > 0:
            left = len(self._piece) - self._at
            if left == 0:
                if not self._next_piece():
                    if whole:
                        raise ImageError("layer: the archive ends in the middle of a file")
                    return
                left = len(self._piece)
            step = min(size, left)
            self._at += step
            size -= step
            yield self._piece[self._at - step : self._at]

    def drain(self) -> None:
        """Read the rest after the end of the archive, because the digest includes it."""
        self._at = len(self._piece)
        while self._next_piece():
            pass


@attrs.define(kw_only=True)
class Entry:
    """One member of an archive.

    Attributes:
        parts: the components of its path; empty for the root itself.
        kind: file, hardlink, symlink, character, block, directory or fifo.
        mode: permission bits, with set-user-id, set-group-id and sticky.
        uid, gid: the owner.
        mtime_ns: the modification time in nanoseconds.
        size: of a file: its size when written.
        link: of a link: its target.
        device: of a device: its numbers.
        sparse: of a sparse file: (offset, size) of each part of data in the archive.
        headers: the extended headers.
        content: of a file: yields the stored parts in order.
    """

    parts: tuple[bytes, ...]
    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    link: bytes
    device: tuple[int, int]
    sparse: tuple[tuple[int, int], ...] | None
    headers: Mapping[str, str]
    content: Callable[[int], Iterator[memoryview]]

    @property
    def path(self) -> bytes:
        """The path, relative to the root."""
        return b"/".join(self.parts)


class _Member(tarfile.TarInfo):
    """A member whose plain header is parsed in a third of the time: owner names are skipped, most checksums match."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        """Parse one header block. Unusual blocks are left to :mod:`tarfile`."""
        if len(buf) != tarfile.BLOCKSIZE or buf[156:157] == tarfile.GNUTYPE_SPARSE or not buf[0]:
            return super().frombuf(buf, encoding, errors)
        fields = _HEADER.unpack(buf)
        name, mode, uid, gid, size, mtime, checksum, kind, link, major, minor, prefix = fields
        try:
            numbers = [int(field.strip(b" \0") or b"0", 8) for field in (mode, uid, gid, size, mtime, major, minor)]
            fits = int(checksum.strip(b" \0"), 8) == sum(buf) - sum(checksum) + 256
        except ValueError:
            fits = False
        if not fits:  # numbers in base 256, signed checksums, or damage
            return super().frombuf(buf, encoding, errors)
        member = cls(_text(name, encoding, errors))
        member.mode, member.uid, member.gid, member.size, member.mtime, member.devmajor, member.devminor = numbers
        member.type = kind
        member.linkname = _text(link, encoding, errors)
        if kind == tarfile.AREGTYPE and member.name.endswith("/"):
            member.type = tarfile.DIRTYPE
        if prefix[0] and kind not in _GNU_KINDS:
            member.name = _text(prefix, encoding, errors) + "/" + member.name
        if member.type == tarfile.DIRTYPE:
            member.name = member.name.rstrip("/")
        return member


def _text(field: bytes, encoding: str, errors: str) -> str:
    return field.partition(b"\0")[0].decode(encoding, errors)


class _Parser(tarfile.TarFile):
    """The header parser of :class:`tarfile.TarFile`."""

    tarinfo = _Member

    def next(self) -> tarfile.TarInfo | None:
        return None  # the constructor requests the first member, but read_entries reads the members


def read_entries(reader: ForwardReader, limits: UnpackLimits = DEFAULT_LIMITS) -> Iterator[Entry]:
    """Yield the members of an archive in order. The stream is read to its end.

    The content of a file must be read or skipped before the next entry is requested.

    Args:
        reader: the archive.
        limits: bounds on the number of entries.

    Raises:
        ImageError: a header is malformed, a path leads out, a member's type is unknown, or a bound is exceeded.

    Source: tar(5); POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Storing Sparse Files".
    """
    parser = _Parser(fileobj=reader, mode="r", encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type] # it is only read from
    count = 0
    while (info := _next_member(parser, reader)) is not None:
        count += 1
        limits.check_entries(count)
        if info.type == _LABEL:
            continue
        yield _entry(info, reader)
    reader.drain()


def copy_archive(stream: Plain, writer: Sink, limits: UnpackLimits) -> None:
    """Copy an archive unchanged, after checking that it can be unpacked.

    Args:
        stream: the archive.
        writer: the destination.
        limits: bounds on its content.

    Raises:
        ImageError: as for :func:`read_entries`, or the archive ends in the middle of a file.
    """
    reader = ForwardReader(stream, writer, limits, stream.compressed)
    for entry in read_entries(reader, limits):
        if entry.kind == "file":
            stored = entry.size if entry.sparse is None else sum(size for _, size in entry.sparse)
            for _ in entry.content(stored):
                pass


def _next_member(parser: _Parser, reader: ForwardReader) -> tarfile.TarInfo | None:
    reader.next_entry()
    reader.seek(parser.offset)
    try:
        info = _Member.fromtarfile(parser)
        if info.sparse is not None:
            _complete_sparse(info, parser)
    except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined] # typeshed leaves them out
        return None  # an end without the two empty blocks is accepted, because some writers omit them
    except (tarfile.TarError, ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise ImageError(f"layer: malformed archive header at byte {parser.offset} ({error})") from error
    return info


def _complete_sparse(info: tarfile.TarInfo, parser: _Parser) -> None:
    """Separate the properties of a sparse file from those of its entry, which :mod:`tarfile` confuses."""
    headers = info.pax_headers
    if "GNU.sparse.name" in headers:
        info.name = headers["GNU.sparse.name"]
    if "size" in headers:  # the stored size: the map before the data has been read already
        info.size = int(headers.get("GNU.sparse.realsize") or headers.get("GNU.sparse.size") or info.size)
        table: Any = info.sparse
        stored = sum(size for _, size in table)
        parser.offset = info.offset_data + -(-stored // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _entry(info: tarfile.TarInfo, reader: ForwardReader) -> Entry:
    name = info.name.encode("utf-8", "surrogateescape")
    kind = _KINDS.get(info.type)
    if kind == "file" and (name.endswith(b"/") or info.pax_headers.get("path", "").endswith("/")):
        kind = "directory"  # old archives mark directories like this, and GNU tar accepts it
    if kind is None:
        raise ImageError(f"layer: {shown(name)}: unknown member type {info.type!r}")
    if not (0 <= info.uid <= _LARGEST_ID and 0 <= info.gid <= _LARGEST_ID):
        raise ImageError(f"layer: {shown(name)}: owner {info.uid}:{info.gid} is out of range")
    if info.size < 0:
        raise ImageError(f"layer: {shown(name)}: the size is negative")
    if not (0 <= info.devmajor <= _LARGEST_DEVICE and 0 <= info.devminor <= _LARGEST_DEVICE):
        raise ImageError(f"layer: {shown(name)}: device {info.devmajor}:{info.devminor} is out of range")
    headers = info.pax_headers
    sparse: tuple[tuple[int, int], ...] | None = None
    if info.sparse is not None:
        sparse = _checked_sparse(info, name)
    return Entry(
        parts=split_path(name),
        kind=kind,
        mode=info.mode & 0o7777,
        uid=info.uid,
        gid=info.gid,
        mtime_ns=_nanoseconds(headers.get("mtime") or str(int(info.mtime))),
        size=info.size if kind == "file" else 0,
        link=info.linkname.encode("utf-8", "surrogateescape"),
        device=(info.devmajor, info.devminor),
        sparse=sparse,
        headers=headers,
        content=reader.pieces,
    )


def _checked_sparse(info: tarfile.TarInfo, name: bytes) -> tuple[tuple[int, int], ...]:
    table: Any = info.sparse
    # The old format pads its table with zeros.
    stretches: tuple[tuple[int, int], ...] = tuple((offset, size) for offset, size in table if size)
    end = 0
    for offset, size in stretches:
        if offset < end or size < 0 or offset + size > info.size:
            raise ImageError(f"layer: {shown(name)}: its map of holes is inconsistent")
        end = offset + size
    return stretches


def _nanoseconds(text: str) -> int:
    """Parse a pax time to the nanosecond. A float would lose the last digits."""
    whole, _, fraction = text.partition(".")
    try:
        seconds = int(whole or "0")
        rest = int(fraction[:9].ljust(9, "0")) if fraction else 0
    except ValueError as error:
        raise ImageError(f"layer: the time {text[:40]!r} is not a number") from error
    seconds = max(min(seconds, _FARTHEST_S), -_FARTHEST_S)  # far more than ext4 and xfs can store
    return seconds * 1_000_000_000 + (-rest if whole.startswith("-") else rest)


def split_path(name: bytes, what: str = "name") -> tuple[bytes, ...]:
    """Split a path in an archive into components. A leading slash means the root of the archive.

    Raises:
        ImageError: a component is ``..`` or contains a NUL, or the path is longer than 32 KiB.

    Source: GNU tar manual, "Absolute File Names".
    """
    if len(name) > _LONGEST_PATH:
        raise ImageError(f"layer: a {what} has {len(name)} bytes, the maximum is {_LONGEST_PATH}")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ImageError(f"layer: the {what} {shown(name)} leads out of the archive")
    if b"\0" in name:
        raise ImageError(f"layer: the {what} {shown(name)} contains a NUL")
    return parts


def shown(name: bytes) -> str:
    """Return a name for an error: quoted, and at most 120 characters long."""
    text = repr(name.decode("utf-8", "backslashreplace"))
    return text if len(text) <= 120 else text[:117] + "..."
