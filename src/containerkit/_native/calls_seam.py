"""The layer below :mod:`containerkit._native.calls`: one system call by name, and the error for a refusal.

It uses one of two backends, the compiled ``calls_compiled`` or ``calls_ctypes``. Both have
``syscall(number, *args)`` and ``fork(arguments)``, which return a value or a negative error number, and ``address()``
of a buffer. Only
``calls_compiled`` has ``copied()``, which ``_linux/hostroot.py`` otherwise does in Python.
"""

from __future__ import annotations

import os
from errno import EINTR, ENOSYS

from containerkit._native import constants as k

try:
    from containerkit._native import calls_compiled as backend
except ImportError:  # not built: the portable backend does the same more slowly
    from containerkit._native import calls_ctypes as backend  # type: ignore[no-redef] # one of the two is imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Argument = int | bytes | bytearray

__all__ = ["backend", "call_at", "named", "refusal", "syscall", "terminated"]


def syscall(name: str, *args: Argument, target: str | bytes | None = None) -> int:
    """Make any system call of ``constants.SYSTEM_CALLS`` by its name.

    Args:
        name: the system call's name.
        args: at most six. For bytes (followed by a NUL) their address is passed. The kernel may write to a bytearray,
            never to bytes.
        target: the target of the call, for the error's ``filename``.

    Returns:
        The value that the kernel returns.

    Raises:
        OSError: the kernel refuses. ``ENOSYS`` also if this machine's table does not have the name.

    Source: syscall(2), syscalls(2).
    """
    number = k.SYSTEM_CALLS.get(name)
    if number is None:
        raise refusal(ENOSYS, target or name)
    result = -EINTR
    while result == -EINTR:  # Python's signal handlers run between two attempts
        result = backend.syscall(number, *args)
    if result < 0:
        raise refusal(-result, target)
    return result


def refusal(error: int, target: str | bytes | None) -> OSError:
    """Return the error of a call that the kernel refused."""
    if target is None:
        return OSError(error, os.strerror(error))
    return OSError(error, os.strerror(error), os.fsdecode(target))


def terminated(value: Path, what: str = "path") -> bytes:
    """Return a NUL-terminated string. A NUL inside is refused, because the kernel would cut the string there."""
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise ValueError(f"{what}: a NUL byte inside {value!r}")
    return encoded


def named(descriptor: int, path: bytes = b"") -> str:
    """Return a readable name for a descriptor and a path below it."""
    if path and (descriptor == k.AT_FDCWD or path.startswith(b"/")):
        return os.fsdecode(path)
    try:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        place = f"fd {descriptor}"
    return f"{place}/{os.fsdecode(path)}" if path else place


def call_at(name: str, descriptor: int, path: Path, *args: Argument) -> int:
    """Make a call whose first two arguments are a directory descriptor and a path below it."""
    encoded = terminated(path)
    try:
        return syscall(name, descriptor, encoded, *args)
    except OSError as error:  # the name of the descriptor is looked up only when it is needed
        error.filename = named(descriptor, encoded)
        raise
