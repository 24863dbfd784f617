"""COPY and ADD: which files are meant, where they go, and who owns them."""

from __future__ import annotations

import os
import re
import stat
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import attrs

from containerkit.errors import ImageError, SpecError
from containerkit.image.build.patterns import Ignore, has_wildcard, pattern
from containerkit.image.digest import Digest
from containerkit.image.layers.attributes import attributes_of, is_kept
from containerkit.image.layers.compression import decompress, recognise
from containerkit.image.layers.limits import DEFAULT_LIMITS
from containerkit.image.layers.stream import ForwardReader, read_entries
from containerkit.image.layers.tarwrite import Head
from containerkit.image.layers.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containerkit.image.build.draft import Draft
    from containerkit.image.layers.view import Found, Parts

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
    """Where files are copied from.

    Args:
        view: the files.
        ignore: what is left out.
        name: what to call it in errors.
    """

    view: View
    ignore: Callable[[str], bool] = lambda _: False
    name: str = "the build context"


def context_source(folder: str | os.PathLike[str], dockerfile: str = "Dockerfile") -> Source:
    """Return the source for a build context; ``DOCKERFILE.dockerignore`` wins over ``.dockerignore``.

    Raises:
        SpecError: the folder is not there, or a pattern is malformed.

    Source: Dockerfile reference, ".dockerignore file".
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise SpecError(f"the build context {root} is not there, or no folder")
    lines: list[str] = []
    for candidate in (root / f"{dockerfile}.dockerignore", root / ".dockerignore"):
        if candidate.is_file():
            lines = candidate.read_text("utf-8", "surrogateescape").splitlines()
            break
    return Source(view=View([str(root)], overlay=False), ignore=Ignore(lines))


def owner_of(view: View, text: str) -> tuple[int, int]:
    """Return the numbers of ``user[:group]``; names are those of the root's own ``/etc/passwd`` and ``/etc/group``.

    A user without a group has the group of the same number.

    Raises:
        SpecError: the root knows no such name, or a number is out of range.

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
    raise SpecError(f"{path} of the image knows no {name!r}")


def mode_of(text: str) -> Callable[[int, bool], int]:
    """Return what ``--chmod`` makes of permission bits, given them and whether the file is a folder.

    Args:
        text: an octal number such as ``755``, or symbolic such as ``u=rwX,go-w``.

    Raises:
        SpecError: it is neither.

    Source: Dockerfile reference, "COPY --chown --chmod"; chmod(1).
    """
    if _OCTAL.fullmatch(text):
        number = int(text, 8)
        return lambda _mode, _folder: number
    clauses = [_CLAUSE.fullmatch(clause) for clause in text.split(",")]
    if not all(clauses):
        raise SpecError(f"--chmod={text}: expected an octal number such as 755, or a mode such as u=rwX,go-w")
    parsed = [(found[1] or "a", _CHANGE.findall(found[2])) for found in clauses if found]

    def change(mode: int, folder: bool) -> int:  # noqa: FBT001 - a function that is only called here and there
        for who, changes in parsed:
            for operator, what in changes:
                mode = _changed(mode, who, operator, what, folder=folder)
        return mode

    return change


def _changed(mode: int, who: str, operator: str, what: str, *, folder: bool) -> int:
    """Apply one change, such as ``g+w``, to permission bits."""
    for letter in "ugo" if "a" in who else who:
        shift = _SHIFT[letter]
        if what in ("u", "g", "o"):
            bits = mode >> _SHIFT[what] & 7
        else:
            bits = sum(_BITS[char] for char in set(what) & set("rwx"))
            bits |= 1 if "X" in what and (folder or mode & 0o111) else 0
        special = {"u": 0o4000, "g": 0o2000, "o": 0}[letter] if "s" in what else 0
        special |= 0o1000 if "t" in what else 0
        value = bits << shift | special
        kept = mode & ~(7 << shift) if operator == "=" else mode
        mode = kept & ~value if operator == "-" else kept | value
    return mode


@attrs.frozen(kw_only=True)
class Copy:
    """One COPY.

    Args:
        source: where from.
        draft: where to.
        target: the destination, absolute.
        into: the destination is a folder, by its slash or since there are several sources.
        parents: keep the folders above each source.
        exclude: patterns of what is left out.
        workspace: a folder for the content of archives.
    """

    source: Source
    draft: Draft
    target: str
    into: bool
    parents: bool = False
    exclude: tuple[re.Pattern[str], ...] = ()
    workspace: Path = attrs.field(factory=Path)

    def add(self, word: str, *, unpack: bool = False) -> None:
        """Copy one source: a file, a folder's content, or all that a pattern fits.

        Args:
            word: the path or pattern.
            unpack: archives are unpacked (as ADD does).

        Raises:
            SpecError: nothing is there, or it can't go where it shall.

        Source: Dockerfile reference, "COPY" and "ADD".
        """
        found = 0
        for name, shown in self._matching(word):
            found += 1
            self._one(name, shown, unpack=unpack)
        if not found:
            raise SpecError(f"{word!r} is not in {self.source.name}, or is left out by .dockerignore")

    def _matching(self, word: str) -> Iterator[tuple[str, str]]:
        """Yield each path that is meant, and the part of it that ``--parents`` keeps."""
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
        ignore = self.source.ignore
        return (
            isinstance(ignore, Ignore) and ignore.has_exceptions and any(not ignore(one) for one in self._below(path))
        )

    def _below(self, path: str) -> Iterator[str]:
        for name in self.source.view.names(self._parts(path)):
            inner = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
            yield inner
            found = self.source.view.find(self._parts(inner, follow=False))
            if found is not None and found.is_folder:
                yield from self._below(inner)

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
            raise SpecError(f"{path!r} in {self.source.name} is a link to nothing")
        target = self.draft.view.resolve(os.fsencode(self.target), last=True)
        if self.parents:
            target = (*target, *(os.fsencode(part) for part in shown.split("/") if part))
            if found.is_folder:
                self._folder(path, self._parts(path), target)
            else:
                self.draft.add_file(target, found)
        elif found.is_folder:
            self.draft.add_folder(target)
            self._folder(path, self._parts(path), target)
        elif unpack and _is_archive(found):
            self.draft.add_folder(target)
            with open(found.path, "rb") as file:
                unpack_archive(file, self.draft, target, self.workspace)
        else:
            into = self.into or self.draft.is_folder(target)
            self.draft.add_file((*target, os.fsencode(path.rpartition("/")[2])) if into else target, found)

    def _folder(self, path: str, parts: Parts, target: Parts) -> None:
        for name in self.source.view.names(parts):
            inner = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
            found = self.source.view.find((*parts, name))
            if found is None or self._is_excluded(inner):
                continue
            left_out = self.source.ignore(inner)
            goal = (*target, name)
            if found.is_folder:
                if left_out and not self._holds_something(inner):
                    continue
                self.draft.add_file(goal, found)
                self._folder(inner, (*parts, name), goal)
            elif not left_out:
                self.draft.add_file(goal, found)

    def _is_excluded(self, path: str) -> bool:
        return any(rule.fullmatch(path) or rule.fullmatch(path.rpartition("/")[2]) for rule in self.exclude)


def _is_archive(found: Found) -> bool:
    if not stat.S_ISREG(found.status.st_mode):
        return False
    with open(found.path, "rb") as file:
        return is_archive(file)


def is_archive(file: Any) -> bool:
    """Return whether a file is a tar archive, compressed or not; it is left at its beginning.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    try:
        file.seek(0)
        kind = recognise(file.read(6))
        file.seek(0)
        if kind == "none":
            start = file.read(512)
        else:
            stream = decompress(file, threads=0)
            start = stream.read(512)
    except Exception:  # noqa: BLE001 - whatever can't be read as an archive is a plain file
        return False
    finally:
        file.seek(0)
    return bool(start[257:262] == b"ustar")


def unpack_archive(file: Any, draft: Draft, target: Parts, workspace: Path) -> None:
    """Add the members of an archive below a folder.

    Args:
        file: the archive, compressed or not.
        draft: where to.
        target: the folder.
        workspace: a folder for the content of large members.

    Raises:
        ImageError: the archive is malformed or leads out.

    Source: Dockerfile reference, "Adding local tar archives".
    """
    import hashlib
    from secrets import token_hex

    size = os.fstat(file.fileno()).st_size
    with closing(decompress(file, threads=0)) as stream:
        reader = ForwardReader(stream, hashlib.sha256(), DEFAULT_LIMITS, lambda: size)
        for entry in read_entries(reader):
            if not entry.parts:
                continue
            if any(part.startswith(b".wh.") for part in entry.parts):
                raise ImageError(f"the archive holds {os.fsdecode(entry.path)}, whose name means a deletion")
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


def fetch(url: str, place: Path, checksum: str = "") -> str:
    """Download a file.

    Args:
        url: its address.
        place: where to.
        checksum: the digest that it must have, or empty.

    Returns:
        The name that the address gives it.

    Raises:
        ImageError: no answer, another digest, or more than 16 GiB.

    Source: Dockerfile reference, "Adding files from URLs".
    """
    from containerkit.image.registry.settings import RegistrySettings
    from containerkit.image.registry.transport import Transport, error_text

    wanted = Digest(checksum) if checksum else Digest.of(b"")
    transport = Transport(RegistrySettings())
    try:
        answer = transport.send("GET", url)
        if answer.status != 200:
            raise ImageError(f"{url}: {error_text(answer)}")
        state, size = wanted.hasher(), 0
        with place.open("wb") as file:
            while piece := answer.read(1 << 18):
                size += len(piece)
                if size > _LARGEST_FETCH:
                    raise ImageError(f"{url}: over {_LARGEST_FETCH} bytes")
                state.update(piece)
                file.write(piece)
    finally:
        transport.close()
    if checksum:
        wanted.check(state, url)
    return urlsplit(url).path.rpartition("/")[2] or "download"
