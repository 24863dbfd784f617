"""Reads messages from tasks in the caller. They become plain data, and no code of a task is run."""

from __future__ import annotations

import builtins
import contextlib
import json
import struct
from typing import TYPE_CHECKING, Any, Final

from containerkit.executor.errors import RemoteError, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["exception_of", "unpacked"]

_HEAD: Final = struct.Struct("<II")
_LENGTH: Final = struct.Struct("<Q")
_ALIGNMENT: Final = 64
_KINDS_OF_ARRAYS: Final = "biufcSUmM"
"""The kinds of numpy types that contain numbers and text, but no objects."""


def unpacked(message: memoryview) -> Any:
    """Return the value of a result.

    Args:
        message: as a task has sent it. Numpy arrays are not copied.

    Raises:
        TaskError: the message is invalid.
    """
    try:
        length, count = _HEAD.unpack_from(message, 0)
        lengths = [_LENGTH.unpack_from(message, _HEAD.size + 8 * number)[0] for number in range(count)]
        at = _HEAD.size + 8 * count + length
        text = bytes(message[at - length : at])
        buffers: list[memoryview] = []
        for size in lengths:
            at += -at % _ALIGNMENT
            buffers.append(_cut(message, at, size))
            at += size
        return _value(json.loads(text), buffers)
    except (ValueError, TypeError, LookupError, RecursionError, OverflowError, MemoryError, struct.error) as error:
        raise TaskError(f"a task sent an invalid result: {type(error).__name__}: {error}") from None


def _cut(message: memoryview, at: int, size: int) -> memoryview:
    buffer = message[at : at + size]
    if len(buffer) != size:
        raise ValueError("a buffer is truncated")
    return buffer


def _value(told: Any, buffers: list[memoryview]) -> Any:
    if isinstance(told, list):
        return [_value(each, buffers) for each in told]
    if not isinstance(told, dict):
        return told
    ((kind, content),) = told.items()
    return _READERS[kind](content, buffers)


def _dict(content: Any, buffers: list[memoryview]) -> Any:
    return {_value(key, buffers): _value(each, buffers) for key, each in content}


def _array(content: Any, buffers: list[memoryview]) -> Any:
    number, name, shape = content
    return _flat(buffers[number], name).reshape(tuple(int(each) for each in shape))


def _flat(buffer: memoryview, name: str) -> Any:
    try:
        import numpy as np
    except ImportError:
        raise TypeError("an array needs numpy in the caller too") from None
    dtype = np.dtype(str(name))
    if dtype.kind not in _KINDS_OF_ARRAYS or dtype.hasobject:
        raise TypeError(f"an array of {name}")
    return np.frombuffer(buffer, dtype)


_READERS: Final[dict[str, Callable[[Any, list[memoryview]], Any]]] = {
    "dict": _dict,
    "tuple": lambda content, buffers: tuple(_value(each, buffers) for each in content),
    "set": lambda content, buffers: {_value(each, buffers) for each in content},
    "frozenset": lambda content, buffers: frozenset(_value(each, buffers) for each in content),
    "complex": lambda content, _: complex(*content),
    "int": lambda content, _: int(content, 16),
    "bytes": lambda number, buffers: bytes(buffers[number]),
    "bytearray": lambda number, buffers: bytearray(buffers[number]),
    "array": _array,
    "scalar": lambda content, buffers: _flat(buffers[content[0]], content[1])[0],
}


def exception_of(told: Any) -> BaseException:
    """Return an exception for one that a task has raised: of the same class if that is a built-in one.

    For others return a :class:`TaskError` that names the class. The traceback of the task is its cause.
    """
    try:
        module, name, args = str(told["module"]), str(told["name"]), list(told["args"])
        text, trace = str(told["text"]), str(told["traceback"])
    except (TypeError, LookupError):
        return TaskError("a task sent an invalid exception")
    error: BaseException = TaskError(f"{module}.{name}: {text}", exception=f"{module}.{name}")
    kind = getattr(builtins, name, None) if module == "builtins" else None
    if isinstance(kind, type) and issubclass(kind, Exception):
        with contextlib.suppress(TypeError, ValueError):
            error = kind(*args)
    error.__cause__ = RemoteError(trace)
    return error
