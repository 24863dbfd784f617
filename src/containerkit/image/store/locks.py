"""File locks between processes, and durable files."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import contextmanager
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from containerkit import deputy
from containerkit.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["IDS", "locked", "refused", "remove_tree", "replace_file", "sync_folder", "try_lock", "workspace"]

IDS: Final = "ids-"
"""What the names of the folders begin with that hold layers whose files belong to ranges of a user's."""


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[int]:
    """Hold a lock on a file, made when missing; wait for it as long as it takes.

    Locks of this kind are the kernel's own: a process that dies lets go.

    Args:
        path: the file.
        exclusive: alone, or together with others that share.

    Yields:
        The open descriptor.

    Source: flock(2).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield descriptor
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Take the exclusive lock if nobody holds it.

    Source: flock(2).
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable.

    Source: fsync(2).
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Put a file in the place of another so that readers, and a crash, find the old or the new one, whole.

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
    sync_folder(path.parent)


def refused(operation: str, path: Path, error: OSError) -> SetupError:
    """Turn an error of the file system into one of ours, with a remedy where there is one."""
    hints = {
        28: "the disk is full: free some space, collect what no image needs, or choose another store",
        122: "the quota is used up: collect what no image needs, or choose another store",
        13: "choose a store that this user may write to",
        30: "the file system is read-only; choose another store",
    }
    number = error.errno or 5
    return SetupError(operation, number, os.fspath(path), hints.get(number, ""))


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """Lend an empty folder that is gone afterwards; the collection leaves it alone as long as this process lives.

    Args:
        parent: where to make it.

    Yields:
        The folder; only its owner may look into it.

    Source: flock(2).
    """
    folder = parent / f".new-{token_hex(8)}"
    folder.mkdir(mode=0o700)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        remove_tree(folder)
        os.close(lock)


def remove_tree(path: Path) -> bool:
    """Delete a folder with all that is in it, whichever of the user's ids it belongs to; what can't be deleted stays.

    Returns:
        Whether it is gone.
    """
    shutil.rmtree(path, ignore_errors=True)
    if path.exists() and deputy.key():
        deputy.call(shutil.rmtree, path, True)
    return not path.exists()
