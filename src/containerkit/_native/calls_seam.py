"""The seam below :mod:`containerkit._native.calls`: one system call by name, and how a refusal is told.

Below it stand two backends, the compiled ``calls_compiled`` and its ctypes twin ``calls_ctypes``; both provide
``syscall(number, *args)`` and ``fork(arguments)`` and answer with a value or a negative error number.
"""

from __future__ import annotations

import os
from errno import EINTR, ENOSYS

from containerkit._native import constants as k
from containerkit.errors import SpecError

try:
    from containerkit._native import calls_compiled as backend
except ImportError:  # not built: the portable twin does the same, more slowly
    from containerkit._native import calls_ctypes as backend  # type: ignore[no-redef]

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Argument = int | bytes | bytearray

__all__ = ["backend", "call_at", "named", "refusal", "syscall", "terminated"]


def syscall(name: str, *args: Argument, target: str | bytes | None = None) -> int:
    """Make any system call of the table in ``constants.SYSTEM_CALLS``, by its name.

    Args:
        name: the system call's name.
        args: at most six. Bytes are passed as their address, followed by a NUL; the kernel may write into a bytearray,
            never into bytes.
        target: what it acts on, for the error's ``filename``.

    Returns:
        The value that the kernel returned.

    Raises:
        OSError: the kernel refused; ``ENOSYS`` also where the name is not in the table of this machine.

    Source: syscall(2), syscalls(2).
    """
    number = k.SYSTEM_CALLS.get(name)
    if number is None:
        raise refusal(ENOSYS, target or name)
    result = -EINTR
    while result == -EINTR:  # Python's signal handlers run between two tries
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
    """Return a string as the kernel reads it, refusing one that the kernel would cut short."""
    encoded = os.fsencode(value)
    if b"\0" in encoded:
        raise SpecError(f"{what}: a NUL byte inside {value!r}")
    return encoded


def named(descriptor: int, path: bytes = b"") -> str:
    """Return a descriptor, and a path below it, as people read them."""
    if path and (descriptor == k.AT_FDCWD or path.startswith(b"/")):
        return os.fsdecode(path)
    try:
        place = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        place = f"fd {descriptor}"
    return f"{place}/{os.fsdecode(path)}" if path else place


def call_at(name: str, descriptor: int, path: Path, *args: Argument) -> int:
    """Make a call whose first arguments are a directory's descriptor and a path below it."""
    encoded = terminated(path)
    try:
        return syscall(name, descriptor, encoded, *args)
    except OSError as error:  # the descriptor's name is looked up only once it is needed
        error.filename = named(descriptor, encoded)
        raise
