"""Directories, symlinks and files that one operation makes. ``_native/native.h`` documents their layout."""

from __future__ import annotations

from struct import Struct

from containerkit._native import constants as k
from containerkit.errors import SpecError
from containerkit.plan.operation import Block, Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

__all__ = ["directory", "failed", "file", "populate", "symlink"]

_HEADER: Final = Struct("=4I")
_DIRECTORY, _SYMLINK, _FILE = range(3)
_CALLS: Final = ("mkdirat", "symlinkat", "openat")
_WRITING: Final = 1  # CK_ENTRY_WRITING in native.h


def directory(path: bytes, mode: int) -> bytes:
    """Return the entry of a directory."""
    return _packed(_DIRECTORY, path, mode, b"")


def symlink(path: bytes, content: bytes) -> bytes:
    """Return the entry of a symlink."""
    if b"\0" in content or not content:
        raise SpecError(f"symlink {path!r}: {content!r} is empty or contains a NUL")
    return _packed(_SYMLINK, path, 0, content + b"\0")


def file(path: bytes, mode: int, content: bytes) -> bytes:
    """Return the entry of a file."""
    return _packed(_FILE, path, mode, content)


def _packed(kind: int, path: bytes, mode: int, content: bytes) -> bytes:
    if b"\0" in path or not path:
        raise SpecError(f"{path!r} is empty or contains a NUL")
    used = _HEADER.size + len(path) + 1 + len(content)
    header = _HEADER.pack(kind, mode, len(path) + 1, len(content))
    return b"".join((header, path, b"\0", content, bytes(-used % 8)))


def populate(place: Slot, entries: Iterable[bytes], target: str) -> Operation:
    """Make many entries in a directory, in this order. Directories and symlinks that exist are left as they are.

    Args:
        place: the directory.
        entries: what to make. Paths are relative to the directory.
        target: what they are, for errors.

    Source: mkdirat(2), symlinkat(2), openat(2).
    """
    content = b"".join(entries)
    block = Block(content, name=target)  # with a name it is not compared with the other blocks, which takes long
    arguments = place, block, len(content), Slot("entry")
    return Operation("populate", target, k.STEP_POPULATE, 0, arguments)


def failed(operation: Operation, at: int) -> Operation:
    """Return the call that failed while an operation made many entries.

    Args:
        operation: the operation.
        at: the value that it left in its last argument.
    """
    entries = operation.args[1]
    assert isinstance(entries, Block)
    offset = at & ~_WRITING
    if not 0 <= offset <= len(entries.content) - _HEADER.size:
        return operation
    kind, _, size, _ = _HEADER.unpack_from(entries.content, offset)
    path = entries.content[offset + _HEADER.size :][: size - 1].decode(errors="backslashreplace")
    return operation._replace(name="write" if at & _WRITING else _CALLS[kind], target=path)
