"""Expressions of nf_tables, the parts of rules, as bytes.

A rule loads fields of the packet into registers of 32 bits, compares them or looks them up, and ends with a verdict.

Source: linux/netfilter/nf_tables.h, nft_expr_attributes and below.
"""

from __future__ import annotations

import struct
from typing import Final

from containerkit.network.nfnetlink import attribute, nested, text, u32, value, verdict

__all__ = ["compare", "conntrack", "end_with", "local", "log", "lookup", "masquerade", "meta", "payload", "reject"]

# Where a payload's offset counts from.
LINK: Final = 0
NETWORK: Final = 1
TRANSPORT: Final = 2

# Keys of meta.
PROTOCOL: Final = 1
IIF: Final = 4
IIFNAME: Final = 6
OIFNAME: Final = 7
NFPROTO: Final = 15
L4PROTO: Final = 16

EQUAL: Final = 0
UNEQUAL: Final = 1

ESTABLISHED: Final = 2  # NF_CT_STATE_BIT
RELATED: Final = 4
INVALID: Final = 1
NEW: Final = 8
STATUS_DNAT: Final = 0x20  # IPS_DST_NAT

_FIRST: Final = 8  # NFT_REG32_00
_VERDICT: Final = 0  # NFT_REG_VERDICT


def _expression(name: str, *data: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *data))


def meta(what: int, register: int = 0) -> bytes:
    """Load metadata of a packet, such as ``IIFNAME``; ``register`` counts 32-bit registers from 0."""
    return _expression("meta", u32(1, _FIRST + register), u32(2, what))


def payload(base: int, offset: int, length: int, register: int = 0) -> bytes:
    """Load bytes of the packet."""
    return _expression("payload", u32(1, _FIRST + register), u32(2, base), u32(3, offset), u32(4, length))


def compare(data: bytes, register: int = 0, operator: int = EQUAL) -> bytes:
    """Continue with the rule if a register equals (or does not equal) some bytes."""
    return _expression("cmp", u32(1, _FIRST + register), u32(2, operator), nested(3, attribute(1, data)))


def mask(bits: bytes, register: int = 0) -> bytes:
    """Keep only these bits of a register."""
    place = u32(1, _FIRST + register) + u32(2, _FIRST + register) + u32(3, len(bits))
    return _expression("bitwise", place, nested(4, attribute(1, bits)), nested(5, attribute(1, bytes(len(bits)))))


def constant(data: bytes, register: int = 0) -> bytes:
    """Load constant bytes."""
    return _expression("immediate", u32(1, _FIRST + register), nested(2, value(data)))


def end_with(code: int, to: str = "") -> bytes:
    """End the rule with a verdict, such as ``ACCEPT`` or ``JUMP`` to a chain."""
    return _expression("immediate", u32(1, _VERDICT), nested(2, verdict(code, to)))


def lookup(name: str, register: int = 0, *, inverted: bool = False, into: int | None = None) -> bytes:
    """Continue if the key that begins at a register is (or is not) in a set.

    Args:
        name: the set, which must exist in the same table.
        register: where the key begins.
        inverted: continue if the key is not in the set.
        into: for a map, the register for the data, or -1 to use it as a verdict.
    """
    data = text(1, name) + u32(2, _FIRST + register)
    if into is not None:
        data += u32(3, _VERDICT if into < 0 else _FIRST + into)
    if inverted:
        data += u32(5, 1)
    return _expression("lookup", data)


def conntrack(bits: int, key: int = 0, *, absent: bool = False) -> bytes:
    """Continue if the connection's state (key 0) or status (key 2) has these bits (with ``absent``: none of them)."""
    loaded = _expression("ct", u32(1, _FIRST), u32(2, key))
    return loaded + mask(struct.pack("=I", bits)) + compare(bytes(4), operator=EQUAL if absent else UNEQUAL)


def local() -> bytes:
    """Continue if the destination is an address of this namespace: ``fib daddr type local``."""
    loaded = _expression("fib", u32(1, _FIRST), u32(2, 3), u32(3, 1 << 1))
    return loaded + compare(struct.pack("=I", 2))  # RTN_LOCAL


def log(group: int, prefix: str) -> bytes:
    """Send the start of the packet to the listener of a log group of this namespace.

    It is not an error if nobody listens.
    """
    return _expression("log", attribute(1, struct.pack(">H", group)), text(2, prefix), u32(3, 128))


def limit(rate: int, burst: int) -> bytes:
    """Continue at most ``rate`` times per second."""
    return _expression(
        "limit",
        attribute(1, struct.pack(">Q", rate)),
        attribute(2, struct.pack(">Q", 1)),
        u32(3, burst),
        u32(4, 0),
    )


def at_most(name: str, rate: int, burst: int, timeout_s: int) -> bytes:
    """Continue if the key that begins at register 0 occurred more than ``rate`` times per second.

    Args:
        name: a set with ``TIMEOUT`` and ``EVAL``, which counts each key separately.
        rate: times per second.
        burst: how many more are accepted initially.
        timeout_s: the seconds after which an unused key is deleted.
    """
    counted = (
        attribute(1, struct.pack(">Q", rate)),
        attribute(2, struct.pack(">Q", 1)),
        u32(3, burst),
        u32(4, 0),
        u32(5, 1),  # NFT_LIMIT_F_INV: over it
    )
    expression = nested(7, text(1, "limit"), nested(2, *counted))
    forgotten = attribute(6, struct.pack(">Q", timeout_s * 1000))
    return _expression("dynset", text(1, name), u32(3, 1), u32(4, _FIRST), forgotten, expression)


def open_over(name: str, most: int) -> bytes:
    """Continue if the key that begins at register 0 has more than ``most`` open connections, including this one.

    Closed connections that the kernel still remembers do not count.

    Args:
        name: a set with ``EVAL``, which counts each key separately. The kernel removes keys without connections.
        most: the number of connections.
    """
    expression = nested(7, text(1, "connlimit"), nested(2, u32(1, most), u32(2, 1)))  # NFT_CONNLIMIT_F_INV: over it
    return _expression("dynset", text(1, name), u32(3, 0), u32(4, _FIRST), expression)


def untracked() -> bytes:
    """Exclude the packet from connection tracking."""
    return nested(1, text(1, "notrack"))


def masquerade() -> bytes:
    """Masquerade: give the packet the address of its outgoing interface."""
    return _expression("masq")


def destination(family: int, address: int, port: int) -> bytes:
    """Redirect the connection to the address and the port in two registers.

    Args:
        family: ``IPV4`` or ``IPV6``.
        address: the register of the address.
        port: the register of the port.
    """
    return _expression(
        "nat",
        u32(1, 1),
        u32(2, family),
        u32(3, _FIRST + address),
        u32(4, _FIRST + address),
        u32(5, _FIRST + port),
        u32(6, _FIRST + port),
    )


def reject() -> bytes:
    """Reject the packet as "administratively prohibited", for IPv4 and IPv6."""
    return _expression("reject", u32(1, 2), attribute(2, bytes((3,))))
