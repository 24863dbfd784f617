"""Remove from a checkpoint the control groups of other programs.

If a container is in the root of a hierarchy, CRIU records all groups of that hierarchy, those of the whole host.
The restore would create each of them again, although its owner may have removed it.

The image is a header (two magic numbers, the length) and a message of Protocol Buffers.

Source: criu/cgroup.c and images/cgroup.proto of CRIU; https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
import struct

from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["keep_own_groups"]

_HEADER = struct.Struct("<III")
_BYTES = 2  # wire type: a length, and that number of bytes
_CONTROLLERS = 2  # field of the image: one for each hierarchy
_DIRECTORIES = 2  # field of a controller
_NAME, _CHILDREN, _PROPERTIES = 1, 2, 3  # fields of a directory


def keep_own_groups(images: str) -> None:
    """Rewrite ``cgroup.img`` in a directory of images. Has no effect if there is none.

    Raises:
        RuntimeFailure: it is not as CRIU writes it.
    """
    path = f"{images}/cgroup.img"
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return
    try:
        magic, message = _opened(content)
        own = b"".join(_controller(field) if number == _CONTROLLERS else field for number, field in _fields(message))
    except (ValueError, IndexError, struct.error) as error:
        raise RuntimeFailure(f"{path}: {error}") from None
    if own != message:
        temporary = f"{path}.new"
        with open(temporary, "wb") as file:
            file.write(_HEADER.pack(*magic, len(own)) + own)
        os.rename(temporary, path)


def _opened(content: bytes) -> tuple[list[int], bytes]:
    """Return the magic numbers and the message of an image."""
    *magic, length = _HEADER.unpack_from(content)
    message = content[_HEADER.size :]
    if len(message) != length:
        raise ValueError(f"a message of {len(message)} bytes, not of {length}")
    return magic, message


def _controller(field: bytes) -> bytes:
    start = _start_of(field)
    parts = (_directory(part) if number == _DIRECTORIES else part for number, part in _fields(field[start:]))
    return _packed(_CONTROLLERS, b"".join(parts))


def _directory(field: bytes) -> bytes:
    """Return a directory unchanged or, if it is the root of a hierarchy, without its content."""
    parts = list(_fields(field[_start_of(field) :]))
    if any(number == _NAME and part[_start_of(part) :].strip(b"/") for number, part in parts):
        return field
    return _packed(_DIRECTORIES, b"".join(part for number, part in parts if number not in (_CHILDREN, _PROPERTIES)))


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each field, and the field as it is encoded."""
    at = 0
    while at < len(message):
        key, end = _number(message, at)
        if key & 7 == _BYTES:
            length, end = _number(message, end)
            end += length
        elif key & 7 == 0:
            _, end = _number(message, end)
        else:
            raise ValueError(f"a field of wire type {key & 7}")
        if end > len(message):
            raise ValueError("a field is cut off")
        yield key >> 3, message[at:end]
        at = end


def _start_of(field: bytes) -> int:
    """Return the offset of the content of a field of bytes."""
    return _number(field, _number(field, 0)[1])[1]


def _number(message: bytes, at: int) -> tuple[int, int]:
    """Return a number of variable length, and the offset of its end."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def _packed(number: int, content: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(content)) + content


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
