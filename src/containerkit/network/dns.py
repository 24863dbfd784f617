"""Messages of the domain name system that a resolver reads and writes. Pure functions.

All input comes from a container or from the network, so lengths are checked, and pointers may only point backwards.
Source: RFC 1035, section 4; RFC 6891.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AAAA", "PTR", "A", "Question", "Record", "answer", "ask", "failure", "question", "records", "reverse"]

A: Final = 1
AAAA: Final = 28
PTR: Final = 12
OPT: Final = 41
IN: Final = 1
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NO_NAME, NOT_IMPLEMENTED, REFUSED = range(6)

_LARGEST_NAME: Final = 255
_OURS: Final = 1232  # the maximum bytes of an answer that no network fragments


class Question(NamedTuple):
    """The question of a client.

    Attributes:
        number: the id, which the answer must have.
        flags: the flags of the header.
        name: in lower case, without the last dot.
        kind: the type of record, such as ``A``.
        raw: the question as it was sent. Answers repeat it, including capitals.
        size: the largest answer by UDP, in bytes.
        extended: whether the client uses EDNS.
    """

    number: int
    flags: int
    name: str
    kind: int
    raw: bytes
    size: int
    extended: bool


class Record(NamedTuple):
    """An address in an answer.

    Attributes:
        address: the address as text.
        ttl_s: how long it is valid, in seconds.
    """

    address: str
    ttl_s: int


def _name(data: bytes, at: int) -> tuple[bytes, int]:
    """Return a name, with its labels joined by dots, and the offset of its end."""
    labels: list[bytes] = []
    end, length, last = 0, 0, len(data)
    while True:
        size = data[at]
        if size >= 0xC0:
            target = (size & 0x3F) << 8 | data[at + 1]
            end = end or at + 2
            if target >= min(at, last):
                raise ValueError("dns: a name has a pointer that does not point backwards")
            at = last = target
            continue
        if size > 63:
            raise ValueError("dns: a name has a label of an unknown kind")
        at += 1
        if not size:
            return b".".join(labels), end or at
        label = data[at : at + size]
        length += size + 1
        if len(label) != size or length > _LARGEST_NAME or b"." in label:
            raise ValueError("dns: a name is too long or has an invalid label")
        labels.append(label)
        at += size


def question(data: bytes) -> Question:
    """Parse the question of a client.

    Raises:
        ValueError: it is not a message with exactly one question.
    """
    try:
        number, flags, count, answers, authorities, more = struct.unpack_from(">6H", data)
        if flags & 0xF800 or count != 1 or answers or authorities or more > 1:
            raise ValueError("not one question")
        name, at = _name(data, 12)
        kind, of = struct.unpack_from(">HH", data, at)
        if of != IN:
            raise ValueError("dns: the class is not IN")
        at += 4
        size, extended = 512, False
        if more and data[at] == 0 and struct.unpack_from(">H", data, at + 1)[0] == OPT:
            size, extended = max(512, struct.unpack_from(">H", data, at + 3)[0]), True
    except (IndexError, struct.error) as error:
        raise ValueError("cut off") from error
    return Question(number, flags, name.decode("latin-1").lower(), kind, data[12:at], min(size, _OURS), extended)


def ask(asked: Question, number: int) -> bytes:
    """Return a question for a server. It contains only the name and the type from the client's message."""
    extra = struct.pack(">BHHIH", 0, OPT, _OURS, 0, 0) if asked.extended else b""
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 1 if extra else 0) + asked.raw + extra


def _header(asked: Question, code: int, answers: int) -> bytes:
    # An answer, with recursion available, and with the client's "recursion desired".
    return struct.pack(">6H", asked.number, 0x8080 | asked.flags & 0x0100 | code, 1, answers, 0, 0)


def answer(asked: Question, addresses: Iterable[str], ttl_s: int = 0) -> bytes:
    """Return an answer with the addresses of the requested type. Without any it is empty, but not an error.

    For ``PTR`` pass names instead.
    """
    made = []
    for each in addresses:
        if asked.kind == PTR:
            data = b"".join(bytes((len(label),)) + label for label in each.encode().split(b".")) + b"\0"
        else:
            data = ip_address(each).packed
            if (A if len(data) == 4 else AAAA) != asked.kind:
                continue
        made.append(struct.pack(">HHHIH", 0xC00C, asked.kind, IN, ttl_s, len(data)) + data)
    return _header(asked, NO_ERROR, len(made)) + asked.raw + b"".join(made)


def failure(asked: Question, code: int) -> bytes:
    """Return an answer that is an error, such as ``REFUSED``."""
    return _header(asked, code, 0) + asked.raw


def truncated(asked: Question) -> bytes:
    """Return an answer that makes the client ask again by TCP."""
    made = bytearray(_header(asked, NO_ERROR, 0) + asked.raw)
    made[2] |= 0x02
    return bytes(made)


def answers(data: bytes, number: int, asked: Question) -> bool:
    """Return whether a server's message answers a question."""
    try:
        found, flags, count = struct.unpack_from(">3H", data)
        if found != number or not flags & 0x8000 or count != 1:
            return False
        name, at = _name(data, 12)
        same = name.decode("latin-1").lower() == asked.name
        return same and struct.unpack_from(">HH", data, at) == (asked.kind, IN)
    except (IndexError, struct.error, ValueError):
        return False


def is_truncated(data: bytes) -> bool:
    """Return whether a server's answer was too long for UDP."""
    return bool(data[2] & 0x02)


def records(data: bytes) -> list[Record]:
    """Return the addresses of a server's answer.

    Raises:
        ValueError: it is malformed.
    """
    found = []
    try:
        count = struct.unpack_from(">H", data, 6)[0]
        _, at = _name(data, 12)
        at += 4
        for _ in range(count):
            _, at = _name(data, at)
            kind, of, ttl, length = struct.unpack_from(">HHIH", data, at)
            at += 10
            value = data[at : at + length]
            at += length
            if of == IN and (kind, length) in ((A, 4), (AAAA, 16)) and len(value) == length:
                found.append(Record(str(ip_address(value)), ttl))
            elif at > len(data):
                raise ValueError("cut off")
    except (IndexError, struct.error) as error:
        raise ValueError("cut off") from error
    return found


def reverse(address: str) -> str:
    """Return the name of the PTR record of an address."""
    return ip_address(address).reverse_pointer
