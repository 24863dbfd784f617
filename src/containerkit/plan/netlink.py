"""Netlink messages as bytes: a header, a fixed structure, and attributes, which can be nested.

Only :func:`reason` makes a system call: it reads the ack of a refused message. Source: netlink(7), rtnetlink(7), the
kernel's include/uapi/linux/netlink.h.
"""

from __future__ import annotations

import os
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ACK",
    "CREATE",
    "DUMP",
    "EXCLUDE",
    "REPLACE",
    "attribute",
    "attributes",
    "message",
    "messages",
    "reason",
    "words",
]

REQUEST: Final = 1
ACK: Final = 4
DUMP: Final = 0x300
EXCLUDE: Final = 0x200
REPLACE: Final = 0x100
CREATE: Final = 0x400

_ERROR: Final = 2
_CAPPED: Final = 0x100  # NLM_F_CAPPED: the ack contains only the header of the refused message
_HAS_TEXT: Final = 0x200  # NLM_F_ACK_TLVS
_TEXT: Final = 1  # NLMSGERR_ATTR_MSG
_HEADER: Final = 16
_LARGEST: Final = 16384


def attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute, padded to four bytes.

    Args:
        kind: its number; nested ones may add 0x8000.
        content: its value, or the attributes within.
    """
    size = 4 + len(content)
    return pack("=HH", size, kind) + content + bytes(-size % 4)


def message(kind: int, flags: int, body: bytes, *parts: bytes) -> bytes:
    """Return a request that asks for an ack.

    Args:
        kind: such as ``RTM_NEWLINK``.
        flags: ``CREATE``, ``EXCLUDE``, ``REPLACE``, ``DUMP`` or 0.
        body: the fixed structure.
        parts: attributes.
    """
    content = body + bytes(-len(body) % 4) + b"".join(parts)
    return pack("=IHHII", _HEADER + len(content), kind, REQUEST | ACK | flags, 1, 0) + content


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of each received message."""
    at = 0
    while at + _HEADER <= len(data):
        size, kind = unpack_from("=IH", data, at)
        if size < _HEADER:
            return
        yield kind, data[at + _HEADER : at + size]
        at += size + -size % 4


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number, without its flags, and the content of each attribute."""
    at = 0
    while at + 4 <= len(data):
        size, kind = unpack_from("=HH", data, at)
        if size < 4:
            return
        yield kind & 0x3FFF, data[at + 4 : at + size]
        at += size + -size % 4


def reason(fd: int) -> str:
    """Read the ack of a refused message, and return the kernel's text in it, or an empty string.

    Args:
        fd: a netlink socket with an ack in its queue.
    """
    try:
        data = os.read(fd, _LARGEST)
    except OSError:
        return ""
    return words(data)


def words(ack: bytes) -> str:
    """Return the kernel's text in an ack. Source: netlink(7), NETLINK_EXT_ACK."""
    if len(ack) < _HEADER + 20:
        return ""
    _, kind, flags, _, _, _, inner = unpack_from("=IHHIIiI", ack)
    if kind != _ERROR or not flags & _HAS_TEXT:
        return ""
    start = _HEADER + 4 + (16 if flags & _CAPPED else inner + -inner % 4)
    for number, content in attributes(ack[start:]):
        if number == _TEXT:
            return content.rstrip(b"\0").decode(errors="replace")
    return ""
