"""The ctypes backend of :mod:`containerkit._native.calls`, used if the extension was not built.

It does the same as ``calls_compiled``, but a call takes about twice as long, and importing ctypes takes milliseconds.
"""

from __future__ import annotations

import ctypes
import gc
from itertools import tee
from operator import call

from containerkit._native.constants import SYSTEM_CALLS

__all__ = ["address", "fork", "syscall"]

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall_with_gil = ctypes.PyDLL(None, use_errno=True).syscall  # PyDLL keeps the GIL
_syscall_with_gil.restype = ctypes.c_long
_python = ctypes.pythonapi

Memory = ctypes.Array[ctypes.c_char]


def syscall(number: int, *args: int | bytes | bytearray) -> int:
    """Make one system call with the GIL released.

    Args:
        number: the system call's number on this machine.
        args: at most six. For bytes (followed by a NUL) their address is passed. The kernel may write to a bytearray.

    Returns:
        The kernel's result: a value, or a negative error number.

    Source: syscall(2).
    """
    words = [ctypes.c_long(number)]
    memory: list[Memory | bytes] = []  # keeps the buffers alive until the call returns
    for argument in args:
        if isinstance(argument, int):
            words.append(ctypes.c_long(argument))  # c_long takes the low 64 bits of any integer
            continue
        if isinstance(argument, bytearray):
            array = (ctypes.c_char * len(argument)).from_buffer(argument)
            memory.append(array)
            address = ctypes.addressof(array)
        else:
            memory.append(argument)
            address = ctypes.cast(ctypes.c_char_p(argument), ctypes.c_void_p).value or 0
        words.append(ctypes.c_long(address))
    words += [ctypes.c_long(0)] * (7 - len(words))
    result: int = _syscall(*words)
    return -ctypes.get_errno() if result == -1 else result


def address(memory: bytearray) -> int:
    """Return where a buffer is, for a structure that points to it. It must outlive the call and keep its length."""
    return ctypes.addressof((ctypes.c_char * len(memory)).from_buffer(memory))


def fork(arguments: bytes) -> int:
    """Call clone3 with a ``struct clone_args``, holding the GIL and running Python's own fork hooks.

    Returns:
        The child's pid, 0 in the child, or a negative error number.

    Source: clone3(2).
    """
    # Until the hook has run in the child no code of Python may: another thread may have asked for the GIL, and the
    # child would wait forever for that thread, which it does not have, to take it. So C makes the calls, by iterators.
    words = ((ctypes.c_long(SYSTEM_CALLS["clone3"]),), (ctypes.c_char_p(arguments),), (ctypes.c_long(len(arguments)),))
    pids, known = tee(map(_syscall_with_gil, *words))
    hook = map({0: _python.PyOS_AfterFork_Child}.get, known, (_python.PyOS_AfterFork_Parent,))
    steps = zip(pids, map(call, hook), strict=False)
    collecting = gc.isenabled()
    gc.disable()  # a collection runs code of Python, too
    try:
        _python.PyOS_BeforeFork()
        ((pid, _),) = steps
    finally:
        if collecting:
            gc.enable()
    return -ctypes.get_errno() if pid == -1 else pid  # an audit hook is called for it, so it comes after the chain
