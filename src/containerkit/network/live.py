"""An open network: its bridge in the router of this process, its subnets, and the containers on it."""

from __future__ import annotations

import atexit
import os
import threading
import warnings
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from containerkit.descriptors import Closing
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError
from containerkit.network import endpoint, links, router
from containerkit.network.host import outward_mtu
from containerkit.network.leases import lease
from containerkit.network.parsed import ip_address, ip_network
from containerkit.network.sysctls import has_ipv6
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.weak import WeakMembers

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.container.lifecycle import Container
    from containerkit.network.endpoint import Wire
    from containerkit.network.leases import Lease
    from containerkit.network.refusals import Refusal
    from containerkit.spec.network import Attach, Network
    from containerkit.spec.traffic import Port

__all__ = ["Claim", "LiveNetwork", "release_all"]

_FIRST_INDEX: Final = 100
_OWN_MACS: Final = "02:63:6b:"  # bridges and their ports
_MOST_PORTS: Final = 1023
"""The largest number of ports of a bridge: BR_PORT_BITS in the kernel's net/bridge/br_private.h."""


_open: Final[WeakMembers[LiveNetwork]] = WeakMembers()


@atexit.register
def _close_all() -> None:
    """Close the networks that are open at exit, before the interpreter shuts down: then no thread can be waited for."""
    for network in list(_open):
        network.close()


class Claim(NamedTuple):
    """The claim of a container on a network: its interface and addresses.

    Attributes:
        live: the network.
        wire: its interface.
        addresses: its addresses without prefixes.
        names: its names on the network.
    """

    live: LiveNetwork
    wire: Wire
    addresses: tuple[str, ...]
    names: tuple[str, ...]


def release_all(claims: list[Claim]) -> None:
    """Release the claims in a list."""
    for claim in claims:
        claim.live.release(claim)


class LiveNetwork(Closing):
    """A network that is open until :meth:`close` or the end of ``with``; made by :meth:`containerkit.Network.open`.

    Any thread may use it. Pass it to containers as ``network=``, alone or in a :class:`containerkit.Attach`.

    Attributes:
        network: the description.
        subnets: its subnets, IPv4 first.
        gateways: the addresses of its bridge, which also answer DNS questions.
        mtu: the MTU of its interfaces, in bytes.
    """

    containerkit_network = True

    def __init__(self, network: Network) -> None:
        self.network = network
        self.mtu = outward_mtu() if network.mtu is None else network.mtu
        self.subnets: tuple[str, ...] = ()
        self.gateways: tuple[str, ...] = ()
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a collection in the midst of a claim may close a forgotten container
        self._closed = True  # until it is open
        self._used: set[int] = set()
        self._macs: set[str] = set()
        self._next = 0
        self._claims: dict[str, Claim] = {}
        self._leases: list[Lease] = []
        with ExitStack() as undo:
            self.router = router.current()
            undo.callback(router.leave, self.router)
            number = self.router.number()
            self.bridge = f"br{number}"
            self.index = _FIRST_INDEX + number
            self.mac = f"02:63:6b:01:{number >> 8 & 0xFF:02x}:{number & 0xFF:02x}"
            for wanted in sorted(network.subnets, key=lambda text: text == "auto6" or ":" in text):
                if wanted == "auto6" and not has_ipv6():
                    continue
                self._leases.append(lease(wanted, shared=self.router.privileged))
                undo.callback(self._leases[-1].release)
            networks = [each.subnet for each in self._leases]
            if not networks:
                raise UnsupportedError(
                    "open", 97, f"network {network.name}", "this kernel has no IPv6: pass subnets=('auto4',)"
                )
            self.subnets = tuple(map(str, networks))
            self.gateways = tuple(str(each.network_address + 1) for each in networks)
            self._make(undo)
            undo.pop_all()
            self._closed = False
            _open.add(self)

    def _make(self, undo: ExitStack) -> None:
        rules, host_rules = self.router.rules, self.router.host_rules
        if not self.network.internal:
            self.router.lead_out()
        rules.add_bridge(self.bridge, internal=self.network.internal)
        undo.callback(rules.remove_bridge, self.bridge)
        at = Slot("rtnetlink")
        prefixes = [text.partition("/")[2] for text in self.subnets]
        steps = [
            *self.router.inside(),
            *calls.netlink_socket(0, at),
            links.bridge(at, self.index, self.bridge, mac=self.mac, mtu=self.mtu),
        ]
        for gateway, prefix in zip(self.gateways, prefixes, strict=True):
            steps.append(links.address(at, self.index, f"{gateway}/{prefix}", self.bridge))
        steps += [links.look_at(at, self.bridge), calls.close(at)]
        self.router.run(steps)
        undo.callback(self._unmake)
        for subnet in () if self.network.internal else self.subnets:
            self.router.add_route(subnet, self.mtu)
            undo.callback(self.router.drop_route, subnet)
            if host_rules is not None:
                host_rules.add_subnet(subnet)
                undo.callback(host_rules.remove_subnet, subnet)
        self.router.attendant.add_network(self.bridge, self.gateways, internal=self.network.internal)

    def _unmake(self) -> None:
        at = Slot("rtnetlink")
        gone = links.delete_link(at, self.bridge, tolerate=(19,))
        self.router.run([*self.router.inside(), *calls.netlink_socket(0, at), gone, calls.close(at)])

    # --- Addresses

    def claim(
        self,
        attach: Attach,
        position: int,
        names: tuple[str, ...],
        *,
        has_default_route: bool,
        into: list[Claim] | None = None,
    ) -> Claim:
        """Claim addresses and a port for a container, until :meth:`release`.

        Args:
            attach: how it is attached.
            position: the position of this interface, from 0.
            names: its names, in addition to the aliases.
            has_default_route: whether its default routes lead to this network.
            into: a list of the caller, who releases what is in it if this raises, as a signal handler may do.

        Raises:
            StateError: the network was closed, or a fixed address or MAC is in use.
            SpecError: a fixed address is not in the network's subnets.
            SetupError: no port or no address is left, or a packet filter of the host now drops forwarded packets.
        """
        with self._lock:
            self._check_open()
            if not self.network.internal:
                self.router.check_forwarding()
            if len(self._claims) >= _MOST_PORTS:
                hint = f"a bridge has {_MOST_PORTS} ports; put the next containers on another network"
                raise SetupError("attach", 54, f"network {self.network.name}", hint)  # EXFULL
            number, fixed = self._place(attach)
            port = self.router.number()
            addresses = tuple(self._addresses(number, fixed))
            mac = attach.mac or _mac_of(addresses, port, self._macs)
            wire = endpoint.Wire(
                bridge=self.bridge,
                bridge_index=self.index,
                port=f"p{port}",
                port_index=_FIRST_INDEX + port,
                mac=mac,
                port_mac=f"02:63:6b:{port >> 16 & 0x3F | 0x40:02x}:{port >> 8 & 0xFF:02x}:{port & 0xFF:02x}",
                interface=attach.interface or f"eth{position}",
                number=2 + position,
                addresses=addresses,
                gateways=self.gateways,
                gateway_mac=self.mac,
                has_default_route=has_default_route and not self.network.internal,
                mtu=self.mtu,
                isolated=self.network.isolated,
                down=attach.rate.down,
                up=attach.rate.up,
            )
            plain = tuple(text.partition("/")[0] for text in addresses)
            claim = Claim(self, wire, plain, tuple(dict.fromkeys((*names, *attach.aliases))))
            if into is not None:
                into.append(claim)
            self._claims[wire.port] = claim
            self._macs.add(mac)
            self._used.update(self._offsets(claim))
            return claim

    def _place(self, attach: Attach) -> tuple[int, dict[int, str]]:
        """Choose a free host number within the subnets, and check the fixed addresses and MAC."""
        fixed: dict[int, str] = {}
        for text in attach.addresses:
            version = ip_address(text).version
            subnet = next((each for each in self.subnets if ip_network(each).version == version), None)
            network = None if subnet is None else ip_network(subnet)
            if network is None or ip_address(text) not in network:
                raise SpecError(f"address {text}: it is not in network {self.network.name} ({', '.join(self.subnets)})")
            offset = int(ip_address(text)) - int(network.network_address)
            last = network.num_addresses - 1 if version == 4 else -1
            if (kind := {0: "the network's own", 1: "the gateway's", last: "for broadcasts"}.get(offset)) is not None:
                raise SpecError(f"address {text}: it is {kind}; choose another one in {subnet}")
            if offset in self._used:
                raise StateError(f"address {text}: another container of network {self.network.name} has it")
            fixed[version] = text
        self._check_mac(attach.mac)
        taken = [int(ip_address(text)) - int(self._base(version)) for version, text in fixed.items()]
        return taken[0] if len(fixed) == len(self.subnets) else self._free(), fixed

    def _check_mac(self, mac: str | None) -> None:
        """Refuse the fixed MAC of another interface: each of the two would get the other's packets."""
        if mac is not None and (mac in self._macs or mac.startswith(_OWN_MACS)):
            whose = "the network itself" if mac.startswith(_OWN_MACS) else "another container"
            raise StateError(f"mac {mac}: {whose} has it on network {self.network.name}; choose another one")

    def _base(self, version: int) -> int:
        networks = (ip_network(each) for each in self.subnets)
        return next(int(each.network_address) for each in networks if each.version == version)

    def _free(self) -> int:
        """Return a free host number. Used ones are reused last."""
        most = min(ip_network(each).num_addresses for each in self.subnets) - 3
        for _ in range(most):
            number = 2 + self._next % most
            self._next += 1
            if number not in self._used:
                return number
        raise SetupError("lease", 99, f"network {self.network.name}", f"no address of {self.subnets[0]} is left")

    def _addresses(self, number: int, fixed: dict[int, str]) -> list[str]:
        found = []
        for each in self.subnets:
            network = ip_network(each)
            found.append(f"{fixed.get(network.version) or network.network_address + number}/{network.prefixlen}")
        return found

    def renamed(self, claim: Claim) -> None:
        """Register the present names of a container."""
        with self._lock:
            if claim.wire.port in self._claims:
                self._claims[claim.wire.port] = claim

    def release(self, claim: Claim) -> None:
        """Release the claim of a container. May be called twice."""
        with self._lock:
            if self._claims.pop(claim.wire.port, None) is None:
                return
            self._macs.discard(claim.wire.mac)
            self._used.difference_update(self._offsets(claim))

    def _offsets(self, claim: Claim) -> set[int]:
        addresses = map(ip_address, claim.addresses)
        return {int(each) - self._base(each.version) for each in addresses}

    # --- At run time

    def attach(self, container: Container, how: Attach | None = None) -> tuple[str, ...]:
        """Attach a running container with one more interface. Return its addresses.

        Args:
            container: a container with its own network namespace.
            how: its aliases, addresses and so on (default: no aliases, free addresses).

        Raises:
            StateError: it does not run, or is already on the network, or the network was closed.
            SpecError: an address is invalid.
            SetupError: an operation failed. Nothing is left behind.
        """
        from containerkit.network.later import attach_running

        return attach_running(self, container, how)

    def detach(self, container: Container) -> None:
        """Detach a container. Its interface is removed, its connections end, and its published ports are closed.

        Raises:
            StateError: it is not on the network.
        """
        from containerkit.network.later import detach_running

        detach_running(self, container)

    def addresses(self, container: Container) -> tuple[str, ...]:
        """Return the addresses of a container on this network, IPv4 first; empty if it is not on the network."""
        from containerkit.network.later import claims_of

        return tuple(text for claim in claims_of(container) if claim.live is self for text in claim.addresses)

    def inspect(self) -> dict[str, Any]:
        """Return its description and its containers as plain values."""
        with self._lock:
            members = [
                {"addresses": list(each.addresses), "mac": each.wire.mac, "names": list(each.names)}
                for each in self._claims.values()
            ]
        return {
            "name": self.network.name,
            "subnets": list(self.subnets),
            "gateways": list(self.gateways),
            "internal": self.network.internal,
            "mtu": self.mtu,
            "containers": members,
        }

    def ports(self, container: Container) -> tuple[Port, ...]:
        """Return the published ports of a container on this network, with the actual ports of the host."""
        import attrs

        from containerkit.network.later import published_of

        found = published_of(container) if self.addresses(container) else ()
        return tuple(attrs.evolve(each.port, host_port=each.host_port, last=None) for each in found)

    # --- What was refused

    def refusals(self) -> list[Refusal]:
        """Return the refusals of its containers since the last call, at most the latest 1,000."""
        return self.router.attendant.refusals(self.subnets)

    def on_refused(self, told: Callable[[Refusal], object] | None) -> None:
        """Call a function with each refusal from now on, in another thread. The function must not block.

        Args:
            told: the function, or None to stop.
        """
        self.router.attendant.set_listener(self.bridge, told, self.subnets)

    # --- Its end

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"{self!r}: it was closed; open a new one")
        if os.getpid() != self._pid:
            raise StateError(f"{self!r}: it belongs to the parent process; open a new one in the forked child")

    def close(self) -> None:
        """Close it. Containers that are still on it lose their connection to it.

        May be called twice, and has no effect in a forked child.
        """
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with ExitStack() as ends:
            for each in self._leases:
                ends.callback(each.release)
            ends.callback(router.leave, self.router, self._take_back)
            ends.callback(self.router.attendant.remove_network, self.bridge)
            ends.callback(self.router.attendant.set_listener, self.bridge, None)

    def _take_back(self) -> None:
        with ExitStack() as ends:
            ends.callback(self.router.rules.remove_bridge, self.bridge)
            ends.callback(self._unmake)
            for subnet in () if self.network.internal else self.subnets:
                ends.callback(self.router.drop_route, subnet)
                if self.router.host_rules is not None:
                    ends.callback(self.router.host_rules.remove_subnet, subnet)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and getattr(self, "_leases", None) and self._pid == os.getpid():
            warnings.warn(f"{self!r} was never closed: use 'with', or close()", ResourceWarning, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{', '.join(self.subnets)}, {len(self._claims)} containers"
        return f"<LiveNetwork {self.network.name}: {state}>"


def _mac_of(addresses: tuple[str, ...], port: int, used: set[str]) -> str:
    """Return a unique MAC, derived from the IPv4 address unless a fixed MAC is equal."""
    four = next((text for text in addresses if ":" not in text), None)
    other = "0a:58:" + (b"\xfe" + port.to_bytes(3, "big")).hex(":")
    own = "0a:58:" + ip_address(four.partition("/")[0]).packed.hex(":") if four else other
    return other if own in used else own
