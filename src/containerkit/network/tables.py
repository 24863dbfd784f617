"""The tables of a router, and their elements."""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING, Final

from containerkit.network import expressions as e
from containerkit.network import nfnetlink as nft
from containerkit.network.guard import NAME, ifname, logged, packed
from containerkit.network.nfnetlink import Element, Hook, Message, Set

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.spec.network import EgressRule

__all__ = [
    "MOST_PORTS",
    "NEVER",
    "PROTOCOLS",
    "asked_elements",
    "asked_rule",
    "asked_sets",
    "inet_table",
    "only",
    "opened",
]

NEVER: Final = (
    # Not part of the internet: this host, its neighbours on the link, and the addresses where clouds serve credentials.
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "224.0.0.0/3"),
    *("::/127", "fd00:ec2::/32", "fe80::/10", "ff00::/8", "fd20:ce::254/128", "::ffff:0:0/96"),
)
_QUESTIONS: Final = (2000, 500, 60)
"""The packets per second that a container may send to the resolver, the burst, and the timeout in seconds.

Answering a question takes 14 us of the owner's time, so one container uses at most 3 % of a core.
"""
_MOST_OPEN: Final = 8192
"""Connections that one address of a container may have open outside at once."""
_MOST_NEW: Final = (1000, 10_000, 60)
"""Connections per second that one address may make, and the burst. Closed ones stay in the host's table for 2 min.

The table usually has 262,144 entries for the host and all containers. Without these limits one container can fill it.
"""
_PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")
_SPECIAL: Final = tuple(ipaddress.ip_network(each) for each in (*NEVER, *_PRIVATE))
MOST_PORTS: Final = 256  # in one rule by name: each port is an element for each address of the name

_ADDRESS = {4: 7, 6: 8}  # nft's types: ipv4_addr, ipv6_addr
_LENGTH = {4: 4, 6: 16}
_FAMILY = {4: nft.IPV4, 6: nft.IPV6}
_SOURCE = {4: (12, 4), 6: (8, 16)}  # of the network header: offset and length
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_PROTOCOL, _SERVICE, _IFNAME = 12, 13, 41
_ANY_PORTS: Final = ((0, 65535),)
PROTOCOLS: Final = {"tcp": 6, "udp": 17}


def asked_sets(*names: str) -> tuple[Set, ...]:
    """Return the sets of allowed destinations: ``source . destination . protocol . port``, as ranges."""
    return tuple(
        Set(
            f"{name}{v}",
            (_LENGTH[v], _LENGTH[v], 1, 2),
            (_ADDRESS[v], _ADDRESS[v], _PROTOCOL, _SERVICE),
            nft.INTERVAL,
        )
        for name in names
        for v in (4, 6)
    )


def opened(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> list[tuple[bytes, bytes]]:
    """Return the ranges of addresses that a rule with a network allows.

    A range that is private, or not part of the internet, is allowed only by a network within it: ``0.0.0.0/0`` allows
    the internet, but not the host's neighbours and cloud credentials.
    """
    start, end, found = int(network.network_address), int(network.broadcast_address), []
    width = _LENGTH[network.version]
    for special in sorted((each for each in _SPECIAL if each.version == network.version), key=lambda each: each[0]):
        first, last = int(special[0]), int(special[-1])
        if first <= int(network[0]) and end <= last:
            continue  # named explicitly
        if first > end or last < start:
            continue
        if first > start:
            found.append((start, first - 1))
        start = max(start, last + 1)
    if start <= end:
        found.append((start, end))
    return [(first.to_bytes(width, "big"), last.to_bytes(width, "big")) for first, last in found]


def asked_elements(address: str, rules: Iterable[EgressRule], *, exact: bool) -> list[Element]:
    """Return the elements by which rules with networks allow destinations to an address.

    Args:
        address: the container's.
        rules: the rules with networks.
        exact: whether to use the rules with a single address, which also allow the host's own, or the others.
    """
    version, source = packed(address)
    found = set()
    for rule in rules:
        network = ipaddress.ip_network(rule.what, strict=False)
        if network.version != version or exact != (network.prefixlen == network.max_prefixlen):
            continue
        protocols = (PROTOCOLS[rule.protocol],) * 2 if rule.protocol else (0, 255)
        for low, high in rule.ports or _ANY_PORTS:
            # Without a protocol, ports mean both TCP and UDP.
            spans = ((6, 6), (17, 17)) if rule.ports and not rule.protocol else (protocols,)
            for of, to in spans:
                for first, last in opened(network):
                    start = nft.key(source, first, bytes((of,)), struct.pack(">H", low))
                    found.add(Element(start, nft.key(source, last, bytes((to,)), struct.pack(">H", high))))
    return sorted(found)


def asked_rule(version: int, name: str) -> bytes:
    """Return the expressions that look a packet up in such a set."""
    width = _LENGTH[version] // 4
    loaded = _addresses(version) + e.meta(e.L4PROTO, 2 * width) + e.payload(e.TRANSPORT, 2, 2, 2 * width + 1)
    return loaded + e.lookup(f"{name}{version}")


def only(version: int) -> bytes:
    """Continue with packets of this IP version."""
    return e.meta(e.NFPROTO) + e.compare(bytes((_FAMILY[version],)))


def never_sets() -> list[Set]:
    """Return the sets of addresses that are not part of the internet."""
    return [Set(f"never{v}", (_LENGTH[v],), (_ADDRESS[v],), nft.INTERVAL) for v in (4, 6)]


def never_elements(table: str) -> list[Message]:
    """Return the messages that fill the sets of :func:`never_sets`."""
    made: dict[int, list[Element]] = {4: [], 6: []}
    for text in NEVER:
        network = ipaddress.ip_network(text)
        after = int(network.broadcast_address) + 1
        made[network.version].append(Element(network.network_address.packed))
        if after < 1 << network.max_prefixlen:
            made[network.version].append(Element(after.to_bytes(_LENGTH[network.version], "big"), is_end=True))
    return [each for v, found in made.items() for each in nft.elements(nft.INET, table, f"never{v}", found)]


def _addresses(version: int) -> bytes:
    """Load source and destination, from register 0."""
    width = _LENGTH[version] // 4
    return e.payload(e.NETWORK, *_SOURCE[version]) + e.payload(e.NETWORK, *_DESTINATION[version], register=width)


def _iif(name: str, *, equal: bool = True) -> bytes:
    return e.meta(e.IIFNAME) + e.compare(ifname(name), operator=e.EQUAL if equal else e.UNEQUAL)


def _oif(name: str) -> bytes:
    return e.meta(e.OIFNAME) + e.compare(ifname(name))


def _protocol(number: int, *ports: int) -> bytes:
    loaded = e.meta(e.L4PROTO) + e.compare(bytes((number,)))
    for port in ports:
        loaded += e.payload(e.TRANSPORT, 2, 2) + e.compare(struct.pack(">H", port))
    return loaded


# --- The tables


def inet_table(uplink: str, *, masquerade: bool) -> list[Message]:
    """Return the messages that make the table of family *inet*, with nothing allowed yet."""
    family = nft.INET
    sets = [Set("outbound", (16,), (_IFNAME,)), *asked_sets("exact", "asked"), *never_sets()]
    for v in (4, 6):
        sets += [Set(f"{name}{v}", (_LENGTH[v],), (_ADDRESS[v],)) for name in ("restricted", "host")]
        sets += [
            Set(f"{name}{v}", (_LENGTH[v],), (_ADDRESS[v],), flags)
            for name, flags in (
                ("asking", nft.TIMEOUT | nft.EVAL),
                ("making", nft.TIMEOUT | nft.EVAL),
                ("open", nft.EVAL),
            )
        ]
        fields, types = (_LENGTH[v], _LENGTH[v], 1, 2), (_ADDRESS[v], _ADDRESS[v], _PROTOCOL, _SERVICE)
        sets.append(Set(f"named{v}", fields, types, nft.TIMEOUT))
    made = [nft.table(family, NAME)]
    made += [nft.new_set(family, NAME, each, number) for number, each in enumerate(sets, 1)]
    made += never_elements(NAME)
    made += [
        nft.chain(family, NAME, "egress"),
        nft.chain(family, NAME, "refuse"),
        nft.chain(family, NAME, "crowd"),
        nft.chain(family, NAME, "resolved", Hook("filter", nft.PREROUTING, -300)),
        nft.chain(family, NAME, "resolving", Hook("filter", nft.OUTPUT, -300)),
        nft.chain(family, NAME, "forward", Hook("filter", nft.FORWARD, 0, nft.DROP)),
        nft.chain(family, NAME, "input", Hook("filter", nft.INPUT, 0, nft.DROP)),
    ]
    chains = {
        "forward": _forward(uplink),
        "egress": _egress(),
        "refuse": _refuse("egress"),
        "crowd": [logged("connections"), e.end_with(nft.DROP)],
        # DNS questions are not tracked: each would stay in the table for half a minute, and many would fill it.
        "resolved": [_protocol(17, 53) + e.local() + e.untracked()],
        "resolving": [_protocol(17) + e.payload(e.TRANSPORT, 0, 2) + e.compare(struct.pack(">H", 53)) + e.untracked()],
        "input": _input(uplink),
    }
    if masquerade:
        made.append(nft.chain(family, NAME, "postrouting", Hook("nat", nft.POSTROUTING, 100)))
        chains["postrouting"] = [_oif(uplink) + e.masquerade()]
    made += [nft.rule(family, NAME, name, each) for name, rules in chains.items() for each in rules]
    return made


def _refuse(prefix: str) -> list[bytes]:
    return [logged(prefix), e.reject()]


def _forward(uplink: str) -> list[bytes]:
    outbound = e.meta(e.IIFNAME) + e.lookup("outbound")
    return [
        e.conntrack(e.ESTABLISHED | e.RELATED) + e.end_with(nft.ACCEPT),
        e.conntrack(e.INVALID) + e.end_with(nft.DROP),
        *(outbound + _oif(uplink) + each + e.end_with(nft.GOTO, "crowd") for v in (4, 6) for each in _too_many(v)),
        outbound + _oif(uplink) + e.end_with(nft.GOTO, "egress"),
        _iif(uplink) + e.meta(e.OIFNAME) + e.lookup("outbound") + e.end_with(nft.ACCEPT),
        logged("network"),
        e.reject(),
    ]


def _too_many(version: int) -> list[bytes]:
    """Match a new connection of a source that already has too many, before it uses an entry of the table."""
    source = only(version) + e.payload(e.NETWORK, *_SOURCE[version])
    return [
        source + e.at_most(f"making{version}", *_MOST_NEW),
        source + e.open_over(f"open{version}", _MOST_OPEN),
    ]


def _egress() -> list[bytes]:
    rules = []
    for v in (4, 6):
        width = _LENGTH[v] // 4
        target = only(v) + e.payload(e.NETWORK, *_DESTINATION[v])
        rules.append(only(v) + asked_rule(v, "exact") + e.end_with(nft.ACCEPT))
        rules.append(target + e.lookup(f"host{v}") + e.end_with(nft.GOTO, "refuse"))
        rules.append(only(v) + asked_rule(v, "asked") + e.end_with(nft.ACCEPT))
        protocol, port = 2 * width, 2 * width + 1
        services = (
            e.meta(e.L4PROTO, protocol) + e.payload(e.TRANSPORT, 2, 2, port),
            e.meta(e.L4PROTO, protocol) + e.constant(bytes(2), port),
            e.constant(bytes(1), protocol) + e.constant(bytes(2), port),
        )
        pair, named = only(v) + _addresses(v), e.lookup(f"named{v}") + e.end_with(nft.ACCEPT)
        rules += [pair + service + named for service in services]
        source = e.payload(e.NETWORK, *_SOURCE[v])
        rules.append(only(v) + source + e.lookup(f"restricted{v}") + e.end_with(nft.GOTO, "refuse"))
        rules.append(target + e.lookup(f"never{v}") + e.end_with(nft.GOTO, "refuse"))
    return [*rules, e.end_with(nft.ACCEPT)]


def _input(uplink: str) -> list[bytes]:
    """Return the rules for packets to the router itself: DNS, and the messages for address configuration."""
    rules = [_iif("lo") + e.end_with(nft.ACCEPT)]
    for v in (4, 6):  # before established connections: a client that always asks from one port has one
        source = e.payload(e.NETWORK, *_SOURCE[v])
        often = e.at_most(f"asking{v}", *_QUESTIONS)
        rules += [only(v) + _protocol(number, 53) + source + often + e.end_with(nft.DROP) for number in (17, 6)]
    rules += [
        e.conntrack(e.ESTABLISHED | e.RELATED) + e.end_with(nft.ACCEPT),
        _protocol(17, 53) + _iif(uplink, equal=False) + e.end_with(nft.ACCEPT),
        _protocol(6, 53) + _iif(uplink, equal=False) + e.end_with(nft.ACCEPT),
        _protocol(1) + e.payload(e.TRANSPORT, 0, 1) + e.compare(b"\x08") + e.end_with(nft.ACCEPT),
    ]
    # Echo, solicitation and advertisement of neighbours.
    rules += [
        _protocol(58) + e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((kind,))) + e.end_with(nft.ACCEPT)
        for kind in (128, 135, 136)
    ]
    # Multicast reports and router solicitations: every kernel sends them, so they are not logged.
    rules += [
        _protocol(58) + e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((kind,))) + e.end_with(nft.DROP)
        for kind in (131, 132, 133, 143)
    ]
    return [
        *rules,
        _protocol(2) + e.end_with(nft.DROP),
        _iif(uplink) + e.end_with(nft.DROP),
        logged("router"),
        e.reject(),
    ]
