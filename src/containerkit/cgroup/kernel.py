"""The raw system calls of this package that the standard library lacks: bpf(2), perf_event_open(2), the mount calls.

Through ctypes, imported with this module and so late: a start on version 1, and one without device rules, needs none.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from containerkit._native.constants import SYSTEM_CALLS

__all__ = ["address", "call"]

_syscall: Final = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char]) -> int:
    """Make a system call and return its result.

    Args:
        name: the call's name.
        arguments: integers, or bytes and buffers whose address is passed.

    Raises:
        OSError: the kernel refused it.

    Source: syscall(2).
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_syscall(ctypes.c_long(SYSTEM_CALLS[name]), *words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Return where a buffer lies, for a structure that points to it."""
    return ctypes.addressof(buffer)
