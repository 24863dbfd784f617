"""The resolver of a router: it answers names of containers, and asks the host's servers for other allowed names.

It identifies a container by its source address, which the bridge's guard protects. Questions that are not allowed never
leave this process, so a container can't send data out in names.
"""

from __future__ import annotations

import os
import secrets
import socket
import struct
import threading
import time
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SetupError
from containerkit.network import dns
from containerkit.network.refusals import Log, Refusal
from containerkit.network.rules import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from containerkit.network.rules import RouterRules
    from containerkit.spec.network import DNS, Egress, EgressRule

    Peer = Callable[[dns.Question], bytes | None]
    """Asks the resolver of another process. Returns None if that does not know the name."""

__all__ = ["Resolver", "host_servers"]

_TIMEOUT_S: Final = 2.0  # for the answer of one server; musl and glibc wait 5 s
_ROUNDS: Final = 2
_LEAST_S: Final = 300.0  # how long an address stays allowed after its name was resolved: programs cache addresses
_MOST_S: Final = 86_400.0
_MOST_ADDRESSES: Final = 64
_FORWARDED: Final = {dns.A, dns.AAAA}
_UNFORWARDED: Final = {64, 65, 255}  # SVCB and HTTPS contain addresses that would not be allowed; for ANY see RFC 8482
_NAT64: Final = IPv6Network("64:ff9b::/96")
_RESOLV_CONF: Final = "/etc/resolv.conf"


@attrs.define(eq=False)
class _Client:
    """The addresses, names and policy of one container."""

    addresses: dict[str, tuple[str, ...]] = attrs.Factory(dict)  # by bridge
    names: dict[str, tuple[str, ...]] = attrs.Factory(dict)
    servers: tuple[str, ...] | None = None
    egress: Egress | None = None
    peers: tuple[Peer, ...] = ()


class Resolver:
    """Answers the questions of containers. Any thread may use it.

    Args:
        rules: allow the resolved addresses before the container gets the answer.
        log: receives the refusals.
    """

    def __init__(self, rules: RouterRules | None, log: Log) -> None:
        self._rules = rules
        self._log = log
        self._lock = threading.Lock()
        self._clients: dict[Hashable, _Client] = {}
        self._by_address: dict[str, _Client] = {}
        self._names: dict[str, dict[str, list[str]]] = {}  # by bridge
        self._internal: set[str] = set()
        self._servers: tuple[object, tuple[str, ...]] = (None, ())

    # --- Networks and containers

    def add_network(self, bridge: str, *, internal: bool = False) -> None:
        """Add a network. Nothing is forwarded for containers that are only on internal networks."""
        with self._lock:
            self._names.setdefault(bridge, {})
            (self._internal.add if internal else self._internal.discard)(bridge)

    def remove_network(self, bridge: str) -> None:
        """Forget a network and the names on it."""
        with self._lock:
            self._names.pop(bridge, None)
            self._internal.discard(bridge)

    def add_container(self, token: Hashable, bridge: str, addresses: Sequence[str], names: Sequence[str]) -> None:
        """Add a container on a network.

        Args:
            token: the container, the same on all of its networks.
            bridge: the network.
            addresses: the container's addresses there.
            names: its names on that network. If several containers share a name, the answer has the addresses of all.
        """
        lowered = tuple(dict.fromkeys(name.lower() for name in names))
        with self._lock:
            client = self._clients.setdefault(token, _Client())
            client.addresses[bridge], client.names[bridge] = tuple(addresses), lowered
            known = self._names.setdefault(bridge, {})
            for address in addresses:
                self._by_address[address] = client
            for name in lowered:
                known.setdefault(name, []).extend(addresses)

    def remove_container(self, token: Hashable, bridge: str | None = None) -> None:
        """Remove a container from a network, or (None) from all. An unknown one is not an error."""
        with self._lock:
            client = self._clients.get(token)
            if client is None:
                return
            for each in (bridge,) if bridge else tuple(client.addresses):
                self._forget(client, each)
            if not client.addresses:
                del self._clients[token]

    def _forget(self, client: _Client, bridge: str) -> None:
        known = self._names.get(bridge, {})
        gone = client.addresses.pop(bridge, ())
        for name in client.names.pop(bridge, ()):
            left = known.get(name, [])
            for address in gone:
                if address in left:
                    left.remove(address)
            if not left:
                known.pop(name, None)
        for address in gone:
            self._by_address.pop(address, None)

    def set_policy(
        self, token: Hashable, servers: DNS | None, egress: Egress | None, peers: Sequence[Peer] | None = None
    ) -> None:
        """Set the servers and the allowed names of a container. The default is all names, and the host's servers.

        Args:
            token: the container.
            servers: the servers; None for the host's.
            egress: the rules that name the allowed names; None for all names.
            peers: the resolvers of its networks in other processes. They are asked for names that are not known
                here. None does not change them.
        """
        with self._lock:
            client = self._clients.setdefault(token, _Client())
            client.peers = client.peers if peers is None else tuple(peers)
            client.egress = egress
            client.servers = None if servers is None or servers.servers == "host" else tuple(servers.servers)

    # --- Answers

    def answer_locally(self, data: bytes, source: str) -> tuple[bytes | None, dns.Question | None]:
        """Answer questions that need no server.

        Args:
            data: the client's message.
            source: the client's address.

        Returns:
            The answer, or None, and the question for :meth:`forward` if a server must be asked.
        """
        try:
            asked = dns.question(data)
        except ValueError:
            return None, None
        with self._lock:
            client = self._by_address.get(source)
            if client is None:
                return dns.failure(asked, dns.REFUSED), None
            found = self._known(client, asked)
            peers = client.peers
        if found is not None:
            return dns.answer(asked, found), None
        if peers:
            return None, asked
        reply = self._refusal_of(client, asked, source)
        return (None, asked) if reply is None else (reply, None)

    def _refusal_of(self, client: _Client, asked: dns.Question, source: str) -> bytes | None:
        """Return the answer to a question that must not be sent to servers; None if it may be sent."""
        with self._lock:
            inward = all(bridge in self._internal for bridge in client.addresses)
        # Names of containers, typing mistakes in them, and private addresses must not be sent to servers.
        if "." not in asked.name or (asked.kind == dns.PTR and _is_private_pointer(asked.name)):
            return dns.failure(asked, dns.NO_NAME)
        refused = inward or (client.egress is not None and not _naming(client.egress, asked))
        if refused:
            self._log.add(Refusal(when=time.time(), kind="dns", source=source, name=asked.name, port=53))
            # Not "refused": musl does not accept that as an answer, and waits 5 s for another one.
            return dns.failure(asked, dns.NO_NAME)
        return dns.answer(asked, ()) if asked.kind in _UNFORWARDED else None

    def known(self, data: bytes, source: str) -> bytes | None:
        """Answer a question about a container; None for all other names. It is for peers with another default route."""
        try:
            asked = dns.question(data)
        except ValueError:
            return None
        with self._lock:
            client = self._by_address.get(source)
            found = None if client is None else self._known(client, asked)
        return None if found is None else dns.answer(asked, found)

    def _known(self, client: _Client, asked: dns.Question) -> Sequence[str] | None:
        """Return the addresses of a container that shares a network with the client, or None."""
        if asked.kind == dns.PTR:
            for bridge in client.addresses:
                for name, addresses in self._names.get(bridge, {}).items():
                    if any(dns.reverse(each) == asked.name for each in addresses):
                        return [name]
            return None
        found = [self._names.get(bridge, {}).get(asked.name) for bridge in client.addresses]
        if all(each is None for each in found):
            return None
        return [address for each in found if each for address in each]

    def forward(self, asked: dns.Question, source: str, *, stream: bool = False) -> bytes:
        """Ask the servers, and return the answer for the client.

        If the client has egress rules, the addresses of the answer are allowed before it is returned. An answer with a
        private address that no network rule covers is refused.

        Args:
            asked: the question that :meth:`answer_locally` returned.
            source: the client's address.
            stream: whether the client asked by TCP.

        Side effects: opens sockets in the calling thread's network namespace, and closes them.
        """
        with self._lock:
            client = self._by_address.get(source)
            servers = (client.servers if client else None) or self._of_host()
            egress = client.egress if client else None
            addresses = [each for found in client.addresses.values() for each in found] if client else []
        for peer in client.peers if client else ():
            answer = peer(asked)
            if answer is not None:
                return dns.truncated(asked) if len(answer) > asked.size and not stream else answer
        if client is not None and client.peers and (judged := self._refusal_of(client, asked, source)) is not None:
            return judged
        reply = _ask(asked, servers, stream=stream)
        if client is None or reply is None:
            return dns.failure(asked, dns.SERVER_FAILURE)
        if egress is not None and not self._allowed(asked, reply, (egress, addresses, source)):
            return dns.failure(asked, dns.NO_NAME)
        if not stream and (len(reply) > asked.size or dns.is_truncated(reply)):
            return dns.truncated(asked)
        return struct.pack(">H", asked.number) + reply[2:]

    def _allowed(self, asked: dns.Question, reply: bytes, what: tuple[Egress, list[str], str]) -> bool:
        egress, addresses, source = what
        try:
            found = dns.records(reply)[:_MOST_ADDRESSES]
        except ValueError:
            return False
        if asked.kind not in _FORWARDED:
            return not found
        for record in found:
            if not _is_public(record.address) and not _covered(egress, record.address):
                refusal = Refusal(
                    when=time.time(), kind="rebinding", source=source, destination=record.address, name=asked.name
                )
                self._log.add(refusal)
                return False
        rules = _naming(egress, asked)
        try:
            for record in found:
                for address in addresses:
                    if self._rules is not None:
                        until = min(_MOST_S, max(_LEAST_S, record.ttl_s + 60.0))
                        self._rules.allow(address, record.address, rules, until)
        except SetupError:  # too many: an address that can't be allowed is not returned
            return False
        return True

    def _of_host(self) -> tuple[str, ...]:
        """Return the host's servers. The file is read again if it has changed."""
        try:
            found = os.stat(_RESOLV_CONF)
            status: object = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        except OSError:
            status = None
        if self._servers[0] != status or status is None:
            self._servers = status, host_servers()
        return self._servers[1]


def host_servers(path: str = _RESOLV_CONF) -> tuple[str, ...]:
    """Return the servers in a resolv.conf, or the host itself if there are none. Source: resolv.conf(5)."""
    found = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) > 1 and words[0] == "nameserver":
                    found.append(words[1])
    except OSError:
        pass
    return tuple(found) or ("127.0.0.1",)


def _is_private_pointer(name: str) -> bool:
    """Return whether a reverse name belongs to an address that no public server can know."""
    if name.endswith(".in-addr.arpa"):
        octets = name.removesuffix(".in-addr.arpa").split(".")[::-1]
        try:
            return len(octets) == 4 and ip_address(".".join(octets)).is_private
        except ValueError:
            return True
    nibbles = name.removesuffix(".ip6.arpa")
    return nibbles != name and nibbles.endswith((".c.f", ".d.f", ".e.f"))


def _naming(egress: Egress, asked: dns.Question) -> list[EgressRule]:
    """Return the rules that match the requested name."""
    return [each for each in egress.rules if each.is_name and _matches(each.what, asked.name)]


def _matches(pattern: str, name: str) -> bool:
    if pattern.startswith("*."):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern


def _is_public(address: str) -> bool:
    """Return whether an address, and the IPv4 address that it may embed, is a public one."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = IPv4Address(parsed.packed[12:])
        if inner is not None and not _is_global(inner):
            return False
    return _is_global(parsed) and not parsed.is_multicast


_DOCUMENTATION: Final = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")))
"""Addresses for documentation. They do not count as private, because test beds use them as internet addresses.

Source: RFC 5737, RFC 3849.
"""


def _is_global(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global or any(address.version == each.version and address in each for each in _DOCUMENTATION)


def _covered(egress: Egress, address: str) -> bool:
    packed = ip_address(address).packed
    networks = [ip_network(each.what) for each in egress.rules if not each.is_name]
    return any(
        first <= packed <= last for network in networks for first, last in opened(network) if len(first) == len(packed)
    )


# --- Servers


def _ask(asked: dns.Question, servers: Sequence[str], *, stream: bool) -> bytes | None:
    """Ask one server after the other. Each question has its own socket and id, so that nobody can guess both."""
    for _ in range(_ROUNDS):
        for server in servers:
            number = secrets.randbelow(1 << 16)
            reply = None
            with suppress(OSError):
                reply = _by_stream(asked, server, number) if stream else _by_datagram(asked, server, number)
            if reply is None and stream:  # some servers answer only by UDP
                with suppress(OSError):
                    reply = _by_datagram(asked, server, number)
                reply = None if reply is None or dns.is_truncated(reply) else reply
            if reply is not None:
                return reply
    return None


def _place(server: str) -> tuple[int, Any]:
    address, _, scope = server.partition("%")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    if family == socket.AF_INET:
        return family, (address, 53)
    return family, (address, 53, 0, socket.if_nametoindex(scope) if scope else 0)


def _by_datagram(asked: dns.Question, server: str, number: int) -> bytes | None:
    family, place = _place(server)
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.connect(place)
        asking.send(dns.ask(asked, number))
        until = time.monotonic() + _TIMEOUT_S
        while (left := until - time.monotonic()) > 0:
            asking.settimeout(left)
            reply = asking.recv(65535)
            if dns.answers(reply, number, asked):
                return reply
    return None


def _by_stream(asked: dns.Question, server: str, number: int) -> bytes | None:
    family, place = _place(server)
    with socket.socket(family, socket.SOCK_STREAM) as asking:
        asking.settimeout(_TIMEOUT_S)
        asking.connect(place)
        message = dns.ask(asked, number)
        asking.sendall(struct.pack(">H", len(message)) + message)
        reply = receive(asking)
    return reply if reply is not None and dns.answers(reply, number, asked) else None


def receive(stream: socket.socket) -> bytes | None:
    """Read one message from a stream, or None at its end."""
    data = b""
    while len(data) < 2 or len(data) < 2 + struct.unpack_from(">H", data)[0]:
        more = stream.recv(65537 - len(data))
        if not more:
            return None
        data += more
    return data[2 : 2 + struct.unpack_from(">H", data)[0]]
