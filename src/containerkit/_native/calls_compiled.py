"""The compiled backend of :mod:`containerkit._native.calls`: functions over ``calls.c`` and ``copy.c``.

Importing it fails if the extension was not built. Then ``calls`` uses ``calls_ctypes`` instead.
"""

from __future__ import annotations

import os

from containerkit._native._lib import ffi, lib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["address", "copied", "fork", "syscall"]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def syscall(number: int, *args: int | bytes | bytearray) -> int:
    """Make one system call with the GIL released.

    Args:
        number: the system call's number on this machine.
        args: at most six. For bytes (followed by a NUL) their address is passed. The kernel may write to a bytearray.

    Returns:
        The kernel's result: a value, or a negative error number.

    Source: syscall(2).
    """
    memory = []  # keeps the buffers alive until the call returns
    words = [0, 0, 0, 0, 0, 0]
    for position, argument in enumerate(args):
        if isinstance(argument, int):
            words[position] = argument & _MASK
        else:
            held = ffi.from_buffer(argument)
            memory.append(held)
            words[position] = int(ffi.cast("uintptr_t", held))
    result: int = lib.ck_call(number, *words)
    return result


def address(memory: bytearray) -> int:
    """Return where a buffer is, for a structure that points to it. It must outlive the call and keep its length."""
    return int(ffi.cast("uintptr_t", ffi.from_buffer(memory)))


def fork(arguments: bytes) -> int:
    """Call clone3 with a ``struct clone_args``, holding the GIL and running Python's own fork hooks.

    Returns:
        The child's pid, 0 in the child, or a negative error number.

    Source: clone3(2).
    """
    result: int = lib.ck_fork(ffi.from_buffer(arguments), len(arguments))
    return result


def copied(paths: Iterable[str], shown: Iterable[str], private: Iterable[str], most: int, largest: int) -> bytes:
    """Read files, directories and symlinks that everybody may read, as entries of ``plan/entries.py``.

    Args:
        paths: absolute paths. Directories are read with their content.
        shown: directories, with a slash at the end. A symlink that leads into one stays a symlink, others are followed.
        private: names that are left out of directories.
        most: how many symlinks and files are read at most.
        largest: the size of the largest file that is read, in bytes.

    Raises:
        OSError: ``ENOMEM``, ``EMFILE`` or ``ENFILE``.
    """
    lists = [
        ffi.new("char[]", b"".join(os.fsencode(each) + b"\0" for each in each_of))
        for each_of in (paths, shown, private)
    ]
    copying = ffi.new("struct ck_copying *", (*lists, most, largest))
    try:
        error = lib.ck_copy(copying)
        if error:
            raise OSError(-error, os.strerror(-error), "/etc")
        return ffi.buffer(copying.bytes, copying.length)[:] if copying.length else b""
    finally:
        lib.ck_copied(copying)
