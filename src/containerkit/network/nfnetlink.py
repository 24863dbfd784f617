"""Messages of nf_tables as bytes, and the socket that sends them. No program or library is needed for rules.

Everything except the socket is pure. A batch is one transaction of the kernel: either all of it takes effect, or
nothing.

Source: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from errno import EEXIST, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit.descriptors import Closing
from containerkit.errors import SetupError, StateError, UnsupportedError
from containerkit.network.forked import closed_in_children
from containerkit.plan.netlink import attribute, words

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "Element",
    "Hook",
    "Message",
    "Nfnetlink",
    "Set",
    "attribute",
    "chain",
    "elements",
    "nested",
    "rule",
    "table",
]

# Families: linux/netfilter.h.
INET: Final = 1
IPV4: Final = 2
BRIDGE: Final = 7
IPV6: Final = 10

# Hooks: of the internet families, and of bridges (the same numbers).
PREROUTING: Final = 0
INPUT: Final = 1
FORWARD: Final = 2
OUTPUT: Final = 3
POSTROUTING: Final = 4

DROP: Final = 0
ACCEPT: Final = 1
JUMP: Final = -3
GOTO: Final = -4
RETURN: Final = -5

# Flags of sets.
INTERVAL: Final = 0x4
MAP: Final = 0x8
TIMEOUT: Final = 0x10
EVAL: Final = 0x20
CONCAT: Final = 0x80

VERDICT: Final = 0xFFFFFF00  # the data type of a map that gives a verdict

_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWELEM, _DELELEM = 0, 2, 3, 6, 9, 12, 14
_NAMES: Final = {
    _NEWTABLE: "new table",
    _DELTABLE: "delete table",
    _NEWCHAIN: "new chain",
    _NEWRULE: "new rule",
    _NEWSET: "new set",
    _NEWELEM: "new element",
    _DELELEM: "delete element",
}
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END
_REQUEST, _CREATE, _APPEND, _EXCL = 0x1, 0x400, 0x800, 0x200
_NESTED: Final = 0x8000
_TABLE_OWNER: Final = 0x2
_SOL_NETLINK, _EXT_ACK = 270, 11
_NETLINK_NETFILTER: Final = 12
_MOST_IN_A_BATCH: Final = 2000  # messages: a batch must fit into the socket buffer of an unprivileged user


class Message(NamedTuple):
    """One message of a batch, without its header.

    Attributes:
        kind: the number of the message.
        flags: the flags in the netlink header.
        family: the family of the table.
        body: the attributes.
        target: its subject, for errors.
    """

    kind: int
    flags: int
    family: int
    body: bytes
    target: str

    @property
    def operation(self) -> str:
        """Its name in errors."""
        return f"nft {_NAMES[self.kind]}"


class Hook(NamedTuple):
    """The hook of a base chain.

    Attributes:
        kind: ``"filter"`` or ``"nat"``.
        number: the number of the hook.
        priority: lower is earlier.
        policy: the verdict at the end of the chain.
    """

    kind: str
    number: int
    priority: int
    policy: int = ACCEPT


class Set(NamedTuple):
    """A set or a map of a table.

    Attributes:
        name: the name of the set.
        fields: the length in bytes of each field of the key.
        types: nft's number of the type of each field. The kernel ignores them, but ``nft list`` needs them.
        flags: such as ``INTERVAL``.
        data: for a map, the type and length of the data.
    """

    name: str
    fields: tuple[int, ...]
    types: tuple[int, ...]
    flags: int = 0
    data: tuple[int, int] | None = None


class Element(NamedTuple):
    """An element of a set.

    Attributes:
        key: the padded key, see :func:`key`.
        end: the end of an interval, for keys of several fields. With a single field the end is an element of its own.
        data: its value in a map.
        timeout_s: the seconds after which it is removed, or 0 for never.
        is_end: whether this element is the end of an interval of a single field.
    """

    key: bytes
    end: bytes = b""
    data: bytes = b""
    timeout_s: float = 0
    is_end: bool = False


# --- Attributes


def nested(number: int, *parts: bytes) -> bytes:
    """Return an attribute that contains others."""
    return attribute(number | _NESTED, b"".join(parts))


def u32(number: int, value: int) -> bytes:
    """Return an attribute with a number; those of nf_tables are in network order."""
    return attribute(number, struct.pack(">i" if value < 0 else ">I", value))


def u64(number: int, value: int) -> bytes:
    """Return an attribute with a number of 64 bits."""
    return attribute(number, struct.pack(">Q", value))


def text(number: int, value: str) -> bytes:
    """Return an attribute with a string."""
    return attribute(number, value.encode() + b"\0")


def key(*fields: bytes) -> bytes:
    """Return a key of several fields: each begins at a register of 32 bits."""
    return b"".join(field + bytes(-len(field) % 4) for field in fields)


# --- Messages


def table(family: int, name: str, *, owned: bool = True) -> Message:
    """Make a table.

    Args:
        family: such as ``INET``.
        name: the name of the table.
        owned: whether only the socket may change or flush the table. It is then deleted with the socket.
    """
    flags = u32(2, _TABLE_OWNER) if owned else b""
    return Message(_NEWTABLE, _CREATE | _EXCL, family, text(1, name) + flags, name)


def delete_table(family: int, name: str) -> Message:
    """Delete a table with its content."""
    return Message(_DELTABLE, 0, family, text(1, name), name)


def chain(family: int, of: str, name: str, hook: Hook | None = None) -> Message:
    """Make a chain. With a hook it is a base chain."""
    body = text(1, of) + text(3, name)
    if hook is not None:
        place = nested(4, u32(1, hook.number), u32(2, hook.priority))
        body += place + u32(5, hook.policy) + text(7, hook.kind)
    return Message(_NEWCHAIN, _CREATE | _EXCL, family, body, f"{of} {name}")


def rule(family: int, of: str, name: str, *expressions: bytes) -> Message:
    """Append a rule to a chain."""
    body = text(1, of) + text(2, name) + nested(4, *expressions)
    return Message(_NEWRULE, _CREATE | _APPEND, family, body, f"{of} {name}")


def new_set(family: int, of: str, made: Set, number: int) -> Message:
    """Make a set. ``number`` must be unique within the batch."""
    several = len(made.fields) > 1
    width = sum(length + -length % 4 for length in made.fields) if several else made.fields[0]
    kind = 0
    for each in made.types:
        kind = kind << 6 | each
    body = text(1, of) + text(2, made.name) + u32(4, kind) + u32(5, width) + u32(10, number)
    flags = made.flags
    if several:
        flags |= CONCAT
        body += nested(9, nested(2, b"".join(nested(1, u32(1, length)) for length in made.fields)))
    if made.data is not None:
        flags |= MAP
        body += u32(6, made.data[0])
        if made.data[0] != VERDICT:
            body += u32(7, made.data[1])
    return Message(_NEWSET, _CREATE | _EXCL, family, body + u32(3, flags), f"{of} {made.name}")


def _element(element: Element) -> bytes:
    body = nested(1, attribute(1, element.key))
    if element.end:
        body += nested(10, attribute(1, element.end))
    if element.data:
        body += nested(2, element.data)
    if element.timeout_s:
        body += u64(4, int(element.timeout_s * 1000))
    if element.is_end:
        body += u32(3, 1)
    return nested(1, body)


def elements(
    family: int, of: str, name: str, wanted: Sequence[Element], *, delete: bool = False, exclusive: bool = False
) -> list[Message]:
    """Add elements to a set, or delete them. A message has at most 64 KiB, so there is one for every 300 elements.

    Args:
        family: the family of the table.
        of: the name of the table.
        name: the set.
        wanted: the elements. Adding an existing one is not an error. It keeps its timeout and its data.
        delete: delete them. A missing one is an error.
        exclusive: make adding an existing one an error.
    """
    kind, flags = (_DELELEM, 0) if delete else (_NEWELEM, _CREATE | (_EXCL if exclusive else 0))
    start = text(1, of) + text(2, name)
    return [
        Message(kind, flags, family, start + nested(3, *map(_element, wanted[at : at + 300])), f"{of} {name}")
        for at in range(0, len(wanted), 300)
    ]


def value(data: bytes) -> bytes:
    """Return the data of an element for a value."""
    return attribute(1, data)


def verdict(code: int, to: str = "") -> bytes:
    """Return the data of an element, or of :func:`immediate`, for a verdict."""
    return nested(2, u32(1, code) + (text(2, to) if to else b""))


def encode(messages: Sequence[Message], sequence: int) -> bytes:
    """Return a batch as bytes; message *i* has the number ``sequence + 1 + i``."""
    return b"".join(
        (
            _framed(_BEGIN, _REQUEST, 0, struct.pack(">H", _SUBSYSTEM), b"", sequence),
            *(
                _framed(_SUBSYSTEM << 8 | each.kind, _REQUEST | each.flags, each.family, b"\0\0", each.body, number)
                for number, each in enumerate(messages, sequence + 1)
            ),
            _framed(_END, _REQUEST, 0, struct.pack(">H", _SUBSYSTEM), b"", sequence + 1 + len(messages)),
        )
    )


def _framed(kind: int, flags: int, family: int, resource: bytes, body: bytes, sequence: int) -> bytes:
    length = 20 + len(body)
    return struct.pack("=IHHII", length, kind, flags, sequence, 0) + bytes((family, 0)) + resource + body


# --- The socket


class Nfnetlink(Closing):
    """A socket to nf_tables of one network namespace. It owns the tables made through it, which are deleted with it.

    Any thread may use it. Batches wait for each other.

    Args:
        opened: a raw ``NETLINK_NETFILTER`` socket of the namespace, which this object then owns. Default: one of the
            calling thread's namespace.

    Raises:
        UnsupportedError: this kernel has no nf_tables.
    """

    def __init__(self, opened: socket.socket | None = None) -> None:
        self._lock = threading.Lock()
        self._sequence = 0
        try:
            found = opened or socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
            self._socket = closed_in_children(found)
        except OSError as error:
            hint = "it needs a kernel with NETFILTER_NETLINK and NF_TABLES"
            raise UnsupportedError("socket", error.errno or 0, "netlink netfilter", hint) from None
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
        except OSError:
            self._socket.close()
            raise

    def batch(self, messages: Iterable[Message]) -> None:
        """Send messages as one transaction, and wait for the result.

        More than 2,000 messages are sent as several transactions.

        Raises:
            SetupError: the kernel refused a message, which the error names. Nothing of its transaction took effect.
            UnsupportedError: the kernel has no such table, expression or flag.
            StateError: the socket was closed.
        """
        wanted = list(messages)
        for start in range(0, len(wanted), _MOST_IN_A_BATCH):
            self._one(wanted[start : start + _MOST_IN_A_BATCH])

    def _one(self, messages: Sequence[Message]) -> None:
        with self._lock:
            if self._socket.fileno() < 0:
                raise StateError(f"{messages[0].operation} {messages[0].target}: the socket was closed")
            first = self._sequence
            self._sequence = (first + len(messages) + 2) & 0x7FFFFFFF
            try:
                self._socket.send(encode(messages, first))
                failed = self._answers()
            except OSError as error:
                raise SetupError(messages[0].operation, error.errno or 0, messages[0].target) from None
        if failed is not None:
            number, sequence, said = failed
            index = sequence - first - 1
            refused = messages[index] if 0 <= index < len(messages) else messages[0]
            raise _refusal(refused, number, said)

    def forget(self, address: str) -> None:
        """Forget the connections of an address, so that its next packets are treated as new.

        A kernel before 6.11 forgets those of all addresses of the namespace. Connections that are still allowed
        continue.

        Args:
            address: the source or destination of the connections.
        """
        parsed = ipaddress.ip_address(address)
        family, numbers = (IPV4, (1, 2)) if parsed.version == 4 else (IPV6, (3, 4))
        for flag, number in enumerate(numbers, 1):  # 1 is CTA_FILTER_F_CTA_IP_SRC, 2 is ..._DST
            tuple_ = nested(1, nested(1, attribute(number, parsed.packed)))
            if not self._delete_connections(family, tuple_ + nested(25, attribute(1, struct.pack("=I", flag)))):
                self._delete_connections(0, b"")
                return

    def _delete_connections(self, family: int, body: bytes) -> bool:
        """Return False if this kernel does not know the filter."""
        with self._lock:
            self._sequence = (self._sequence + 1) & 0x7FFFFFFF
            # In version 1 of the message the family is used.
            header = struct.pack("=IHHII", 20 + len(body), 1 << 8 | 2, _REQUEST | 0x4, self._sequence, 0)
            try:
                self._socket.send(header + bytes((family, 1, 0, 0)) + body)
                failed = self._answers()
            except OSError as error:
                raise SetupError("conntrack delete", error.errno or 0, "netlink") from None
        if failed is None or failed[0] == ENOENT:
            return True
        if body and failed[0] in (EOPNOTSUPP, EINVAL):
            return False
        raise SetupError("conntrack delete", failed[0], "connections", failed[2])

    def _answers(self) -> tuple[int, int, str] | None:
        """Return the errno, the number and the kernel's text of the first refused message.

        A batch has been executed when ``send`` returns. No answer means success.
        """
        first: tuple[int, int, str] | None = None
        while True:
            try:
                data = self._socket.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return first
            while len(data) >= 20:
                length, kind, _, sequence = struct.unpack_from("=IHHI", data)
                number = -struct.unpack_from("=i", data, 16)[0] if kind == 2 else 0
                if number and first is None:
                    first = number, sequence, words(data[:length])
                data = data[length + -length % 4 :]

    def close(self) -> None:
        """Close the socket, which deletes its tables. May be called twice."""
        with self._lock:
            self._socket.close()

    def __repr__(self) -> str:
        return f"<Nfnetlink {'closed' if self._socket.fileno() < 0 else 'open'}>"


def _refusal(message: Message, number: int, said: str) -> SetupError:
    if message.kind == _NEWTABLE and number in (EINVAL, EOPNOTSUPP):
        hint = "a table with an owner needs Linux 5.12 with NF_TABLES"
        return UnsupportedError(message.operation, number, message.target, hint)
    if number == EOPNOTSUPP:
        hint = said or "the kernel was built without it (see CONFIG_NFT_*)"
        return UnsupportedError(message.operation, number, message.target, hint)
    hint = {
        EPERM: "it needs CAP_NET_ADMIN over the network namespace, and this socket must own the table",
        ENOENT: "an object in it does not exist, or the kernel does not have an expression (see CONFIG_NFT_*)",
        EEXIST: "it already exists",
    }.get(number, "")
    return SetupError(message.operation, number, message.target, f"{hint}: {said}" if hint and said else hint or said)
