"""Networks as values: networks, attachments, DNS, rates, macvlan and CNI.

Ports and egress rules are in ``traffic.py``.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit import late
from containerkit.errors import SpecError
from containerkit.security.checks import check_bool
from containerkit.spec.traffic import Egress, EgressRule, Port, address, check_ports, host_name, number
from containerkit.spec.words import sequence

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from containerkit.network import LiveNetwork
    from containerkit.network.kept import Kept
    from containerkit.options import ListOf

__all__ = [
    "CNI",
    "DNS",
    "OTHER",
    "Attach",
    "Egress",
    "EgressRule",
    "Macvlan",
    "Network",
    "Port",
    "Rate",
    "check_connection",
    "check_hosts",
    "check_ports",
    "host_name",
    "is_network",
    "network_choice",
]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ID: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,253}")
OTHER: Final = "container:"
"""The prefix of the id or name of a container of another process."""
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_DEVICE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_AUTO: Final = ("auto4", "auto6")
_LEAST_MTU, _LARGEST_MTU = 1280, 65_535
_RATE_UNITS: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_SMALLEST_RATE: Final = 8_000


def _name(value: object, what: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise SpecError(f"{what}: {value!r:.100} must be 1 to 63 letters, digits, '_', '.' or '-'")
    return value


def _subnet(value: object) -> str:
    if isinstance(value, str) and value in _AUTO:
        return value
    if not isinstance(value, str):
        raise SpecError(f"subnets: {value!r:.100} is not a subnet such as '10.9.0.0/24', 'auto4' or 'auto6'")
    try:
        network = ip_network(value)
    except ValueError as error:
        raise SpecError(f"subnets: {value!r:.100}: {error}") from None
    least = 4 if network.version == 4 else 8
    if network.max_prefixlen - network.prefixlen < least - 1 or network.prefixlen < 8:
        raise SpecError(f"subnets: {value!r} is too small for a container, or larger than a /8")
    if network.is_multicast or network.is_loopback or network.is_link_local or network.is_unspecified:
        raise SpecError(f"subnets: {value!r} contains addresses that no container can have")
    return str(network)


def _subnets(values: ListOf[str]) -> tuple[str, ...]:
    subnets = tuple(_subnet(value) for value in sequence(values, "subnets"))
    versions = [6 if value == "auto6" or ":" in value else 4 for value in subnets]
    if not subnets or len(set(versions)) != len(versions):
        raise SpecError(f"subnets: one of IPv4, one of IPv6, or one of each, not {values!r:.100}")
    return subnets


def _network_name(value: str) -> str:
    return _name(value, "network")


@attrs.frozen
class Network:
    """A network of containers: a bridge, addresses, names, and, unless it is internal, access to the outside.

    ::

        with Network("app").open() as net, Container(network=Attach(net, aliases=["db"])) as db: ...

    If it is passed to a container without ``open()``, it is opened then and stays open until this process ends. All
    containers that get an equal description are on the same network.

    Args:
        name: a name for display. Two processes may use the same name for different networks.
        subnets: one of IPv4, one of IPv6, or one of each: ``"auto4"`` and ``"auto6"`` (default both) choose a subnet
            that overlaps no route of the host and no other network of this library.
        internal: whether its containers can reach neither the outside nor the host (default False).
        mtu: bytes, 1280 to 65535 (default: that of the host's default route, at most 1500).
        isolated: whether its containers can reach only the outside, not each other (default False).

    Raises:
        SpecError: a value is invalid.
    """

    name: str = attrs.field(default="default", converter=_network_name)
    subnets: tuple[str, ...] = attrs.field(default=_AUTO, converter=_subnets, kw_only=True)
    internal: bool = attrs.field(default=False, kw_only=True)
    mtu: int | None = attrs.field(default=None, kw_only=True)
    isolated: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        check_bool(self.internal, "internal")
        check_bool(self.isolated, "isolated")
        if self.mtu is not None:
            number(self.mtu, "mtu", _LEAST_MTU, _LARGEST_MTU)

    def open(self) -> LiveNetwork:
        """Create the network and return it.

        Raises:
            UnsupportedError: this host lacks something that the network needs.
            SetupError: an operation failed. Nothing is left behind.

        Side effects: a network namespace with a bridge exists until its ``close()`` or the end of this process, even if
        it is killed. For root the host also gets a link, routes and a table of packet filters, for the same time.
        """
        live: LiveNetwork = late.load(late.NETWORK).open_network(self)
        return live


def _rate(value: int | str | None) -> int | None:
    if value is None:
        return None
    number: float = -1
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)", value)):
        number = float(found[1]) * _RATE_UNITS[found[2]]
    if not _SMALLEST_RATE <= number <= 10**12:
        raise SpecError(f"rate: {value!r:.100} is not a number of bits per second from 8000, such as '100M'")
    return int(number)


@attrs.frozen(kw_only=True)
class Rate:
    """The highest rates of an interface.

    Args:
        down: bits per second to the container, a number or text such as ``"100M"`` (powers of 1000). Default:
            unlimited.
        up: bits per second from the container. Default: unlimited.

    Raises:
        SpecError: the value is below 8 kbit/s, or not a rate.

    Source: tc-tbf(8).
    """

    down: int | None = attrs.field(default=None, converter=_rate)
    up: int | None = attrs.field(default=None, converter=_rate)


def _aliases(values: ListOf[str]) -> tuple[str, ...]:
    return tuple(host_name(value, "aliases") for value in sequence(values, "aliases"))


def _addresses(values: ListOf[str]) -> tuple[str, ...]:
    found = tuple(address(value, "addresses") for value in sequence(values, "addresses"))
    versions = [":" in value for value in found]
    if len(set(versions)) != len(versions):
        raise SpecError("addresses: at most one of IPv4 and one of IPv6")
    return found


def _mac(value: str | None) -> str | None:
    if value is None:
        return None
    text = value.lower() if isinstance(value, str) else ""
    if not _MAC.fullmatch(text) or int(text[:2], 16) & 1 or text == "00:00:00:00:00:00":
        raise SpecError(f"mac: {value!r:.100} is not the unicast address of an interface, such as '02:00:00:00:00:01'")
    return text


@attrs.frozen
class Attach:
    """How a container is attached to a network.

    Args:
        network: a :class:`Network`, one that is open, or ``"internet"``.
        aliases: more names of the container on this network.
        addresses: fixed addresses, at most one of IPv4 and one of IPv6 (default: free ones).
        mac: the fixed address of its interface, which no other interface of the network has (default: made from the
            IPv4 address).
        rate: the highest rates of the interface (default unlimited).
        interface: the name of the interface inside (default eth0, eth1 and so on).

    Raises:
        SpecError: a value is invalid.
    """

    network: Network | LiveNetwork | Kept | Literal["internet"]
    aliases: tuple[str, ...] = attrs.field(default=(), converter=_aliases, kw_only=True)
    addresses: tuple[str, ...] = attrs.field(default=(), converter=_addresses, kw_only=True)
    mac: str | None = attrs.field(default=None, converter=_mac, kw_only=True)
    rate: Rate = attrs.field(default=Rate(), kw_only=True)
    interface: str | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.network != "internet" and not is_network(self.network):
            raise SpecError(f"attach: {self.network!r:.100} is not a Network; use Attach(Network('app'), ...)")
        if not isinstance(self.rate, Rate):
            raise SpecError(f"attach: {self.rate!r:.100} is not a Rate; use Rate(down='100M')")
        if self.interface is not None:
            _device(self.interface, "interface")
            if self.interface in ("lo", ".", ".."):
                raise SpecError(f"interface: {self.interface!r} is not a valid name of an interface")


def _device(value: object, what: str) -> str:
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise SpecError(f"{what}: {value!r:.100} must be 1 to 15 letters, digits, '_', '.' or '-'")
    return value


def is_network(value: object) -> bool:
    """Return whether an object is a network, described or open."""
    return isinstance(value, Network) or hasattr(value, "containerkit_network")


def _servers(values: Literal["host"] | ListOf[str]) -> Literal["host"] | tuple[str, ...]:
    if values == "host":
        return "host"
    return tuple(address(value, "dns servers") for value in sequence(values, "dns servers"))


def _search(values: ListOf[str]) -> tuple[str, ...]:
    return tuple(host_name(value, "dns search") for value in sequence(values, "dns search"))


def _options(values: ListOf[str]) -> tuple[str, ...]:
    options = sequence(values, "dns options")
    for option in options:
        if not isinstance(option, str) or not re.fullmatch(r"[a-z0-9-]+(:[0-9]+)?", option):
            raise SpecError(f"dns options: {option!r:.100} is not an option of resolv.conf(5)")
    return options


@attrs.frozen(kw_only=True)
class DNS:
    """How a container resolves names that do not belong to its networks.

    Args:
        servers: the addresses of name servers, or ``"host"`` (default) for those that the host uses.
        search: domains that are tried for a name without dots.
        options: of resolv.conf(5), such as ``"ndots:2"``.

    Raises:
        SpecError: a value is invalid.
    """

    servers: Literal["host"] | tuple[str, ...] = attrs.field(default="host", converter=_servers)
    search: tuple[str, ...] = attrs.field(default=(), converter=_search)
    options: tuple[str, ...] = attrs.field(default=(), converter=_options)


def _parent(value: str) -> str:
    return _device(value, "macvlan: parent")


def _interface(value: object) -> str:
    text = value if isinstance(value, str) else ""
    base, slash, prefix = text.partition("/")
    most = 128 if ":" in base else 32
    if not slash or not prefix.isdecimal() or not 1 <= int(prefix) <= most:
        raise SpecError(f"addresses: {value!r:.100} is not an address with a prefix, such as '192.0.2.9/24'")
    return f"{address(base, 'addresses')}/{int(prefix)}"


def _interfaces(values: ListOf[str]) -> tuple[str, ...]:
    return tuple(map(_interface, sequence(values, "macvlan: addresses")))


def _gateways(values: ListOf[str]) -> tuple[str, ...]:
    return tuple(address(value, "macvlan: gateway") for value in sequence(values, "macvlan: gateway"))


@attrs.frozen
class Macvlan:
    """An interface of the container directly on one of the host's networks.

    The rules of this library do not apply to it.

    Args:
        parent: the host's interface, such as ``"eth0"``.
        addresses: with prefix, such as ``"192.0.2.9/24"``. The container has no privileges to add addresses itself.
        gateway: addresses of routers (default none).
        mode: ``"bridge"`` (default), ``"private"``, ``"vepa"`` or ``"passthru"``.
        mac, mtu: as for :class:`Attach` and :class:`Network` (default: the kernel's choice).

    Only root can use it. Source: ip-link(8), "macvlan".
    """

    parent: str = attrs.field(converter=_parent)
    addresses: tuple[str, ...] = attrs.field(default=(), converter=_interfaces, kw_only=True)
    gateway: tuple[str, ...] = attrs.field(default=(), converter=_gateways, kw_only=True)
    mode: Literal["bridge", "private", "vepa", "passthru"] = attrs.field(default="bridge", kw_only=True)
    mac: str | None = attrs.field(default=None, converter=_mac, kw_only=True)
    mtu: int | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.mode not in ("bridge", "private", "vepa", "passthru"):
            raise SpecError(f"macvlan: the mode {self.mode!r:.100} is not bridge, private, vepa or passthru")
        if self.mtu is not None:
            number(self.mtu, "mtu", 68, _LARGEST_MTU)


def _plugins(values: ListOf[str]) -> tuple[str, ...]:
    return sequence(values, "cni: plugins")


@attrs.frozen
class CNI:
    """A network that plugins of the Container Network Interface make from a configuration list.

    Args:
        config: the path of a ``.conflist`` (or ``.conf``), or the name of a network in /etc/cni/net.d.
        plugins: directories in which plugins are looked for (default ``/opt/cni/bin``, ``/usr/lib/cni`` and
            ``/usr/libexec/cni``).
        aliases: passed to the plugins with the capability ``aliases``.

    Only root can use it. If this process crashes, what the plugins made stays until ``containerkit gc``.
    Source: the CNI specification 1.0.0.
    """

    config: str | os.PathLike[str]
    plugins: tuple[str, ...] = attrs.field(
        default=("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"), converter=_plugins, kw_only=True
    )
    aliases: tuple[str, ...] = attrs.field(default=(), converter=_aliases, kw_only=True)

    def __attrs_post_init__(self) -> None:
        import os

        try:
            text = os.fspath(self.config)
        except TypeError as error:
            raise SpecError(f"cni: {error}") from None
        if not isinstance(text, str) or not text or "\0" in text:
            raise SpecError(f"cni: {self.config!r:.100} is neither a path nor a name")


_GATEWAY: Final = "host-gateway"


def check_hosts(pairs: Iterable[object]) -> tuple[tuple[str, str], ...]:
    """Return names and addresses of /etc/hosts; an address may be ``"host-gateway"``.

    Raises:
        SpecError: an entry is invalid.
    """
    found: list[tuple[str, str]] = []
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise SpecError(f"hosts: must be a mapping of names to addresses, not {pair!r:.100}")
        name, where = pair
        known = _GATEWAY if where == _GATEWAY else address(where, f"hosts: {name!r:.100}")
        found.append((host_name(name, "hosts"), known))
    return tuple(found)


def network_choice(value: Any) -> Any:
    """Check the value of ``network=`` and return it. Several networks become a tuple of :class:`Attach`.

    Raises:
        SpecError: it is none of these.
    """
    if isinstance(value, (list, tuple)):
        listed = tuple(each if isinstance(each, Attach) else Attach(each) for each in value)
        names = [each.interface for each in listed if each.interface]
        if (
            not listed
            or len(set(names)) != len(names)
            or any(one.network == two.network for one, two in combinations(listed, 2))
        ):
            raise SpecError("network: several attachments must name different networks and different interfaces")
        return listed
    if isinstance(value, (Attach, Macvlan, CNI)) or is_network(value) or hasattr(value, "keep_until_stopped"):
        return value
    if isinstance(value, str) and value.startswith(OTHER) and _ID.fullmatch(value.removeprefix(OTHER)):
        return value
    known = (
        "'none', 'host', 'internet', a Network, an Attach or several, a container or 'container:ID', a Macvlan or a CNI"
    )
    raise SpecError(f"network: {value!r:.100} is not {known}")


def check_connection(spec: Any) -> None:
    """Refuse a description whose network options contradict each other.

    Args:
        spec: the :class:`containerkit.spec.container.Spec`.

    Raises:
        SpecError: they contradict each other.
    """
    network = spec.network
    told = (("egress", Egress, "Egress.only('pypi.org')"), ("dns", DNS, "DNS(servers=['192.0.2.53'])"))
    for name, kind, example in told:
        value = getattr(spec, name)
        if value is not None and not isinstance(value, kind):
            raise SpecError(f"{name}: {value!r:.100} is not a {kind.__name__}; use {example}")
    if network not in ("none", "host") and spec.namespaces.network != "new":
        raise SpecError("network: namespaces.network is given too; pass only one of them")
    if network == "host" and spec.namespaces.network != "host":
        raise SpecError("network: 'host' and namespaces.network differ; pass only one of them")
    bridged = network == "internet" or is_network(network) or isinstance(network, (Attach, tuple))
    if spec.publish and not (bridged or isinstance(network, CNI)):
        raise SpecError(
            "publish: ports can be published only for a container on a network: pass network='internet', or a Network "
            "(--network internet, or one of 'containerkit network create')"
        )
    if spec.egress is not None and not bridged:
        raise SpecError("egress: rules need a network of this library: pass network='internet', or a Network")
    shares = hasattr(network, "keep_until_stopped") or (isinstance(network, str) and network.startswith(OTHER))
    if shares and (spec.hosts or spec.dns is not None):
        raise SpecError("network: a container that shares another's network also shares its hosts and dns")
    if any(key.startswith("net.") for key, _ in spec.sysctls) and shares:
        raise SpecError("sysctls: the network belongs to another container; set net.* on that container")
