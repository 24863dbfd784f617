"""COPY and ADD: which files to copy, where to, and with which owner."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs

from containerkit.errors import ImageError, SpecError, UnsupportedError
from containerkit.image.build.patterns import Ignore, has_wildcard, pattern
from containerkit.image.digest import Digest
from containerkit.archive.attributes import attributes_of, is_kept
from containerkit.archive.compression import Plain
from containerkit.archive.limits import DEFAULT_LIMITS, UnpackLimits
from containerkit.archive.longpath import open_file
from containerkit.archive.stream import ForwardReader, read_entries
from containerkit.archive.tarwrite import Head
from containerkit.archive.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containerkit.image.build.draft import Draft
    from containerkit.archive.view import Found, Parts
    from containerkit.image.registry.settings import RegistrySettings

__all__ = ["Copy", "Source", "context_source", "fetch", "owner_of"]

_LETTERS: Final = {
    "file": b"0", "hardlink": b"1", "symlink": b"2", "character": b"3", "block": b"4", "directory": b"5", "fifo": b"6",
}  # fmt: skip
_OCTAL: Final = re.compile(r"[0-7]{3,4}")
_CLAUSE: Final = re.compile(r"([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)")
_CHANGE: Final = re.compile(r"([-+=])([rwxXst]*|[ugo])(?=[-+=]|$)")
_SHIFT: Final = {"u": 6, "g": 3, "o": 0}
_BITS: Final = {"r": 4, "w": 2, "x": 1}
_LARGEST_FETCH: Final = 16 << 30


@attrs.frozen(kw_only=True)
class Source:
    """A source of files.

    Args:
        view: the files.
        ignore: the files to leave out.
        name: its name in errors.
    """

    view: View
    ignore: Callable[[str], bool] = lambda _: False
    name: str = "the build context"


def context_source(directory: str | os.PathLike[str], dockerfile: str = "Dockerfile") -> Source:
    """Return the source for a build context. ``DOCKERFILE.dockerignore`` takes precedence over ``.dockerignore``.

    Raises:
        SpecError: the directory does not exist, or a pattern is malformed.

    Source: Dockerfile reference, ".dockerignore file".
    """
    root = Path(directory).absolute()
    if not root.is_dir():
        raise SpecError(f"the build context {root} does not exist, or is not a directory")
    lines: list[str] = []
    for candidate in (root / f"{dockerfile}.dockerignore", root / ".dockerignore"):
        if candidate.is_file():
            lines = candidate.read_text("utf-8", "surrogateescape").splitlines()
            break
    return Source(view=View([str(root)], overlay=False), ignore=Ignore(lines))


def owner_of(view: View, text: str) -> tuple[int, int]:
    """Return the ids for ``user[:group]``. Names are looked up in the root's own ``/etc/passwd`` and ``/etc/group``.

    A user without a group gets the group with the same number.

    Raises:
        SpecError: a name does not exist in the root, or a number is out of range.

    Source: Dockerfile reference, "COPY --chown --chmod"; passwd(5); group(5).
    """
    user, _, group = text.partition(":")
    uid = _number(view, user, "/etc/passwd")
    return uid, _number(view, group, "/etc/group") if group else uid


def _number(view: View, name: str, path: str) -> int:
    if name.isdecimal():
        if int(name) >= 0xFFFFFFFF:
            raise SpecError(f"the owner {name} is out of range")
        return int(name)
    for line in view.read(path).decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if len(fields) > 2 and fields[0] == name and fields[2].isdecimal():
            return int(fields[2])
    raise SpecError(f"{path} in the image has no entry {name!r}")


def mode_of(text: str) -> Callable[[int, bool], int]:
    """Return a function for ``--chmod``. It takes permission bits, and whether the file is a directory.

    Args:
        text: an octal number such as ``755``, or a symbolic mode such as ``u=rwX,go-w``.

    Raises:
        SpecError: the text is neither.

    Source: Dockerfile reference, "COPY --chown --chmod"; chmod(1).
    """
    if _OCTAL.fullmatch(text):
        number = int(text, 8)
        return lambda _mode, _directory: number
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if not all(clauses):
        raise SpecError(f"--chmod={text}: expected an octal number such as 755, or a mode such as u=rwX,go-w")
    parsed = [(found[1] or "a", _CHANGE.findall(found[2])) for found in clauses if found]

    def change(mode: int, directory: bool) -> int:  # noqa: FBT001 - all callers are in this package
        for who, changes in parsed:
            for operator, what in changes:
                mode = _changed(mode, who, operator, what, directory=directory)
        return mode

    return change


def _changed(mode: int, who: str, operator: str, what: str, *, directory: bool) -> int:
    """Apply one change, such as ``g+w``, to permission bits."""
    for letter in "ugo" if "a" in who else who:
        shift = _SHIFT[letter]
        if what in ("u", "g", "o"):
            bits = mode >> _SHIFT[what] & 7
        else:
            bits = sum(_BITS[char] for char in set(what) & set("rwx"))
            bits |= 1 if "X" in what and (directory or mode & 0o111) else 0
        special = {"u": 0o4000, "g": 0o2000, "o": 0}[letter] if "s" in what else 0
        special |= 0o1000 if "t" in what else 0
        value = bits << shift | special
        kept = mode & ~(7 << shift) if operator == "=" else mode
        mode = kept & ~value if operator == "-" else kept | value
    return mode


@attrs.frozen(kw_only=True)
class Copy:
    """One COPY instruction.

    Args:
        source: where to copy from.
        draft: where to copy to.
        target: the destination, absolute.
        into: whether the destination is a directory: it ends with a slash, or there are several sources.
        parents: whether to keep the parent directories of each source.
        exclude: patterns of files to leave out.
        workspace: a directory for the content of archives.
        limits: bounds on what an archive may unpack to.
    """

    source: Source
    draft: Draft
    target: str
    into: bool
    parents: bool = False
    exclude: tuple[re.Pattern[str], ...] = ()
    workspace: Path = attrs.field(factory=Path)
    limits: UnpackLimits = DEFAULT_LIMITS
    _looked_through: set[str] = attrs.field(factory=set, init=False, eq=False)
    _holding: set[str] = attrs.field(factory=set, init=False, eq=False)

    def add(self, word: str, *, unpack: bool = False) -> None:
        """Copy one source: a file, the content of a directory, or everything that matches a pattern.

        Args:
            word: the path or pattern.
            unpack: whether to unpack archives, as ADD does.

        Raises:
            SpecError: nothing matches, or it can't be copied to the destination.

        Source: Dockerfile reference, "COPY" and "ADD".
        """
        found = 0
        for name, shown in self._matching(word):
            found += 1
            self._one(name, shown, unpack=unpack)
        if not found:
            raise SpecError(f"{word!r} is not in {self.source.name}, or is left out by .dockerignore")

    def _matching(self, word: str) -> Iterator[tuple[str, str]]:
        """Yield each matching path, and the part of it that ``--parents`` keeps."""
        base, pivot, rest = word.partition("/./")
        clean = "/".join(part for part in os.path.normpath("/" + word).split("/") if part)
        prefix = "/".join(part for part in os.path.normpath("/" + base).split("/") if part) if pivot and rest else ""
        if not has_wildcard(clean):
            paths: list[str] = [clean] if self.source.view.find(self._parts(clean)) or not clean else []
        else:
            paths = list(self._walk_pattern(clean))
        for path in paths:
            if path and self.source.ignore(path) and not self._holds_something(path):
                continue
            yield path, path.removeprefix(prefix).strip("/")

    def _holds_something(self, path: str) -> bool:
        """Return whether something in an excluded directory is kept. Each tree is searched once."""
        ignore = self.source.ignore
        if not isinstance(ignore, Ignore) or not ignore.has_exceptions:
            return False
        if not any(path == root or path.startswith(f"{root}/") for root in self._looked_through):
            self._looked_through.add(path)
            for one in self._below(path):
                above = "" if ignore(one) else one.rpartition("/")[0]
                while above and above not in self._holding:
                    self._holding.add(above)
                    above = above.rpartition("/")[0]
        return path in self._holding

    def _below(self, path: str) -> Iterator[str]:
        view = self.source.view
        waiting = [(path, self._parts(path))]
        while waiting:
            inner, parts = waiting.pop()
            if inner != path:
                yield inner
                found = view.find(parts)
                if found is None or not found.is_directory:
                    continue
            below = [(f"{inner}/{os.fsdecode(name)}".lstrip("/"), (*parts, name)) for name in view.names(parts)]
            waiting += below[::-1]

    def _walk_pattern(self, word: str) -> Iterator[str]:
        if "**" in word:
            rule = pattern(word)
            yield from (path for path in self._below("") if rule.fullmatch(path))
            return
        heads = [""]
        for part in word.split("/"):
            rule = pattern(part)
            heads = [
                f"{head}/{name}".lstrip("/")
                for head in heads
                for name in map(os.fsdecode, self.source.view.names(self._parts(head)))
                if rule.fullmatch(name)
            ]
        yield from heads

    def _parts(self, path: str, *, follow: bool = True) -> Parts:
        return self.source.view.resolve(os.fsencode(path), last=follow)

    def _one(self, path: str, shown: str, *, unpack: bool) -> None:
        found = self.source.view.find(self._parts(path))
        if found is None:
            raise SpecError(f"{path!r} in {self.source.name} is a symlink whose target does not exist")
        target = self.draft.view.resolve(os.fsencode(self.target), last=True)
        if self.parents:
            target = (*target, *(os.fsencode(part) for part in shown.split("/") if part))
            if found.is_directory:
                self._directory(path, self._parts(path), target)
            else:
                self.draft.add_file(target, found)
        elif found.is_directory:
            self.draft.add_directory(target)
            self._directory(path, self._parts(path), target)
        elif unpack and _is_archive(found):
            self.draft.add_directory(target)
            with open_file(found.path) as file:
                unpack_archive(file, self.draft, target, self.workspace, self.limits)
        else:
            into = self.into or self.draft.is_directory(target)
            self.draft.add_file((*target, os.fsencode(path.rpartition("/")[2])) if into else target, found)

    def _directory(self, path: str, parts: Parts, target: Parts) -> None:
        waiting = [(path, parts, target)]
        while waiting:
            path, parts, target = waiting.pop()
            directories: list[tuple[str, Parts, Parts]] = []
            for name in self.source.view.names(parts):
                inner = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
                found = self.source.view.find((*parts, name))
                if found is None or self._is_excluded(inner):
                    continue
                left_out = self.source.ignore(inner)
                goal = (*target, name)
                if found.is_directory:
                    if left_out and not self._holds_something(inner):
                        continue
                    self.draft.add_file(goal, found)
                    directories.append((inner, (*parts, name), goal))
                elif not left_out:
                    self.draft.add_file(goal, found)
            waiting += directories[::-1]

    def _is_excluded(self, path: str) -> bool:
        return any(rule.fullmatch(path) or rule.fullmatch(path.rpartition("/")[2]) for rule in self.exclude)


def _is_archive(found: Found) -> bool:
    if not stat.S_ISREG(found.status.st_mode):
        return False
    with open_file(found.path) as file:
        return is_archive(file)


def is_archive(file: Any) -> bool:
    """Return whether a file is a tar archive, compressed or not. The file is left at its beginning.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    try:
        file.seek(0)
        with Plain(file, threads=0) as stream:
            start = stream.read(512)
    except (ImageError, UnsupportedError, OSError):  # anything that can't be read as an archive is a plain file
        return False
    finally:
        file.seek(0)
    return bool(start[257:262] == b"ustar")


def unpack_archive(file: Any, draft: Draft, target: Parts, workspace: Path, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
    """Add the members of an archive to a directory.

    Args:
        file: the archive, compressed or not.
        draft: where to add them.
        target: the directory.
        workspace: a directory for the content of large members.
        limits: bounds on the unpacked size.

    Raises:
        ImageError: the archive is malformed, or a path leads out of it.

    Source: Dockerfile reference, "Adding local tar archives".
    """
    import hashlib
    from secrets import token_hex

    with Plain(file, "the archive", limits=limits, threads=0) as stream:
        reader = ForwardReader(stream, hashlib.sha256(), limits, stream.compressed)
        for entry in read_entries(reader, limits):
            if not entry.parts:
                continue
            if any(part.startswith(b".wh.") for part in entry.parts):
                raise ImageError(f"the archive contains {os.fsdecode(entry.path)}, whose name marks a deletion")
            place = workspace / token_hex(8)
            head = Head(
                name=entry.path, kind=_LETTERS[entry.kind], mode=entry.mode, uid=entry.uid, gid=entry.gid,
                mtime_ns=entry.mtime_ns, device=os.makedev(*entry.device), link=entry.link,
                attributes={key: value for key, value in attributes_of(entry.headers).items() if is_kept(key)},
            )  # fmt: skip
            if entry.kind == "hardlink":
                head.link = b"/".join((*target, *(part for part in entry.link.split(b"/") if part not in (b"", b"."))))
            if entry.kind == "file":
                with place.open("wb") as out:
                    stretches = entry.sparse if entry.sparse is not None else ((0, entry.size),)
                    for offset, length in stretches:
                        out.seek(offset)
                        for piece in entry.content(length):
                            out.write(piece)
                    out.truncate(entry.size)
            draft.add_head((*target, *entry.parts), head, os.fsencode(place) if entry.kind == "file" else b"")


def fetch(url: str, place: Path, checksum: str = "", settings: RegistrySettings | None = None) -> str:
    """Download a file.

    Args:
        url: the address.
        place: the destination.
        checksum: the digest that it must have, or empty.
        settings: timeouts. Default: those for a blob from a registry.

    Returns:
        The name in the address.

    Raises:
        ImageError: there is no answer, it is too slow, has another digest, or is larger than 16 GiB.

    Source: Dockerfile reference, "Adding files from URLs".
    """
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    from containerkit.image.registry.deadlines import Meter
    from containerkit.image.registry.settings import RegistrySettings
    from containerkit.image.registry.transport import Transport, error_text

    wanted = Digest(checksum) if checksum else Digest.of(b"")
    settings = settings or RegistrySettings()
    transport, meter = Transport(settings), Meter(settings)
    try:
        answer = transport.send("GET", url, meter=meter)
        if answer.status != 200:
            raise ImageError(f"{url}: {error_text(answer)}")
        state, size = wanted.hasher(), 0
        with place.open("wb") as file:
            while piece := answer.read1(1 << 18, decode_content=True):
                size += len(piece)
                meter.reach(size)
                if size > _LARGEST_FETCH:
                    raise ImageError(f"{url}: larger than {_LARGEST_FETCH} bytes")
                state.update(piece)
                file.write(piece)
    except (HTTPError, HTTPException, TimeoutError, ConnectionError) as error:
        why = error if meter.left_s() else meter.verdict
        raise ImageError(f"{url}: the answer was cut off: {why}") from error
    finally:
        transport.close()
    if checksum:
        wanted.check(state, url)
    return urlsplit(url).path.rpartition("/")[2] or "download"
