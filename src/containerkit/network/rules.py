"""The rules of a router: which packets of containers pass, and which are refused and logged.

There are two tables in the router's network namespace, owned by one socket. The table of family *bridge* guards each
port: only frames with the port's own MAC and addresses pass. The table of family *inet* decides what is forwarded:
no packet between networks, no packet out of an internal one, and otherwise the packets that egress rules allow.

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
from containerkit.network import guard
from containerkit.network import nfnetlink as nft
from containerkit.network.guard import GROUP, NAME, ifname, packed
from containerkit.network.nfnetlink import Element, Message, Nfnetlink
from containerkit.network.tables import MOST_PORTS, NEVER, PROTOCOLS, asked_elements, asked_sets, inet_table, opened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from containerkit.spec.network import Egress, EgressRule

__all__ = ["GROUP", "NAME", "NEVER", "RouterRules", "asked_elements", "asked_sets", "ifname", "opened", "packed"]

_MOST_NAMED: Final = 4096
"""The maximum number of elements for the names of one address, so that a name server can't fill the kernel's memory."""


class RouterRules:
    """The tables of one router, with the ports, addresses and destinations in them.

    Any thread may use it.

    Args:
        socket: a socket in the router's network namespace. It owns the tables, which are deleted with it.
        uplink: the router's interface towards the outside.
        masquerade: whether packets that leave by the uplink get the uplink's address, if the host does not do so.

    Raises:
        UnsupportedError: the kernel does not support the rules.
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
        socket.batch([*inet_table(uplink, masquerade=masquerade), *guard.table()])

    # --- Bridges and ports

    def add_bridge(self, name: str, *, internal: bool = False) -> None:
        """Add a bridge. Its containers may use the uplink unless it is internal.

        Args:
            name: the interface.
            internal: whether to drop all packets in and out.
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
        """Let frames with these addresses pass from a port of a bridge. Before this, no frame passes.

        Args:
            port: the interface in the router.
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
        """Remove a port. No frame passes from it any more. An unknown one is not an error."""
        with self._lock:
            known, addresses = self._ports.pop(port, ([], ()))
            if known:
                self._socket.batch([each._replace(kind=14, flags=0) for each in known])
                self._judged.update(addresses)

    # --- Egress

    def set_egress(self, addresses: Sequence[str], egress: Egress | None) -> None:
        """Replace the egress rules of a container.

        Args:
            addresses: the addresses of the container.
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
            destination: the address in the name's answer.
            rules: the rules with that name.
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
            if address not in self._restricted:  # the container ended while its question was answered
                return
            now = time.monotonic()
            known = self._named.setdefault(address, {})
            if len(known) + len(keys) > _MOST_NAMED:
                known = self._named[address] = {k: until for k, until in known.items() if until > now}
            if len(keys | known.keys()) > _MOST_NAMED:
                hint = f"its names already have {_MOST_NAMED} addresses and ports, which is the maximum"
                raise SetupError("nft new element", ENOSPC, f"{NAME} named{version} of {address}", hint)
            add = nft.elements(nft.INET, NAME, f"named{version}", [Element(k, timeout_s=timeout_s) for k in keys])
            # The kernel keeps the old timeout of an existing element, so it is deleted first.
            again = [Element(k) for k in keys & known.keys()]
            self._gone(version, again)
            self._socket.batch(add)
            known.update(dict.fromkeys(keys, now + timeout_s))

    def set_host_addresses(self, addresses: Iterable[str]) -> None:
        """Refuse these addresses unless egress rules name them as networks. They replace those of the previous call.

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
        protocols = [PROTOCOLS[rule.protocol]] if rule.protocol else [6, 17] if rule.ports else [0]
        ports = [port for low, high in rule.ports for port in range(low, high + 1)] or [0]
        found |= {(protocol, port) for protocol in protocols for port in ports}
    return found
