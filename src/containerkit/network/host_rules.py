"""The rules in the host's network namespace: one table for each router.

It masquerades the containers' connections, redirects published ports to their containers, and keeps containers from the
host's own services. Rules of other programs are not read, changed or deleted.
"""

from __future__ import annotations

import ipaddress
import struct
import threading
from typing import TYPE_CHECKING, Final

from containerkit.network import expressions as e
from containerkit.network import nfnetlink as nft
from containerkit.network import refusals
from containerkit.network.conntrack import Connections
from containerkit.network.guard import ifname, packed
from containerkit.network.nfnetlink import Element, Hook, Message, Nfnetlink, Set
from containerkit.network.tables import asked_elements, asked_rule, asked_sets, only

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from containerkit.spec.network import Egress

__all__ = ["HostRules"]

_LENGTH: Final = {4: 4, 6: 16}
_TYPE: Final = {4: 7, 6: 8}
_FAMILY: Final = {4: nft.IPV4, 6: nft.IPV6}
_SOURCE: Final = {4: 12, 6: 8}
_DESTINATION: Final = {4: 16, 6: 24}
_LOOPBACK: Final = {4: (b"\xff\0\0\0", b"\x7f\0\0\0"), 6: (b"\xff" * 16, bytes(15) + b"\x01")}
_OURS: Final = b"ck"  # the prefix of the uplinks of all routers
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}


class HostRules:
    """The table of one router in the host's namespace.

    Any thread may use it.

    Args:
        nft_socket: a socket in the host's network namespace. It owns the table, which is deleted with it.
        uplink: the interface of the router's uplink on the host.
        forwards_only_ours: interfaces of the host that did not forward before. Their packets are forwarded only to
            routers of this library, so that the host does not begin to route for its neighbours.

    Raises:
        UnsupportedError: the kernel does not support the rules.
        SetupError: the kernel refused them.
    """

    def __init__(self, nft_socket: Nfnetlink, uplink: str, *, forwards_only_ours: Sequence[str] = ()) -> None:
        self._socket = nft_socket
        self._lock = threading.Lock()
        self._asked: dict[str, list[Element]] = {}
        self.name: Final = f"containerkit-{uplink}"
        self._connections = Connections()
        self._log, group = refusals.free_group()
        try:
            nft_socket.batch(_table(self.name, uplink, group, forwards_only_ours))
        except BaseException:
            self._connections.close()
            self._log.close()
            raise

    def publish(
        self, host: str, port: int, protocol: str, address: str, container_port: int, *, count: int = 1
    ) -> None:
        """Redirect connections to ports of the host to a container.

        This does not affect connections to ::1, because such packets are not forwarded. The process that listens on
        the port gets them.

        Args:
            host: an address of the host, or ``"0.0.0.0"`` or ``"::"`` for all of them, of the container's version.
            port: the first port.
            protocol: ``"tcp"`` or ``"udp"``.
            address: the container's address.
            container_port: the first port of the container.
            count: the number of consecutive ports.

        Raises:
            SetupError: ``EEXIST`` if it is already published.

        Side effects: earlier clients of the port are redirected from their next datagram on.
        """
        self._socket.batch(self._published(host, port, protocol, (address, container_port), count))
        if protocol == "udp":
            try:
                self._connections.forget_to(host, range(port, port + count), protocol)
            except BaseException:
                self.unpublish(host, port, protocol, address, container_port, count=count)
                raise

    def unpublish(
        self, host: str, port: int, protocol: str, address: str, container_port: int, *, count: int = 1
    ) -> None:
        """Undo :meth:`publish`. Datagrams of earlier clients are no longer redirected either."""
        self._socket.batch(self._published(host, port, protocol, (address, container_port), count, delete=True))
        if protocol == "udp":
            self._connections.forget_redirected(address, range(container_port, container_port + count), protocol)

    def _published(
        self, host: str, port: int, protocol: str, target: tuple[str, int], count: int, *, delete: bool = False
    ) -> list[Message]:
        version, where = packed(host)
        found, address = packed(target[0])
        if found != version:
            raise ValueError(f"publish: {host} and {target[0]} have different IP versions")
        made = [
            Element(
                nft.key(where, bytes((_PROTOCOLS[protocol],)), struct.pack(">H", port + i)),
                data=nft.value(nft.key(address, struct.pack(">H", target[1] + i))),
            )
            for i in range(count)
        ]
        return nft.elements(nft.INET, self.name, f"published{version}", made, delete=delete, exclusive=not delete)

    def add_subnet(self, subnet: str) -> None:
        """Masquerade a network: outside, its containers appear with the host's address."""
        self._socket.batch(self._subnet(subnet))

    def remove_subnet(self, subnet: str) -> None:
        """Undo :meth:`add_subnet`."""
        self._socket.batch(self._subnet(subnet, delete=True))

    def _subnet(self, subnet: str, *, delete: bool = False) -> list[Message]:
        network = ipaddress.ip_network(subnet)
        last = (int(network.broadcast_address) + 1).to_bytes(_LENGTH[network.version], "big")
        ends = [Element(network.network_address.packed), Element(last, is_end=True)]
        return nft.elements(nft.INET, self.name, f"subnets{network.version}", ends, delete=delete)

    def set_egress(self, addresses: Sequence[str], egress: Egress | None) -> None:
        """Let containers reach only those addresses of the host that their egress rules name individually.

        Args:
            addresses: the addresses of the container.
            egress: the rules, or None for no address of the host.
        """
        with self._lock:
            messages: list[Message] = []
            for address in addresses:
                version = packed(address)[0]
                before = self._asked.pop(address, [])
                messages += nft.elements(nft.INET, self.name, f"exact{version}", before, delete=True)
                rules = [each for each in egress.rules if not each.is_name] if egress else []
                asked = asked_elements(address, rules, exact=True)
                if asked:
                    messages += nft.elements(nft.INET, self.name, f"exact{version}", asked)
                    self._asked[address] = asked
            if messages:
                self._socket.batch(messages)

    @property
    def log(self) -> socket.socket:
        """The socket that receives the packets that this table refused. This object still owns it."""
        return self._log

    def close(self) -> None:
        """Delete the table. May be called twice."""
        self._socket.close()
        self._log.close()
        self._connections.close()


def _field(version: int, offsets: dict[int, int], register: int = 0) -> bytes:
    return e.payload(e.NETWORK, offsets[version], _LENGTH[version], register)


def _named(what: int, uplink: str, operator: int = e.EQUAL) -> bytes:
    return e.meta(what) + e.compare(ifname(uplink), operator=operator)


def _table(name: str, uplink: str, group: int, forwards_only_ours: Sequence[str]) -> list[Message]:
    family = nft.INET
    sets = list(asked_sets("exact"))
    for v in (4, 6):
        sets.append(Set(f"subnets{v}", (_LENGTH[v],), (_TYPE[v],), nft.INTERVAL))
        data = (_TYPE[v] << 6 | 13, _LENGTH[v] + 4)
        sets.append(Set(f"published{v}", (_LENGTH[v], 1, 2), (_TYPE[v], 12, 13), nft.MAP, data))
    chains = {
        "forward": (Hook("filter", nft.FORWARD, 0), _forward(uplink, forwards_only_ours)),
        "input": (Hook("filter", nft.INPUT, 0), _input(uplink, group)),
        "prerouting": (Hook("nat", nft.PREROUTING, -100), _publishing()),
        "output": (Hook("nat", nft.OUTPUT, -100), _publishing(own=True)),
        "postrouting": (Hook("nat", nft.POSTROUTING, 100), _masquerading(uplink)),
    }
    made = [nft.table(family, name)]
    made += [nft.new_set(family, name, each, number) for number, each in enumerate(sets, 1)]
    for chain, (hook, rules) in chains.items():
        made.append(nft.chain(family, name, chain, hook))
        made += [nft.rule(family, name, chain, each) for each in rules]
    return made


def _forward(uplink: str, forwards_only_ours: Sequence[str]) -> list[bytes]:
    to, come = _named(e.OIFNAME, uplink), _named(e.IIFNAME, uplink)
    rules = [
        to + e.conntrack(e.ESTABLISHED | e.RELATED) + e.end_with(nft.ACCEPT),
        to + e.conntrack(e.STATUS_DNAT, 2) + e.end_with(nft.ACCEPT),
        to + e.end_with(nft.DROP),  # a neighbour that routes via this host can't reach containers
        come + e.conntrack(e.INVALID) + e.end_with(nft.DROP),  # it would leave with the container's own address
        come + e.end_with(nft.ACCEPT),
    ]
    others = e.meta(e.OIFNAME) + e.compare(_OURS, operator=e.UNEQUAL)
    fresh = e.conntrack(e.NEW) + e.conntrack(e.STATUS_DNAT, 2, absent=True)
    return rules + [_named(e.IIFNAME, each) + others + fresh + e.end_with(nft.DROP) for each in forwards_only_ours]


def _input(uplink: str, group: int) -> list[bytes]:
    come, icmp = _named(e.IIFNAME, uplink), e.meta(e.L4PROTO) + e.compare(bytes((58,)))
    return [
        _named(e.IIFNAME, uplink, e.UNEQUAL) + e.end_with(nft.ACCEPT),
        e.conntrack(e.ESTABLISHED | e.RELATED) + e.end_with(nft.ACCEPT),
        # Neighbour discovery: without it no IPv6 packet reaches the router.
        *(
            icmp + e.payload(e.TRANSPORT, 0, 1) + e.compare(bytes((kind,))) + e.end_with(nft.ACCEPT)
            for kind in (135, 136)
        ),
        e.conntrack(e.INVALID) + e.end_with(nft.DROP),
        *(come + only(v) + asked_rule(v, "exact") + e.end_with(nft.ACCEPT) for v in (4, 6)),
        e.limit(50, 100) + e.log(group, "host"),
        e.reject(),
    ]


def _publishing(*, own: bool = False) -> list[bytes]:
    """Look up a connection by its destination address on the host, then by "all addresses".

    Args:
        own: for connections that the host itself opens. Only these are redirected from 127.0.0.0/8.
    """
    rules = []
    for v in (4, 6):
        width = _LENGTH[v] // 4
        mask, loopback = _LOOPBACK[v]
        target = _field(v, _DESTINATION)
        service = e.meta(e.L4PROTO, width) + e.payload(e.TRANSPORT, 2, 2, width + 1)
        go = e.lookup(f"published{v}", into=0) + e.destination(_FAMILY[v], 0, width)
        foreign = target + e.mask(mask) + e.compare(loopback, operator=e.UNEQUAL)
        start = only(v) + e.local() + (b"" if own and v == 4 else foreign)
        rules.append(start + _field(v, _DESTINATION) + service + go)
        rules.append(start + e.constant(bytes(_LENGTH[v])) + service + go)
    return rules


def _masquerading(uplink: str) -> list[bytes]:
    """Give packets that leave the router's networks the host's address, even if a published port leads back to them.

    Connections of the host from 127.0.0.1 to a published port get it too, because nothing can answer to 127.0.0.1.
    """
    rules = []
    for v in (4, 6):
        ours = only(v) + _field(v, _SOURCE) + e.lookup(f"subnets{v}")
        rules.append(ours + _named(e.OIFNAME, uplink, e.UNEQUAL) + e.masquerade())
        rules.append(ours + _named(e.OIFNAME, uplink) + e.conntrack(e.STATUS_DNAT, 2) + e.masquerade())
    mask, loopback = _LOOPBACK[4]
    of_host = only(4) + _field(4, _SOURCE) + e.mask(mask) + e.compare(loopback)
    rules.append(of_host + _named(e.OIFNAME, uplink) + e.conntrack(e.STATUS_DNAT, 2) + e.masquerade())
    return rules
