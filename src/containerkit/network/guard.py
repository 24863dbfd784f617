"""The guard of a router's bridges: only frames with the port's own MAC and addresses pass from a port.

It filters the frames that containers send, before all other rules. It drops spoofed sources, answers for addresses of
others (ARP, neighbour advertisements), router advertisements, redirects, errors about packets to others, DHCP answers,
multicast queries, and all frames that are neither ARP nor IP.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from containerkit.network import expressions as e
from containerkit.network import nfnetlink as nft
from containerkit.network.nfnetlink import Element, Hook, Message, Set
from containerkit.network.parsed import ip_address

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GROUP", "NAME", "elements", "ifname", "link_local", "logged", "packed", "table"]

NAME: Final = "containerkit"
GROUP: Final = 1  # the log group of refused packets, in the router's namespace

_ADDRESS: Final = {4: 7, 6: 8}  # nft's types: ipv4_addr, ipv6_addr
_MAC, _ETHERTYPE, _IFNAME = 9, 10, 41
_ERRORS: Final = (3, 4, 11, 12)
"""The errors of ICMP: unreachable, source quench, time exceeded, parameter problem. In ICMPv6 they are below 128."""


def ifname(name: str) -> bytes:
    """Return an interface's name as the kernel compares it."""
    return name.encode().ljust(16, b"\0")


def packed(address: str) -> tuple[int, bytes]:
    """Return the version and the bytes of an address."""
    parsed = ip_address(address)
    return parsed.version, parsed.packed


def logged(prefix: str) -> bytes:
    """Log at a limited rate, so that a flood of refused packets does not become a flood of events."""
    return e.limit(50, 100) + e.log(GROUP, prefix)


def table() -> list[Message]:
    """Return the messages that make the table, with nothing allowed yet."""
    family = nft.BRIDGE
    sets = [
        Set("macs", (16, 6), (_IFNAME, _MAC)),
        Set("arps", (16, 6, 4), (_IFNAME, _MAC, _ADDRESS[4])),
        Set("sources4", (16, 4), (_IFNAME, _ADDRESS[4])),
        Set("sources6", (16, 16), (_IFNAME, _ADDRESS[6])),
        Set("kinds", (2,), (_ETHERTYPE,), nft.MAP, (nft.VERDICT, 0)),
    ]
    made = [nft.table(family, NAME)]
    made += [nft.new_set(family, NAME, each, number) for number, each in enumerate(sets, 1)]
    made += [nft.chain(family, NAME, name) for name in ("spoofed", "arp", "icmp", "ip", "ip6")]
    made.append(nft.chain(family, NAME, "prerouting", Hook("filter", nft.PREROUTING, -300, nft.DROP)))
    kinds = ((0x0806, "arp"), (0x0800, "ip"), (0x86DD, "ip6"))
    jumps = [Element(struct.pack(">H", number), data=nft.verdict(nft.GOTO, name)) for number, name in kinds]
    made += nft.elements(family, NAME, "kinds", jumps)
    port = e.meta(e.IIFNAME)
    chains = {
        "prerouting": [
            port + e.payload(e.LINK, 6, 6, 4) + e.lookup("macs", inverted=True) + e.end_with(nft.GOTO, "spoofed"),
            e.meta(e.PROTOCOL) + e.lookup("kinds", into=-1),
        ],
        "arp": _arp(),
        "icmp": _icmp(),
        "ip": [
            e.meta(e.L4PROTO) + e.compare(b"\x01") + e.end_with(nft.GOTO, "icmp"),
            # an answer of DHCP
            e.meta(e.L4PROTO)
            + e.compare(b"\x11")
            + _later_fragment(4, e.EQUAL)
            + e.payload(e.TRANSPORT, 0, 2)
            + e.compare(b"\0\x43")
            + e.end_with(nft.GOTO, "spoofed"),
            _own_source(4) + e.end_with(nft.ACCEPT),
        ],
        "ip6": _ip6(),
        # When a container ends, the kernel leaves its multicast groups after its addresses are gone. This is not an
        # attempt.
        "spoofed": [_leaves_a_group() + e.end_with(nft.DROP), logged("spoofed"), e.end_with(nft.DROP)],
    }
    chains["ip"].append(e.end_with(nft.GOTO, "spoofed"))
    made += [nft.rule(family, NAME, name, each) for name, rules in chains.items() for each in rules]
    return made


def _leaves_a_group() -> bytes:
    """Match multicast reports from the unspecified address. Source: RFC 3810, 5.2.14."""
    nobody = e.payload(e.NETWORK, 8, 16) + e.compare(bytes(16))
    routers = e.payload(e.NETWORK, 24, 16) + e.compare(bytes.fromhex("ff020000000000000000000000000016"))
    return e.meta(e.PROTOCOL) + e.compare(b"\x86\xdd") + nobody + routers


def _of(protocol: int, offset: int, content: bytes) -> bytes:
    """Match bytes at an offset of the header of a protocol."""
    kind = e.meta(e.L4PROTO) + e.compare(bytes((protocol,)))
    return kind + e.payload(e.TRANSPORT, offset, len(content)) + e.compare(content)


def _own_source(version: int) -> bytes:
    place, length = {4: (12, 4), 6: (8, 16)}[version]
    return e.meta(e.IIFNAME) + e.payload(e.NETWORK, place, length, 4) + e.lookup(f"sources{version}")


def _own_quoted(version: int) -> bytes:
    """Match an error about a packet to one of the port's own addresses. Source: RFC 792; RFC 4443, 3.

    An error about another packet would end a neighbour's connection, or lower the MTU that it believes in. The start of
    a fragmented error lacks the packet and does not match.
    """
    place, length = {4: (8 + 16, 4), 6: (8 + 24, 16)}[version]
    return e.meta(e.IIFNAME) + e.payload(e.TRANSPORT, place, length, 4) + e.lookup(f"sources{version}")


def _later_fragment(version: int, operator: int = e.UNEQUAL) -> bytes:
    """Match all fragments but the first, or with EQUAL all other packets.

    In later fragments the kernel takes other bytes for the header of the protocol. They have no effect without the
    first one, and a receiver drops a fragment that overlaps it.
    """
    if version == 4:
        return e.payload(e.NETWORK, 6, 2) + e.mask(b"\x1f\xff") + e.compare(b"\0\0", operator=operator)
    fragment = e.payload(e.NETWORK, 6, 1) + e.compare(b"\x2c")
    return fragment + e.payload(e.NETWORK, 42, 2) + e.mask(b"\xff\xf8") + e.compare(b"\0\0", operator=operator)


def _icmp() -> list[bytes]:
    kinds = [e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((number,))) for number in _ERRORS]
    return [
        _later_fragment(4) + _own_source(4) + e.end_with(nft.ACCEPT),
        *(kind + _own_quoted(4) + _own_source(4) + e.end_with(nft.ACCEPT) for kind in kinds),
        *(kind + e.end_with(nft.GOTO, "spoofed") for kind in kinds),
        e.payload(e.TRANSPORT, 0, 1) + e.compare(b"\x05") + e.end_with(nft.GOTO, "spoofed"),  # a redirect
        _own_source(4) + e.end_with(nft.ACCEPT),
        e.end_with(nft.GOTO, "spoofed"),
    ]


def _arp() -> list[bytes]:
    # only Ethernet and IPv4; the sender's MAC and address in the message must be those of the port
    form = e.payload(e.NETWORK, 0, 6) + e.compare(bytes.fromhex("000108000604"))
    sender = e.meta(e.IIFNAME) + e.payload(e.NETWORK, 8, 6, 4) + e.payload(e.NETWORK, 14, 4, 6)
    return [form + sender + e.lookup("arps") + e.end_with(nft.ACCEPT), e.end_with(nft.GOTO, "spoofed")]


def _ip6() -> list[bytes]:
    port = e.meta(e.IIFNAME)

    def kind(number: int) -> bytes:
        return _of(58, 0, bytes((number,)))

    own_target = port + e.payload(e.TRANSPORT, 8, 16, 4) + e.lookup("sources6")
    foreign_target = port + e.payload(e.TRANSPORT, 8, 16, 4) + e.lookup("sources6", inverted=True)
    unspecified = e.payload(e.NETWORK, 8, 16) + e.compare(bytes(16))
    below_128 = e.payload(e.TRANSPORT, 0, 1) + e.mask(b"\x80") + e.compare(b"\0")
    error = e.meta(e.L4PROTO) + e.compare(b"\x3a") + below_128
    return [
        # Multicast reports. No querier is here, so the bridge would flood each to all its ports.
        *(kind(number) + e.end_with(nft.DROP) for number in (131, 132, 143)),
        # Multicast queries decide where groups are sent; only routers send advertisements and redirects; DHCP.
        *(kind(number) + e.end_with(nft.GOTO, "spoofed") for number in (130, 134, 137)),
        _of(17, 0, b"\x02\x23") + e.end_with(nft.GOTO, "spoofed"),
        kind(136) + foreign_target + e.end_with(nft.GOTO, "spoofed"),
        # from the unspecified address: duplicate address detection
        unspecified + kind(135) + own_target + e.end_with(nft.ACCEPT),
        _later_fragment(6) + _own_source(6) + e.end_with(nft.ACCEPT),
        error + _own_quoted(6) + _own_source(6) + e.end_with(nft.ACCEPT),
        error + e.end_with(nft.GOTO, "spoofed"),
        _own_source(6) + e.end_with(nft.ACCEPT),
        e.end_with(nft.GOTO, "spoofed"),
    ]


def elements(port: str, mac: str, addresses: Sequence[str]) -> list[Message]:
    """Return the messages that let frames of these addresses pass from a port."""
    name, hardware = ifname(port), bytes.fromhex(mac.replace(":", ""))
    four = [packed(each)[1] for each in addresses if packed(each)[0] == 4]
    six = [packed(each)[1] for each in addresses if packed(each)[0] == 6]
    six.append(link_local(mac))
    wanted = {
        "macs": [nft.key(name, hardware)],
        "arps": [nft.key(name, hardware, each) for each in four],
        "sources4": [nft.key(name, each) for each in four],
        "sources6": [nft.key(name, each) for each in six],
    }
    return [
        each
        for where, keys in wanted.items()
        for each in nft.elements(nft.BRIDGE, NAME, where, [Element(found) for found in keys])
    ]


def link_local(mac: str) -> bytes:
    """Return the link-local address that the kernel derives from a MAC. Source: RFC 4291, appendix A."""
    raw = bytes.fromhex(mac.replace(":", ""))
    return bytes.fromhex("fe80000000000000") + bytes((raw[0] ^ 2,)) + raw[1:3] + b"\xff\xfe" + raw[3:]
