"""The compiled backend of :mod:`containerkit._native.calls`: two functions over ``calls.c``.

Importing it fails if the extension was not built. Then ``calls`` uses ``calls_ctypes`` instead.
"""

from __future__ import annotations

from containerkit._native._lib import ffi, lib

__all__ = ["fork", "syscall"]

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


def fork(arguments: bytes) -> int:
    """Call clone3 with a ``struct clone_args``, holding the GIL and running Python's own fork hooks.

    Returns:
        The child's pid, 0 in the child, or a negative error number.

    Source: clone3(2).
    """
    result: int = lib.ck_fork(ffi.from_buffer(arguments), len(arguments))
    return result
