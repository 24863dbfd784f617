"""Write a tar archive of a directory. The same content gives the same bytes.

Names are sorted, owners are numbers, and extended headers are used only for what the plain header can't contain.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from struct import Struct, pack, unpack
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._linux.tree_walk import Trail
from containerkit.archive.attributes import CAPABILITY, is_kept
from containerkit.archive.extract import OWNER_OVERRIDE
from containerkit.archive.longpath import reached
from containerkit.archive.sparse import data_map, data_stretches
from containerkit.archive.stream import shown
from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from containerkit.archive.compression import Sink

__all__ = ["Head", "TreeWriter", "Writing", "source_date_epoch"]

_BLOCK: Final = 512
_PIECE: Final = 1 << 20
_HEADER: Final = Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x")
_LARGEST_OCTAL: Final = 0o7777777
_LARGEST_SIZE: Final = 0o77777777777
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
_LETTERS: Final = {
    stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4", stat.S_IFDIR: b"5",
    stat.S_IFIFO: b"6",
}  # fmt: skip
_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")


def source_date_epoch() -> int | None:
    """Return the latest time for a reproducible artifact in seconds, or None if none is requested.

    Raises:
        SpecError: the variable ``SOURCE_DATE_EPOCH`` is not a number.

    Source: the SOURCE_DATE_EPOCH specification.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    if not text.isdecimal():
        raise SpecError(f"SOURCE_DATE_EPOCH must be a number of seconds, not {text!r}")
    return int(text)


def _same(number: int) -> int:
    return number


@attrs.frozen(kw_only=True)
class Writing:
    """How a directory is written.

    Args:
        overlay: whether it is the upper directory of an overlay. Its marks become whiteouts.
        marks: whether files whose names begin with ``.wh.`` are marks of fuse-overlayfs, which become whiteouts too.
        epoch: in seconds; later times are set to it. Default: unchanged.
        owner: converts the owner of a file on the host to the one to write. Default: unchanged.
        group: converts the group of a file on the host to the one to write. Default: unchanged.
        exclude: absolute paths in the archive to leave out, with everything below them.
        prefix: the directory in the archive below which everything is written, such as ``b"usr"``.

    Source: OCI image specification, layer.md; the SOURCE_DATE_EPOCH specification.
    """

    overlay: bool = False
    marks: bool = False
    epoch: int | None = None
    owner: Callable[[int], int] = _same
    group: Callable[[int], int] = _same
    exclude: Collection[str] = ()
    prefix: bytes = b""


class TreeWriter:
    """Writes directories to one archive. Call :meth:`close` at the end.

    Args:
        sink: receives the bytes.
        how: the rules.
    """

    def __init__(self, sink: Sink, how: Writing) -> None:
        self.sink = sink
        self.how = how
        self.count = 0
        self._links: dict[tuple[int, int], bytes] = {}
        self._exclude = {os.fsencode(path).strip(b"/") for path in how.exclude}
        self._spaces = ("trusted", "user") if how.overlay else ()

    def close(self) -> None:
        """Write the end of the archive."""
        self.sink.write(bytes(2 * _BLOCK))

    def add_tree(self, directory: int, *, root: bool = True) -> None:
        """Write a directory and its content, by descriptor and without following symlinks.

        Args:
            directory: descriptor of the directory.
            root: whether to write an entry for the directory itself.

        Raises:
            ImageError: a file changes while it is read, or a directory was renamed in a way that only overlayfs can
                represent.
        """
        prefix = self.how.prefix
        if root:
            self._entry(prefix, os.fstat(directory), directory, b"")
        self._inside(prefix, directory)

    def _inside(self, path: bytes, directory: int) -> None:
        paths, waiting = [path], [self._names(path, directory)]
        with Trail(directory) as trail:
            while True:
                while waiting[-1]:
                    name = waiting[-1].pop()
                    below = paths[-1] + b"/" + name if paths[-1] else name
                    if self._one(paths[-1], below, trail.fd, name):
                        paths.append(below)
                        waiting.append(self._names(below, trail.enter(name)))
                waiting.pop()
                left = paths.pop()
                if not waiting:
                    return
                try:
                    trail.leave()
                except OSError as error:
                    raise ImageError(f"{shown(left)}: it was moved during the read") from error

    def _names(self, path: bytes, directory: int) -> list[bytes]:
        """Return the names in a directory in reverse order, after a mark if the directory hides the layers below."""
        if self._spaces and path and self._overlay(directory, b".", "opaque") == b"y":
            self._plain(path + b"/.wh..wh..opq")
        return sorted((os.fsencode(entry) for entry in os.listdir(directory)), reverse=True)

    def _one(self, path: bytes, below: bytes, directory: int, name: bytes) -> bool:
        """Write one entry of a directory. Return whether it is a directory to enter."""
        if below in self._exclude:
            return False
        if self.how.marks and name.startswith(b".wh."):
            self._plain(below)
            return False
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if self._is_whiteout(directory, name, status):
            self._plain((path + b"/" if path else b"") + b".wh." + name)
            return False
        if name.startswith(b".wh."):
            raise ImageError(f"{shown(below)}: a layer can't contain a file whose name begins with .wh.")
        self._entry(below, status, directory, name)
        return stat.S_ISDIR(status.st_mode)

    def _is_whiteout(self, directory: int, name: bytes, status: os.stat_result) -> bool:
        if not self._spaces:
            return False
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        return bool(
            stat.S_ISREG(status.st_mode)
            and status.st_size == 0
            and self._overlay(directory, name, "whiteout") is not None
        )

    def _overlay(self, directory: int, name: bytes, mark: str) -> bytes | None:
        path = f"/proc/self/fd/{directory}/".encode() + name
        for space in self._spaces:
            with suppress(OSError):
                return os.getxattr(path, f"{space}.overlay.{mark}", follow_symlinks=False)
        return None

    def _plain(self, name: bytes) -> None:
        """Write an empty marker."""
        self._header(Head(name=name, kind=b"0", mtime_ns=(self.how.epoch or 0) * 1_000_000_000))
        self.count += 1

    def _entry(self, path: bytes, status: os.stat_result, directory: int, name: bytes) -> None:
        """Write the entry of one file. ``name`` is empty for the directory itself."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFSOCK:
            return
        attributes, owner = self._attributes(path, directory, name)
        uid, gid, mode = owner or (self.how.owner(status.st_uid), self.how.group(status.st_gid), status.st_mode)
        if owner is not None and self._was_changed(mode, status.st_mode):
            mode = status.st_mode
        head = Head(name=path, kind=_LETTERS[kind], mode=mode & 0o7777, uid=uid, gid=gid)
        head.mtime_ns, head.attributes = self._time(status.st_mtime_ns), attributes
        self.count += 1
        if kind != stat.S_IFDIR and status.st_nlink > 1:
            first = self._links.setdefault((status.st_dev, status.st_ino), path)
            if first != path:
                head.kind, head.link, head.attributes = b"1", first, {}
                self._header(head)
                return
        if kind == stat.S_IFREG:
            self._file(head, directory, name, status)
            return
        if kind == stat.S_IFLNK:
            head.link, head.mode = os.readlink(name, dir_fd=directory), 0o777
        elif kind == stat.S_IFDIR:
            head.name = (path or b".") + b"/"
        else:
            head.device = status.st_rdev
        self._header(head)

    def _was_changed(self, recorded: int, real: int) -> bool:
        """Return whether the mode was changed after the recorded one was set; see Extraction for what it had become."""
        if self.how.marks:  # fuse-overlayfs changes the record itself
            return False
        expected = {recorded, recorded & ~stat.S_ISGID}  # the kernel drops it for a group that the caller is not in
        if stat.S_ISDIR(real):
            expected |= {each | 0o700 for each in expected}
        return stat.S_IMODE(real) not in expected

    def _time(self, mtime_ns: int) -> int:
        return mtime_ns if self.how.epoch is None else min(mtime_ns, self.how.epoch * 1_000_000_000)

    def _file(self, head: Head, directory: int, name: bytes, status: os.stat_result) -> None:
        try:
            file = os.open(name, _FILE, dir_fd=directory)
        except PermissionError:
            file = os.open(name, _FILE & ~os.O_NOATIME, dir_fd=directory)
        try:
            if not os.path.samestat(os.fstat(file), status):
                raise ImageError(f"{shown(head.name)}: it was replaced during the read")
            self._content(head, file, status.st_size)
        finally:
            os.close(file)

    def _content(self, head: Head, file: int, size: int) -> None:
        """Write the header and content of a file: all of it, or only the data of a large file that is mostly zeros."""
        stretches = data_stretches(file, size)
        before = b""
        if stretches is None:
            stretches = ((0, size),)
        else:
            before, head.real_size = data_map(stretches, size), size
        head.size = len(before) + sum(length for _, length in stretches)
        self._header(head)
        self.sink.write(before)
        for offset, length in stretches:
            os.lseek(file, offset, os.SEEK_SET)
            left = length
            while left and (piece := os.read(file, min(_PIECE, left))):
                self.sink.write(piece)
                left -= len(piece)
            if left:
                raise ImageError(f"{shown(head.name)}: it was truncated during the read")
        self.sink.write(bytes(-head.size % _BLOCK))

    def _attributes(
        self, path: bytes, directory: int, name: bytes
    ) -> tuple[dict[str, bytes], tuple[int, int, int] | None]:
        place: bytes | int = f"/proc/self/fd/{directory}/".encode() + name if name else directory
        links = {"follow_symlinks": False} if name else {}
        found: dict[str, bytes] = {}
        owner = None
        try:
            names = os.listxattr(place, **links)
        except OSError:
            return {}, None
        for attribute in sorted(names):
            if self._spaces and attribute.endswith(("overlay.redirect", "overlay.metacopy")):
                raise ImageError(f"{shown(path)}: the overlay stores it with {attribute}, which no layer can represent")
            if attribute != OWNER_OVERRIDE and (not is_kept(attribute) or attribute.startswith(_OVERLAY)):
                continue
            value = os.getxattr(place, attribute, **links)
            if attribute == OWNER_OVERRIDE:
                owner = _read_owner(value, path)
            else:
                found[attribute] = self._capability(value) if attribute == CAPABILITY else value
        return found, owner

    def _capability(self, value: bytes) -> bytes:
        """Convert capabilities that belong to a user namespace's root to plain ones.

        Source: capabilities(7), "File capability extended attribute versioning"; linux/capability.h.
        """
        if len(value) != 24:
            return value
        magic, *words, rootid = unpack("<6I", value)
        if self.how.owner(rootid) != 0:
            return value
        return pack("<5I", (magic & 0xFFFFFF) | 0x02000000, *words)

    def put(self, head: Head, content: bytes) -> None:
        """Write an entry whose content is in memory."""
        head.size = len(content)
        self._header(head)
        self.sink.write(content + bytes(-len(content) % _BLOCK))
        self.count += 1

    def put_file(self, head: Head, path: bytes) -> None:
        """Write an entry with the content of a file. A symlink is not followed."""
        parent, _, name = path.rpartition(b"/")
        with reached(parent or b"/") as (at, last):
            directory = os.open(last, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
        try:
            self._file(head, directory, name, os.stat(name, dir_fd=directory, follow_symlinks=False))
        finally:
            os.close(directory)
        self.count += 1

    def _header(self, head: Head) -> None:
        more = head.records()
        if more:
            records = b"".join(_record(key, value) for key, value in more.items())
            short = b"PaxHeaders/" + head.name.rpartition(b"/")[2][:80]
            self.sink.write(Head(name=short, kind=b"x", mode=0o644, size=len(records)).block(()))
            self.sink.write(records + bytes(-len(records) % _BLOCK))
        self.sink.write(head.block(more))


@attrs.define(kw_only=True)
class Head:
    """The content of one header.

    Attributes:
        name: the path. That of a directory ends with a slash.
        kind: the type flag.
        mode: permission bits.
        uid, gid: the owner.
        size: of a file: its size in bytes.
        mtime_ns: the modification time in nanoseconds.
        link: of a link: its target.
        device: of a device: its number.
        attributes: extended attributes.
        real_size: of a sparse file: its size after extraction; -1 for others.

    Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "PAX Format, Version 1.0".
    """

    name: bytes
    kind: bytes
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    link: bytes = b""
    device: int = 0
    attributes: dict[str, bytes] = attrs.field(factory=dict)
    real_size: int = -1

    @property
    def stored_name(self) -> bytes:
        """The name in the header. A sparse file has another one: tools without support must not make a broken file."""
        if self.real_size < 0:
            return self.name
        directory, slash, name = self.name.rpartition(b"/")
        return directory + slash + b"GNUSparseFile.0/" + name

    def records(self) -> dict[bytes, bytes]:
        """Return what the plain header can't contain."""
        seconds, rest = divmod(self.mtime_ns, 1_000_000_000)
        more: dict[bytes, bytes] = {}
        if self.real_size >= 0:
            more |= {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.name": self.name}
            more[b"GNU.sparse.realsize"] = b"%d" % self.real_size
        if len(self.stored_name) > 100 or not self.stored_name.isascii():
            more[b"path"] = self.stored_name
        if len(self.link) > 100 or not self.link.isascii():
            more[b"linkpath"] = self.link
        if rest or not 0 <= seconds <= _LARGEST_SIZE:
            more[b"mtime"] = _decimal(self.mtime_ns)
        for key, number, largest in (
            (b"uid", self.uid, _LARGEST_OCTAL),
            (b"gid", self.gid, _LARGEST_OCTAL),
            (b"size", self.size, _LARGEST_SIZE),
        ):
            if number > largest:
                more[key] = b"%d" % number
        for attribute, value in self.attributes.items():
            more[b"SCHILY.xattr." + attribute.encode("utf-8", "surrogateescape")] = value
        return more

    def block(self, elsewhere: Collection[bytes]) -> bytes:
        """Return the plain header. Fields that are in the extended header are 0."""
        uid, gid, size = (
            0 if key in elsewhere else number
            for key, number in ((b"uid", self.uid), (b"gid", self.gid), (b"size", self.size))
        )
        seconds = min(max(self.mtime_ns // 1_000_000_000, 0), _LARGEST_SIZE)
        fields = [
            self.stored_name[:100], b"%07o" % self.mode, b"%07o" % uid, b"%07o" % gid, b"%011o" % size,
            b"%011o" % seconds, b" " * 8, self.kind, self.link[:100], b"ustar\x0000", b"", b"",
            b"%07o" % os.major(self.device), b"%07o" % os.minor(self.device), b"",
        ]  # fmt: skip
        fields[6] = b"%06o\0 " % sum(_HEADER.pack(*fields))
        return _HEADER.pack(*fields)


def _decimal(mtime_ns: int) -> bytes:
    sign, (whole, rest) = b"-" if mtime_ns < 0 else b"", divmod(abs(mtime_ns), 1_000_000_000)
    return sign + (b"%d.%09d" % (whole, rest)).rstrip(b"0").rstrip(b".") if rest else sign + b"%d" % whole


def _record(key: bytes, value: bytes) -> bytes:
    """Return one record of an extended header, which begins with its own length.

    Source: POSIX.1-2017, pax, "pax Extended Header".
    """
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _read_owner(value: bytes, path: bytes) -> tuple[int, int, int]:
    try:
        uid, gid, mode = value.split(b":")
        return int(uid), int(gid), int(mode, 8)
    except ValueError as error:
        raise ImageError(f"{shown(path)}: {OWNER_OVERRIDE} is malformed") from error
