"""System calls that the standard library does not have: bpf(2), perf_event_open(2) and the mount calls.

They are made with ctypes. A start on version 1 or without device rules needs none, and so never imports this module.
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
        name: the name of the call.
        arguments: integers, bytes and buffers. Of bytes and buffers the address is passed.

    Raises:
        OSError: the kernel refuses it.

    Source: syscall(2).
    """
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    result = int(_syscall(ctypes.c_long(SYSTEM_CALLS[name]), *words))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return result


def address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Return the address of a buffer, for a structure that points to it."""
    return ctypes.addressof(buffer)
