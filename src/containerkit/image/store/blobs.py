"""Blobs: immutable files named by their digest."""

from __future__ import annotations

import fcntl
import os
from secrets import token_hex
from typing import TYPE_CHECKING, BinaryIO, Final

from containerkit.errors import ImageError
from containerkit.image.digest import Digest
from containerkit.image.document import LARGEST_BYTES
from containerkit.image.manifest import Descriptor
from containerkit.image.store.locks import refused, sync_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from hashlib import _Hash
    from pathlib import Path
    from types import TracebackType
    from typing import Self

__all__ = ["Blobs", "Ingest"]

_PIECE: Final = 1 << 20


class Ingest:
    """A blob that is being added to the store. Write it, then call :meth:`commit`.

    Without a commit the written bytes stay, so that the next attempt continues at :attr:`offset`. Wrong content does
    not stay. The file is locked: a second process that wants the same blob waits for the first.

    Attributes:
        offset: the number of bytes so far.
        done: whether the blob is in the store already, so that nothing must be written.
    """

    def __init__(self, blobs: Blobs, expected: Descriptor | None) -> None:
        self._blobs = blobs
        self._expected = expected
        self._path = blobs.incoming / (_partial(expected.digest) if expected else f"new-{token_hex(8)}")
        self._file = -1
        self._state: _Hash = expected.digest.hasher() if expected else _sha256()
        self.offset = 0
        self.done = False

    def __repr__(self) -> str:
        state = "closed" if self._file < 0 else f"{self.offset} bytes"
        return f"<Ingest {self._expected.digest if self._expected else 'new'}: {state}>"

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
            self._close()
            raise refused("open", self._path, error) from error
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0 and not self.done and (self._expected is None or self.offset == 0):
            self._path.unlink(missing_ok=True)
        self._close()

    def _open(self) -> None:
        while True:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if self._expected is not None and self._blobs.has(self._expected):
                self._path.unlink(missing_ok=True)
                self.done = True
                self.offset = self._expected.size
                return
            if self._is_current():
                break
            self._close()  # another process moved it into place while this one waited
        self._resume()

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except FileNotFoundError:
            return False

    def _resume(self) -> None:
        while piece := os.read(self._file, _PIECE):
            self._state.update(piece)
            self.offset += len(piece)
        if self._expected is not None and self.offset > self._expected.size:
            self.restart()

    def restart(self) -> None:
        """Discard what has been written."""
        self._state = self._expected.digest.hasher() if self._expected else _sha256()
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self.offset = 0

    @property
    def digest(self) -> Digest:
        """The digest of the blob: the expected one, or that of the written bytes."""
        return self._expected.digest if self._expected else Digest(f"sha256:{self._state.hexdigest()}")

    def write(self, content: bytes | memoryview) -> int:
        """Append bytes.

        Raises:
            ImageError: there are more bytes than the blob's size.
            SetupError: the disk is full or not writable.

        Source: OCI image specification, descriptor.md.
        """
        if self._expected is not None and self.offset + len(content) > self._expected.size:
            self.restart()
            raise ImageError(f"blob {self._expected.digest}: more bytes than the expected {self._expected.size}")
        view = memoryview(content)
        while view:
            try:
                count = os.write(self._file, view)
            except OSError as error:
                raise refused("write", self._path, error) from error
            self._state.update(view[:count])
            self.offset += count
            view = view[count:]
        return len(content)

    def commit(self) -> Digest:
        """Check digest and size, and move the blob to its place.

        Returns:
            The digest.

        Raises:
            ImageError: it is too short (the bytes stay, to be continued), or does not match its digest (nothing stays).
            SetupError: the disk is full.

        Source: OCI image specification, descriptor.md; rename(2).
        """
        digest = self.digest
        if self.done:
            return digest
        if self._expected is not None:
            if self.offset != self._expected.size:
                raise ImageError(f"blob {digest}: only {self.offset} of {self._expected.size} bytes arrived")
            try:
                digest.check(self._state, f"blob {digest}")
            except ImageError:
                self.restart()
                raise
        try:
            os.fsync(self._file)
            place = self._blobs.path(digest)
            place.parent.mkdir(exist_ok=True)
            self._path.replace(place)
            sync_directory(place.parent)
        except OSError as error:
            raise refused("rename", self._path, error) from error
        self.done = True
        return digest

    def _close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class Blobs:
    """The directory ``blobs`` of an image layout, and the directory for incoming blobs.

    Args:
        directory: ``blobs``.
        incoming: the directory for unfinished blobs, on the same filesystem.

    Source: OCI image specification, image-layout.md.
    """

    def __init__(self, directory: Path, incoming: Path) -> None:
        self.directory = directory
        self.incoming = incoming

    def __repr__(self) -> str:
        return f"Blobs({str(self.directory)!r})"

    def __iter__(self) -> Iterator[Digest]:
        for algorithm in sorted(self.directory.iterdir()):
            for entry in sorted(algorithm.iterdir()):
                if not entry.name.startswith("."):
                    yield Digest(f"{algorithm.name}:{entry.name}")

    def path(self, digest: Digest) -> Path:
        """Return the path of a blob, which need not exist."""
        return self.directory / digest.algorithm / digest.encoded

    def has(self, blob: Descriptor | Digest) -> bool:
        """Return whether a blob exists and has the size in its descriptor."""
        digest = blob.digest if isinstance(blob, Descriptor) else blob
        try:
            size = self.path(digest).stat().st_size
        except FileNotFoundError:
            return False
        return not isinstance(blob, Descriptor) or size == blob.size

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for reading.

        Raises:
            ImageError: it does not exist.
        """
        try:
            return self.path(digest).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise ImageError(f"blob {digest} is not in the store (hint: pull the image again)") from error

    def read(self, digest: Digest) -> bytes:
        """Return a small blob (a manifest, index or config) after verifying it.

        Raises:
            ImageError: it does not exist, is too large, or does not match its digest.
        """
        with self.open(digest) as file:
            content = file.read(LARGEST_BYTES + 1) or b""
        if len(content) > LARGEST_BYTES:
            raise ImageError(f"blob {digest}: larger than {LARGEST_BYTES} bytes, the maximum for a document")
        state = digest.hasher()
        state.update(content)
        digest.check(state, f"blob {digest} in the store")
        return content

    def ingest(self, expected: Descriptor | None = None) -> Ingest:
        """Return a writer for a new blob, for use in a ``with`` statement.

        Args:
            expected: the expected blob. By default any content is accepted and named by its sha256.
        """
        return Ingest(self, expected)

    def add(self, content: bytes, media_type: str) -> Descriptor:
        """Store some bytes, and return their descriptor."""
        descriptor = Descriptor.of(content, media_type)
        if not self.has(descriptor):
            with self.ingest(descriptor) as writer:
                if not writer.done:
                    writer.restart()
                    writer.write(content)
                writer.commit()
        return descriptor


def _partial(digest: Digest) -> str:
    return f"{digest.algorithm}-{digest.encoded}"


def _sha256() -> _Hash:
    import hashlib

    return hashlib.sha256()
