"""The ctypes backend of :mod:`containerkit._native.calls`, for where the extension was not built.

It does the same as ``calls_compiled`` at about twice the cost of a call, and ctypes takes some milliseconds to import.
"""

from __future__ import annotations

import ctypes

from containerkit._native.constants import SYSTEM_CALLS

__all__ = ["fork", "syscall"]

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
        args: at most six. Bytes are passed as their address (followed by a NUL); the kernel may write into a bytearray.

    Returns:
        What the kernel returned: a value, or a negative error number.

    Source: syscall(2).
    """
    words = [ctypes.c_long(number)]
    memory: list[Memory | bytes] = []  # holds what the addresses point to until the kernel is done with it
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


def fork(arguments: bytes) -> int:
    """Call clone3 with a ``struct clone_args``, holding the GIL and running Python's own hooks around it.

    Returns:
        The child's pid, 0 in the child, or a negative error number.

    Source: clone3(2).
    """
    number = ctypes.c_long(SYSTEM_CALLS["clone3"])
    _python.PyOS_BeforeFork()
    pid: int = _syscall_with_gil(number, ctypes.c_char_p(arguments), ctypes.c_long(len(arguments)))
    error = ctypes.get_errno()
    if pid == 0:
        _python.PyOS_AfterFork_Child()
    else:
        _python.PyOS_AfterFork_Parent()
    return -error if pid == -1 else pid
