"""The part of D-Bus that is needed to ask systemd for a scope: a codec and a blocking connection over a Unix socket.

Source: the D-Bus specification, "Type System", "Message Protocol" and "Authentication Protocol".
"""

from __future__ import annotations

import os
import socket
import struct
import time
from errno import EACCES, ECONNRESET, EIO, ETIMEDOUT
from typing import Any, Final, NamedTuple

from containerkit.descriptors import Closing
from containerkit.errors import SetupError

__all__ = ["Connection", "Message", "decode", "encode"]

_NUMBERS: Final = {"y": "B", "b": "I", "n": "h", "q": "H", "i": "i", "u": "I", "x": "q", "t": "Q", "d": "d"}
_ALIGNMENT: Final = {
    **{code: struct.calcsize("=" + form) for code, form in _NUMBERS.items()},
    "s": 4,
    "o": 4,
    "g": 1,
    "v": 1,
    "a": 4,
    "(": 8,
    "{": 8,
}
_LARGEST: Final = 1 << 20
CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
_FIELDS: Final = {1: "path", 2: "interface", 3: "member", 4: "error", 5: "answers", 6: "destination", 8: "signature"}


def _first(signature: str) -> str:
    """Return the first complete type of a signature."""
    code = signature[:1]
    if code == "a":
        return "a" + _first(signature[1:])
    if code not in {"(", "{"}:
        if code not in _ALIGNMENT:
            raise ValueError(f"{signature!r} is not a D-Bus signature")
        return code
    depth = 0
    for index, letter in enumerate(signature):
        depth += (letter in "({") - (letter in ")}")
        if depth == 0:
            return signature[: index + 1]
    raise ValueError(f"{signature!r} is not a D-Bus signature")


def _types(signature: str) -> list[str]:
    found = []
    while signature:
        found.append(_first(signature))
        signature = signature[len(found[-1]) :]
    return found


def encode(signature: str, values: tuple[Any, ...] | list[Any], start: int = 0) -> bytes:
    """Return values encoded for D-Bus, little-endian.

    Args:
        signature: the types. A variant is a pair of signature and value.
        values: one value for each type.
        start: the offset of the first byte in the message, which decides the alignment.
    """
    out = bytearray()
    for code, value in zip(_types(signature), values, strict=True):
        _put(out, start, code, value)
    return bytes(out)


def _pad(out: bytearray, start: int, alignment: int) -> None:
    out += bytes(-(start + len(out)) % alignment)


def _put(out: bytearray, start: int, code: str, value: Any) -> None:
    _pad(out, start, _ALIGNMENT[code[0]])
    if code in _NUMBERS:
        out += struct.pack("<" + _NUMBERS[code], value)
    elif code in {"s", "o", "g"}:
        text = value.encode()
        out += struct.pack("<B" if code == "g" else "<I", len(text)) + text + b"\0"
    elif code == "v":
        _put(out, start, "g", value[0])
        _put(out, start, value[0], value[1])
    elif code[0] == "a":
        out += bytes(4)
        at = len(out)
        _pad(out, start, _ALIGNMENT[code[1]])
        first = len(out)
        for item in value:
            _put(out, start, code[1:], item)
        struct.pack_into("<I", out, at - 4, len(out) - first)
    else:
        for inner, item in zip(_types(code[1:-1]), value, strict=True):
            _put(out, start, inner, item)


def decode(signature: str, data: bytes, start: int = 0) -> tuple[list[Any], int]:
    """Decode the values that start at an offset. Return them and the offset after them.

    Raises:
        ValueError: the data is too short or malformed.
    """
    values = []
    position = start
    try:
        for code in _types(signature):
            value, position = _get(data, position, code)
            values.append(value)
    except (struct.error, IndexError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"malformed D-Bus message: {error}") from None
    return values, position


def _get(data: bytes, position: int, code: str) -> tuple[Any, int]:
    position += -position % _ALIGNMENT[code[0]]
    if code in _NUMBERS:
        form = "<" + _NUMBERS[code]
        return struct.unpack_from(form, data, position)[0], position + struct.calcsize(form)
    if code in {"s", "o", "g"}:
        length, head = (data[position], 1) if code == "g" else (struct.unpack_from("<I", data, position)[0], 4)
        end = position + head + length
        if end >= len(data):
            raise ValueError("malformed D-Bus message: a string extends past the end")
        return data[position + head : end].decode(), end + 1
    if code == "v":
        inner, position = _get(data, position, "g")
        return _get(data, position, _first(inner))
    if code[0] == "a":
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        position += -position % _ALIGNMENT[code[1]]
        end, items = position + length, []
        if end > len(data):
            raise ValueError("malformed D-Bus message: an array extends past the end")
        while position < end:
            item, position = _get(data, position, code[1:])
            items.append(item)
        return items, position
    inner_values, position = decode(code[1:-1], data, position)
    return tuple(inner_values), position


class Message(NamedTuple):
    """A received message: its kind, its header fields by name, and its values."""

    kind: int
    fields: dict[str, Any]
    values: list[Any]


class Connection(Closing):
    """A connection to a message bus, or to a single peer that speaks D-Bus. It owns its socket."""

    __slots__ = ("_address", "_deadline", "_serial", "_socket")

    def __init__(self, address: str, *, bus: bool, timeout_s: float = 10.0) -> None:
        """Connect, and authenticate with the credentials of the socket.

        Args:
            address: the path of the socket.
            bus: whether it is a message bus, which expects a greeting.
            timeout_s: for the whole connection, in seconds.

        Raises:
            OSError: nobody listens there, or the peer rejects this user.
        """
        self._address = address
        self._serial = 0
        self._deadline = time.monotonic() + timeout_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(address)
            self._authenticate()
            if bus:
                self.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "Hello")
        except BaseException:
            self._socket.close()
            raise

    def _authenticate(self) -> None:
        identity = str(os.geteuid()).encode().hex().encode()
        self._socket.sendall(b"\0AUTH EXTERNAL " + identity + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n") and len(answer) < 512:
            answer += self._socket.recv(1) or b"\r\n"
        if not answer.startswith(b"OK "):
            raise PermissionError(EACCES, os.strerror(EACCES), self._address)
        self._socket.sendall(b"BEGIN\r\n")

    def __repr__(self) -> str:
        return f"<Connection {self._address} {'closed' if self._socket.fileno() < 0 else 'open'}>"

    def call(
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        values: tuple[Any, ...] = (),
    ) -> list[Any]:
        """Call a method and return the values of its reply.

        Raises:
            SetupError: the reply is an error. Its text is the hint.
            OSError: the connection broke, or the timeout expired.
        """
        self._serial += 1
        serial = self._serial
        fields = [(1, ("o", path)), (2, ("s", interface)), (3, ("s", member)), (6, ("s", destination))]
        if signature:
            fields.append((8, ("g", signature)))
        body = encode(signature, values)
        head = encode("yyyyuua(yv)", (ord("l"), CALL, 0, 1, len(body), serial, fields))
        self._socket.sendall(head + bytes(-len(head) % 8) + body)
        while True:
            message = self.receive()
            if message.fields.get("answers") != serial:
                continue
            if message.kind == ERROR:
                text = str(message.values[0]) if message.values else ""
                raise SetupError(member, EIO, destination, f"{message.fields.get('error')}: {text}")
            return message.values

    def receive(self) -> Message:
        """Return the next message.

        Raises:
            OSError: the connection broke, or the timeout expired.
            ValueError: the received bytes are not a valid message.
        """
        head = self._exactly(16)
        if head[:1] != b"l":
            raise ValueError("malformed D-Bus message: not little-endian")
        length, _, fields_length = struct.unpack_from("<III", head, 4)
        padded = fields_length + -fields_length % 8
        if length > _LARGEST or padded > _LARGEST:
            raise ValueError("malformed D-Bus message: too long")
        rest = self._exactly(padded + length)
        (pairs,), _ = decode("a(yv)", head + rest[:padded], 12)
        fields = {_FIELDS[code]: value for code, value in pairs if code in _FIELDS}
        values, _ = decode(fields.get("signature", ""), rest[padded:])
        return Message(head[1], fields, values)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(ETIMEDOUT, os.strerror(ETIMEDOUT), self._address)
            self._socket.settimeout(left)
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError(ECONNRESET, os.strerror(ECONNRESET), self._address)
            data += chunk
        return data

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._socket.close()
