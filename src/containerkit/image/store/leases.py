"""Leases: record which blobs and layers a process uses, so that the collection keeps them."""

from __future__ import annotations

import os
from errno import ENOSPC
from secrets import token_hex
from typing import TYPE_CHECKING

from containerkit.descriptors import Closing
from containerkit.errors import SpecError
from containerkit.image.digest import Digest
from containerkit.image.store.locks import locked, opened, refused, try_lock

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Lease", "leased"]


class Lease(Closing):
    """A claim on blobs and layers. It lasts until it is closed or its process ends.

    It is a locked file with one digest per line. The kernel releases the lock when the process ends, for any reason.

    Args:
        directory: the directory of the leases.
        gate: the lock that the collection holds exclusively.
        shared: descriptor of another process's claim to extend; it is closed with this one. Default: a new claim.

    Source: flock(2).
    """

    def __init__(self, directory: Path, gate: Path, shared: int | None = None) -> None:
        self._gate = gate
        self._path = directory / token_hex(8)
        self._claimed: set[Digest] = set()
        self._is_shared = shared is not None
        if shared is not None:
            self._file = shared
            return
        with locked(gate, exclusive=False):
            self._file = opened(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
            try_lock(self._file)

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file

    def __repr__(self) -> str:
        return f"<Lease on {len(self._claimed)} digests: {'closed' if self._file < 0 else 'held'}>"

    def claim(self, digests: Iterable[Digest]) -> None:
        """Claim more digests. Waits while a collection is running.

        Raises:
            SetupError: the disk is full or not writable. Nothing more is claimed.
        """
        new = [digest for digest in digests if digest not in self._claimed]
        if not new:
            return
        with locked(self._gate, exclusive=False):
            self._append("".join(f"{digest}\n" for digest in new).encode())
        self._claimed.update(new)

    def _append(self, lines: bytes) -> None:
        """Write whole lines or nothing, because a collection ignores incomplete ones."""
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, lines)
        except OSError as error:
            raise refused("write", self._path, error) from None
        if written != len(lines):
            os.ftruncate(self._file, size)
            raise refused("write", self._path, OSError(ENOSPC, os.strerror(ENOSPC)))

    def close(self) -> None:
        """Release the claim. May be called twice."""
        if self._file >= 0:
            if not self._is_shared:
                self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = -1


def leased(directory: Path) -> set[Digest]:
    """Return all claimed digests, and delete the leases of processes that have ended.

    The caller must hold the gate exclusively.
    """
    found: set[Digest] = set()
    for path in list(directory.iterdir()):
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if try_lock(descriptor):
                path.unlink(missing_ok=True)
                continue
            lines = path.read_text("ascii").splitlines()
        finally:
            os.close(descriptor)
        for line in lines:
            try:
                found.add(Digest(line))
            except SpecError:
                continue  # a partial line: its process was killed while writing it
    return found
