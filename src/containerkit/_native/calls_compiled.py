"""The compiled backend of :mod:`containerkit._native.calls`: two functions over ``calls.c``.

It fails to import where the extension was not built; ``calls`` then takes its twin, ``calls_ctypes``.
"""

from __future__ import annotations

from containerkit._native._lib import ffi, lib

__all__ = ["fork", "syscall"]

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def syscall(number: int, *args: int | bytes | bytearray) -> int:
    """Make one system call with the GIL released.

    Args:
        number: the system call's number on this machine.
        args: at most six. Bytes are passed as their address (followed by a NUL); the kernel may write into a bytearray.

    Returns:
        What the kernel returned: a value, or a negative error number.

    Source: syscall(2).
    """
    memory = []  # holds what the addresses point to until the kernel is done with it
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


def fork(arguments: bytes) -> int:
    """Call clone3 with a ``struct clone_args``, holding the GIL and running Python's own hooks around it.

    Returns:
        The child's pid, 0 in the child, or a negative error number.

    Source: clone3(2).
    """
    result: int = lib.ck_fork(ffi.from_buffer(arguments), len(arguments))
    return result
