"""File locks between processes, and durable files."""

from __future__ import annotations

import fcntl
import os
import re
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError
from containerkit.start.removal import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = [
    "IDS",
    "UNPLACED",
    "locked",
    "opened",
    "refused",
    "replace_file",
    "sync_directory",
    "try_lock",
    "workspace",
]

IDS: Final = "ids-"
"""The prefix of the directories for layers whose files belong to id ranges of a user."""


UNPLACED: Final = re.compile(r"\..+\.[0-9a-f]{12}")
"""The names of temporary files, see :func:`replace_file`."""


_HINTS: Final = {
    ENOSPC: "the disk is full: free some space, collect unused images, or choose another store",
    EDQUOT: "the quota is exhausted: collect unused images, or choose another store",
    EACCES: "choose a store that this user may write to",
    EROFS: "the filesystem is read-only; choose another store",
}


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[int]:
    """Hold a lock on a file, which is created if it does not exist. Wait without a timeout.

    The kernel releases these locks when a process ends.

    Args:
        path: the file.
        exclusive: whether to hold it alone. Otherwise others can share it.

    Yields:
        The open descriptor.

    Raises:
        SetupError: the file can't be created.

    Source: flock(2).
    """
    descriptor = opened(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def opened(path: Path, flags: int) -> int:
    """Open or create a file of a store.

    Raises:
        SetupError: the disk is full or not writable.
        OSError: another error.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in _HINTS:
            raise refused("open", path, error) from None
        raise


def try_lock(descriptor: int) -> bool:
    """Get the exclusive lock if nobody holds it.

    Source: flock(2).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Source: fsync(2).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Replace a file so that readers, also after a crash, find either the old or the new content.

    Source: rename(2), fsync(2).
    """
    new = path.with_name(f".{path.name}.{token_hex(6)}")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise refused("write", path, error) from error
    sync_directory(path.parent)


def refused(operation: str, path: Path, error: OSError) -> SetupError:
    """Convert an error of the filesystem to a SetupError, with a remedy if there is one."""
    number = error.errno or 5
    return SetupError(operation, number, os.fspath(path), _HINTS.get(number, ""))


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Yield an empty directory that is removed afterwards. The collection keeps it while this process lives.

    Args:
        parent: where to create it.

    Yields:
        The directory. Only its owner can access it.

    Source: flock(2).
    """
    directory = parent / f".new-{token_hex(8)}"
    directory.mkdir(mode=0o700)
    lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
    finally:
        remove_tree(directory)
        os.close(lock)
