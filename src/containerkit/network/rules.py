"""The rules of a router: which packets of containers pass, and which are refused and logged.

There are two tables in the router's network namespace, owned by one socket. The table of family *bridge* guards each
port: only frames with the port's own MAC and addresses pass. The table of family *inet* decides what is forwarded:
nothing between networks, nothing out of an internal one, and otherwise what the egress rules of an address allow.

No rule is added after the start. Ports, addresses and destinations are elements of sets, so the cost of a lookup does
not grow with their number.
"""

from __future__ import annotations

import ipaddress
import struct
import threading
import time
from errno import EEXIST, ENOENT, ENOSPC
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError, SpecError
from containerkit.network import expressions as e
from containerkit.network import guard
from containerkit.network import nfnetlink as nft
from containerkit.network.guard import GROUP, NAME, ifname, logged, packed
from containerkit.network.nfnetlink import Element, Hook, Message, Nfnetlink, Set

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from containerkit.spec.network import Egress, EgressRule

__all__ = ["GROUP", "NAME", "NEVER", "RouterRules", "asked_elements", "asked_sets", "ifname", "packed"]

NEVER: Final = (
    # Not part of the internet: this host, its neighbours on the link, and the addresses where clouds serve credentials.
    *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32", "224.0.0.0/3"),
    *("::/127", "fd00:ec2::/32", "fe80::/10", "ff00::/8", "fd20:ce::254/128", "::ffff:0:0/96"),
)
_QUESTIONS: Final = (2000, 500, 60)
"""The packets per second that a container may send to the resolver, the burst, and the timeout in seconds.

Answering a question takes 14 us of the owner's time, so one container uses at most 3 % of a core.
"""
_PRIVATE: Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")
_SPECIAL: Final = tuple(ipaddress.ip_network(each) for each in (*NEVER, *_PRIVATE))
_MOST_NAMED: Final = 4096
"""The most elements for the names of one address, so that a name server can't fill the kernel's memory."""
MOST_PORTS: Final = 256  # of one rule by name: each is an element for each address of the name

_ADDRESS = {4: 7, 6: 8}  # nft's types: ipv4_addr, ipv6_addr
_LENGTH = {4: 4, 6: 16}
_FAMILY = {4: nft.IPV4, 6: nft.IPV6}
_SOURCE = {4: (12, 4), 6: (8, 16)}  # of the network header: offset and length
_DESTINATION = {4: (16, 4), 6: (24, 16)}
_PROTOCOL, _SERVICE, _IFNAME = 12, 13, 41
_ANY_PORTS: Final = ((0, 65535),)
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}


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
    the internet, but not the machine's neighbours and credentials.
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
        protocols = (_PROTOCOLS[rule.protocol],) * 2 if rule.protocol else (0, 255)
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
    """Return the messages that fill them."""
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


class RouterRules:
    """The tables of one router, with the ports, addresses and destinations in them.

    Any thread may use it.

    Args:
        socket: a socket in the router's network namespace. It owns the tables, which are deleted with it.
        uplink: the router's interface towards the outside.
        masquerade: give packets that leave by the uplink the uplink's address (if nothing outside does so).

    Raises:
        UnsupportedError: the kernel lacks what the rules need.
        SetupError: the kernel refused them.
    """

    def __init__(self, socket: Nfnetlink, uplink: str = "up0", *, masquerade: bool = False) -> None:
        self._socket = socket
        self._lock = threading.RLock()
        self._bridges: dict[str, bool] = {}
        self._ports: dict[str, tuple[list[Message], tuple[str, ...]]] = {}
        self._restricted: dict[str, dict[str, list[Element]]] = {}
        self._named: dict[str, dict[bytes, float]] = {}  # the elements of each address, and when they time out
        self._host: set[str] = set()
        self._judged: set[str] = set()  # addresses that may have connections
        socket.batch([*_inet_table(uplink, masquerade=masquerade), *guard.table()])

    # --- Bridges and ports

    def add_bridge(self, name: str, *, internal: bool = False) -> None:
        """Add a bridge. Its containers may use the uplink unless it is internal.

        Args:
            name: the interface.
            internal: whether to let nothing in or out.
        """
        with self._lock:
            if not internal and not self._bridges.get(name):
                self._socket.batch(nft.elements(nft.INET, NAME, "outbound", [Element(ifname(name))]))
            self._bridges[name] = not internal

    def remove_bridge(self, name: str) -> None:
        """Remove a bridge. An unknown one is not an error."""
        with self._lock:
            if self._bridges.pop(name, False):
                self._socket.batch(nft.elements(nft.INET, NAME, "outbound", [Element(ifname(name))], delete=True))

    def add_endpoint(self, port: str, mac: str, addresses: Sequence[str]) -> None:
        """Let frames with these addresses pass from a port of a bridge. Before this, nothing passes.

        Args:
            port: the interface, in the router.
            mac: the MAC of the container's interface, such as ``"02:00:0a:58:00:05"``.
            addresses: the container's addresses, of both IP versions.

        Raises:
            SetupError: ``EEXIST`` if the port was already added.
        """
        with self._lock:
            if port in self._ports:
                raise SetupError("nft new element", EEXIST, f"{NAME} port {port}", "remove the endpoint first")
            wanted = guard.elements(port, mac, addresses)
            self._socket.batch(wanted)
            self._ports[port] = wanted, tuple(addresses)

    def remove_endpoint(self, port: str) -> None:
        """Remove a port, from which nothing passes any more. An unknown one is not an error."""
        with self._lock:
            known, addresses = self._ports.pop(port, ([], ()))
            if known:
                self._socket.batch([each._replace(kind=14, flags=0) for each in known])
                self._judged.update(addresses)

    # --- Egress

    def set_egress(self, addresses: Sequence[str], egress: Egress | None) -> None:
        """Replace the egress rules of a container.

        Args:
            addresses: of the container.
            egress: the rules, to which :meth:`allow` adds the addresses of names. None allows all of the internet.

        Raises:
            SpecError: a rule by name with more than 256 ports.

        Side effects: existing connections from these addresses are checked again.
        """
        check_named(egress)
        with self._lock:
            messages: list[Message] = []
            for address in addresses:
                messages += self._forgotten(address)
                if egress is None:
                    continue
                version, key = packed(address)
                by_network = [each for each in egress.rules if not each.is_name]
                asked = {
                    name: asked_elements(address, by_network, exact=name == "exact") for name in ("exact", "asked")
                }
                messages += nft.elements(nft.INET, NAME, f"restricted{version}", [Element(key)])
                for name, elements in asked.items():
                    messages += nft.elements(nft.INET, NAME, f"{name}{version}", elements)
                self._restricted[address] = asked
            if messages:
                self._socket.batch(messages)
            if egress is not None:
                for address in self._judged.intersection(addresses):
                    self._socket.forget(address)
            self._judged.update(addresses)

    def clear_egress(self, addresses: Sequence[str]) -> None:
        """Remove the egress rules of addresses. It is not an error if there are none."""
        self.set_egress(addresses, None)

    def allow(self, address: str, destination: str, rules: Iterable[EgressRule], timeout_s: float) -> None:
        """Allow a container's address to reach an address of a name in its rules, for some time.

        Args:
            address: the container's.
            destination: what the name's answer says.
            rules: those that name it.
            timeout_s: for how many seconds new connections are allowed. Existing ones continue.

        Raises:
            SetupError: ``ENOSPC`` if its names already have 4,096 addresses and ports.
        """
        version, source = packed(address)
        found, target = packed(destination)
        if found != version:
            return
        keys = {nft.key(source, target, bytes((p,)), struct.pack(">H", port)) for p, port in _services(rules)}
        with self._lock:
            if address not in self._restricted:  # it ended while its question was answered
                return
            now = time.monotonic()
            known = self._named.setdefault(address, {})
            if len(known) + len(keys) > _MOST_NAMED:
                known = self._named[address] = {k: until for k, until in known.items() if until > now}
            if len(keys | known.keys()) > _MOST_NAMED:
                hint = f"its names already have {_MOST_NAMED} addresses and ports, the most that are allowed"
                raise SetupError("nft new element", ENOSPC, f"{NAME} named{version} of {address}", hint)
            add = nft.elements(nft.INET, NAME, f"named{version}", [Element(k, timeout_s=timeout_s) for k in keys])
            # The kernel keeps the old timeout of an existing element, so it is deleted first.
            again = [Element(k) for k in keys & known.keys()]
            self._gone(version, again)
            self._socket.batch(add)
            known.update(dict.fromkeys(keys, now + timeout_s))

    def set_host_addresses(self, addresses: Iterable[str]) -> None:
        """Refuse these addresses unless egress rules name them as networks. They replace those of the last call.

        This is for a router whose packets are sent by a program on the host, which can reach the host's services.
        """
        with self._lock:
            wanted = {each for each in addresses if not ipaddress.ip_address(each).is_loopback}
            messages: list[Message] = []
            for changed, delete in ((self._host - wanted, True), (wanted - self._host, False)):
                for version in (4, 6):
                    found = [Element(packed(each)[1]) for each in sorted(changed) if packed(each)[0] == version]
                    messages += nft.elements(nft.INET, NAME, f"host{version}", found, delete=delete)
            if messages:
                self._socket.batch(messages)
            self._host = wanted

    def _gone(self, version: int, stale: Sequence[Element]) -> None:
        """Delete elements that may have timed out."""
        if not stale:
            return
        try:
            self._socket.batch(nft.elements(nft.INET, NAME, f"named{version}", stale, delete=True))
        except SetupError as error:
            if error.errno != ENOENT:
                raise
            if len(stale) > 1:
                for each in stale:
                    self._gone(version, [each])

    def _forgotten(self, address: str) -> list[Message]:
        asked = self._restricted.pop(address, None)
        if asked is None:
            return []
        version, key = packed(address)
        self._gone(version, [Element(k) for k in sorted(self._named.pop(address, ()))])
        restricted = nft.elements(nft.INET, NAME, f"restricted{version}", [Element(key)], delete=True)
        for name, elements in asked.items():
            restricted += nft.elements(nft.INET, NAME, f"{name}{version}", elements, delete=True)
        return restricted

    def close(self) -> None:
        """Delete the tables. May be called twice."""
        self._socket.close()


def check_named(egress: Egress | None) -> None:
    """Refuse rules by name that would need too many elements.

    Raises:
        SpecError: more than 256 ports in one rule by name.
    """
    for rule in egress.rules if egress else ():
        if rule.is_name and sum(high - low + 1 for low, high in rule.ports) > MOST_PORTS:
            raise SpecError(f"egress: a rule by name takes at most {MOST_PORTS} ports; {rule.what} has more")


def _services(rules: Iterable[EgressRule]) -> set[tuple[int, int]]:
    """Return (protocol, port) of rules; 0 is any."""
    found = set()
    for rule in rules:
        protocols = [_PROTOCOLS[rule.protocol]] if rule.protocol else [6, 17] if rule.ports else [0]
        ports = [port for low, high in rule.ports for port in range(low, high + 1)] or [0]
        found |= {(protocol, port) for protocol in protocols for port in ports}
    return found


# --- The tables


def _inet_table(uplink: str, *, masquerade: bool) -> list[Message]:
    family = nft.INET
    sets = [Set("outbound", (16,), (_IFNAME,)), *asked_sets("exact", "asked"), *never_sets()]
    for v in (4, 6):
        sets += [Set(f"{name}{v}", (_LENGTH[v],), (_ADDRESS[v],)) for name in ("restricted", "host")]
        sets.append(Set(f"asking{v}", (_LENGTH[v],), (_ADDRESS[v],), nft.TIMEOUT | nft.EVAL))
        fields, types = (_LENGTH[v], _LENGTH[v], 1, 2), (_ADDRESS[v], _ADDRESS[v], _PROTOCOL, _SERVICE)
        sets.append(Set(f"named{v}", fields, types, nft.TIMEOUT))
    made = [nft.table(family, NAME)]
    made += [nft.new_set(family, NAME, each, number) for number, each in enumerate(sets, 1)]
    made += never_elements(NAME)
    made += [
        nft.chain(family, NAME, "egress"),
        nft.chain(family, NAME, "refuse"),
        nft.chain(family, NAME, "forward", Hook("filter", nft.FORWARD, 0, nft.DROP)),
        nft.chain(family, NAME, "input", Hook("filter", nft.INPUT, 0, nft.DROP)),
    ]
    chains = {"forward": _forward(uplink), "egress": _egress(), "refuse": _refuse("egress"), "input": _input(uplink)}
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
        e.conntrack(e.ESTABLISHED | e.RELATED) + e.say(nft.ACCEPT),
        e.conntrack(e.INVALID) + e.say(nft.DROP),
        outbound + _oif(uplink) + e.say(nft.GOTO, "egress"),
        _iif(uplink) + e.meta(e.OIFNAME) + e.lookup("outbound") + e.say(nft.ACCEPT),
        logged("network"),
        e.reject(),
    ]


def _egress() -> list[bytes]:
    rules = []
    for v in (4, 6):
        width = _LENGTH[v] // 4
        target = only(v) + e.payload(e.NETWORK, *_DESTINATION[v])
        rules.append(only(v) + asked_rule(v, "exact") + e.say(nft.ACCEPT))
        rules.append(target + e.lookup(f"host{v}") + e.say(nft.GOTO, "refuse"))
        rules.append(only(v) + asked_rule(v, "asked") + e.say(nft.ACCEPT))
        protocol, port = 2 * width, 2 * width + 1
        services = (
            e.meta(e.L4PROTO, protocol) + e.payload(e.TRANSPORT, 2, 2, port),
            e.meta(e.L4PROTO, protocol) + e.constant(bytes(2), port),
            e.constant(bytes(1), protocol) + e.constant(bytes(2), port),
        )
        pair, named = only(v) + _addresses(v), e.lookup(f"named{v}") + e.say(nft.ACCEPT)
        rules += [pair + service + named for service in services]
        source = e.payload(e.NETWORK, *_SOURCE[v])
        rules.append(only(v) + source + e.lookup(f"restricted{v}") + e.say(nft.GOTO, "refuse"))
        rules.append(target + e.lookup(f"never{v}") + e.say(nft.GOTO, "refuse"))
    return [*rules, e.say(nft.ACCEPT)]


def _input(uplink: str) -> list[bytes]:
    """The packets that may reach the router itself: DNS, and the messages that address configuration needs."""
    rules = [_iif("lo") + e.say(nft.ACCEPT)]
    for v in (4, 6):  # before known connections, because a client that always asks from the same port is one
        source = e.payload(e.NETWORK, *_SOURCE[v])
        often = e.at_most(f"asking{v}", *_QUESTIONS)
        rules += [only(v) + _protocol(number, 53) + source + often + e.say(nft.DROP) for number in (17, 6)]
    rules += [
        e.conntrack(e.ESTABLISHED | e.RELATED) + e.say(nft.ACCEPT),
        _protocol(17, 53) + _iif(uplink, equal=False) + e.say(nft.ACCEPT),
        _protocol(6, 53) + _iif(uplink, equal=False) + e.say(nft.ACCEPT),
        _protocol(1) + e.payload(e.TRANSPORT, 0, 1) + e.compare(b"\x08") + e.say(nft.ACCEPT),
    ]
    # Echo, solicitation and advertisement of neighbours.
    rules += [
        _protocol(58) + e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((kind,))) + e.say(nft.ACCEPT)
        for kind in (128, 135, 136)
    ]
    # Multicast reports and router solicitations: every kernel sends them, so they are not logged.
    rules += [
        _protocol(58) + e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((kind,))) + e.say(nft.DROP)
        for kind in (131, 132, 133, 143)
    ]
    return [*rules, _protocol(2) + e.say(nft.DROP), _iif(uplink) + e.say(nft.DROP), logged("router"), e.reject()]
