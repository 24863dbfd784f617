"""The network namespace of a container, with an interface for each of its networks."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from containerkit import _native
from containerkit._native import constants as k
from containerkit.namespace import Kind, Namespace
from containerkit.network import links
from containerkit.network.router import ALL_GROUPS, UPLINK_MTU, entering
from containerkit.network.sysctls import has_ipv6, write_sysctl
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.start.staging import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from containerkit.network.router import Router
    from containerkit.spec.network import Egress

__all__ = [
    "OWN",
    "OWNER",
    "Endpoint",
    "Wire",
    "join",
    "make_owned",
    "may_take_short_way",
    "messages",
    "plan_of",
    "shape",
]

_PROC: Final = Slot("proc")
_ROUTER: Final = Slot("net")
OWNER: Final = Slot("owner")
OWN: Final = Slot("endpoint")
"""The descriptor of the container's network namespace."""
_USER: Final = Slot("user namespace")
_THERE: Final = Slot("router's rtnetlink")
_HERE: Final = Slot("rtnetlink")
_SIOCGSKNS: Final = 0x894C
_F_DUPFD_CLOEXEC: Final = 1030
_HINT: Final = "a limit on network namespaces may be reached: see user.max_net_namespaces"
_SETTINGS: Final = {
    # No process inside has privileges over this namespace, so it can't change these settings.
    "ipv4/ip_unprivileged_port_start": "0",
}
_SETTINGS6: Final = {
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/accept_redirects": "0",
    "ipv6/conf/default/addr_gen_mode": "1",  # no addresses except those set here
}


_LAST_OF_RANGE: Final = 65_535
_ALL_GROUPS_BEFORE_6_5: Final = 2**31 - 1
_OF_ONE: Final = {"accept_ra": "0", "addr_gen_mode": "1"}


class Wire(NamedTuple):
    """One interface of a container, and the port of the bridge at its other end.

    Attributes:
        bridge, bridge_index: the bridge in the router.
        port, port_index: the port in the router.
        mac, port_mac: the MAC of the interface, and of the port.
        interface, number: the name and index of the interface inside.
        addresses: the addresses with their prefixes.
        gateways: the addresses of the bridge.
        gateway_mac: the MAC of the bridge.
        has_default_route: whether the default routes lead to the gateways.
        mtu: in bytes.
        isolated: whether it can't reach other ports.
        down, up: the highest rates in bits per second, or None.
    """

    bridge: str
    bridge_index: int
    port: str
    port_index: int
    mac: str
    port_mac: str
    interface: str
    number: int
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    gateway_mac: str
    has_default_route: bool
    mtu: int
    isolated: bool
    down: int | None
    up: int | None


def may_take_short_way(wire: Wire, egress: Egress | None) -> bool:
    """Return whether published ports of a container may have the short way through the router.

    The router's rules must see all packets of a container with egress rules. The queue of its port must see all that go
    to one with a limited rate. Packets that are too large for the uplink need an answer of the router.
    """
    return wire.has_default_route and egress is None and wire.down is None and wire.mtu <= UPLINK_MTU


def wiring(wire: Wire, *, later: bool = False) -> list[Operation]:
    """Return the operations that make one interface, after both namespaces have a socket.

    Args:
        wire: the interface.
        later: whether the namespace existed before.
    """
    name, index = wire.interface, wire.number
    plain = [text.partition("/")[0] for text in wire.addresses]
    steps = [
        links.veth(
            _THERE,
            wire.port,
            name,
            OWN,
            index=wire.port_index,
            peer_index=index,
            mac=wire.port_mac,
            peer_mac=wire.mac,
            mtu=wire.mtu,
            master=wire.bridge_index,
            largest=links.LARGEST,
        ),
        links.large_segments(_THERE, wire.bridge_index, wire.bridge),
    ]
    if wire.isolated:
        steps.append(links.isolate(_THERE, wire.port_index, wire.port))
    if wire.down is not None:
        steps.append(links.rate(_THERE, wire.port_index, wire.down, wire.port, mtu=wire.mtu))
    # The gateway has a permanent neighbour entry for the container and vice versa. Neither asks, so nobody can spoof an
    # answer.
    steps += [links.neighbour(_THERE, wire.bridge_index, address, wire.mac, wire.bridge) for address in plain]
    if later and has_ipv6():
        steps += [step for key, value in _OF_ONE.items() for step in write_sysctl(f"ipv6/conf/{name}/{key}", value)]
    steps.append(links.set_up(_HERE, name, index))
    if wire.up is not None:
        steps.append(links.rate(_HERE, index, wire.up, name, mtu=wire.mtu))
    steps += [links.address(_HERE, index, address, name) for address in wire.addresses]
    steps += [links.neighbour(_HERE, index, gateway, wire.gateway_mac, name) for gateway in wire.gateways]
    if wire.has_default_route:
        steps += [links.default_route(_HERE, index, gateway, name) for gateway in wire.gateways]
    # After the kernel has answered for each interface, its deferred work is done, and the first packet is not lost.
    steps += [links.look_at(_THERE, wire.port), links.look_at(_THERE, wire.bridge), links.look_at(_HERE, name)]
    return steps


def settings_of(sysctls: Mapping[str, str], last_group: int = ALL_GROUPS) -> list[Operation]:
    """Return the operations that configure the network namespace of a container.

    Args:
        sysctls: more parameters, by their path below ``net``.
        last_group: the highest group id in the user namespace that owns it. All groups up to it may use ping.
    """
    # The kernel refuses a range with unmapped groups: then ping needs a privilege inside. Before 6.5 it also refuses
    # one beyond 2**31, and the smaller one stays.
    ends = sorted({min(last_group, _ALL_GROUPS_BEFORE_6_5), last_group})
    ping = [step for end in ends for step in write_sysctl("ipv4/ping_group_range", f"0 {end}", refused=(EINVAL,))]
    settings = {**_SETTINGS, **(_SETTINGS6 if has_ipv6() else {}), **sysctls}
    return [*ping, *(step for name, value in settings.items() for step in write_sysctl(name, value))]


def plan_of(router: Router, wires: Iterable[Wire], sysctls: Mapping[str, str]) -> list[Operation]:
    """Return the plan with which a router's process makes the network namespace of a container.

    The slot ``endpoint`` gets its descriptor. The gates are those of a plan that is walked beside the caller, whose
    pidfd is in the slot ``owner``.
    """
    low = Slot("endpoint, low")
    return [
        *(calls.die_with_owner(OWNER) if router.privileged else ()),
        *entering(privileged=router.privileged),
        calls.unshare(k.CLONE_NEWNET, "network namespace", _HINT),
        *calls.netlink_socket(0, _HERE),
        calls.call("ioctl", _HERE, _SIOCGSKNS, target="network namespace", result=low),
        # A start assigns the low numbers.
        calls.call("fcntl", low, _F_DUPFD_CLOEXEC, _native.LOWEST, target="network namespace", result=OWN),
        calls.close(low),
        calls.release(calls.FIRST),
        *settings_of(sysctls, router.last_group),
        links.set_up(_HERE, "lo", 1),
        calls.setns(_ROUTER, k.CLONE_NEWNET, "router"),
        *calls.netlink_socket(0, _THERE),
        calls.await_release(gate=calls.GO_ON),
        *_named(step for wire in wires for step in wiring(wire)),
        calls.close(_HERE),
        calls.close(_THERE),
        calls.release(calls.LAST),
    ]


def shape(wire: Wire) -> tuple[object, ...]:
    """Return a key of the operations, without the content of their messages."""
    return (
        len(wire.addresses),
        len(wire.gateways),
        wire.has_default_route,
        wire.isolated,
        wire.down is None,
        wire.up is None,
    )


def messages(wires: Iterable[Wire]) -> list[bytes]:
    """Return the content of the messages of these interfaces, in the order of the plan."""
    steps = [step for wire in wires for step in wiring(wire)]
    return [block.content for step in steps if isinstance(block := step.args[1], Block)]


def _named(steps: Iterable[Operation]) -> list[Operation]:
    """Name the messages, so that their content can be replaced."""
    named: list[Operation] = []
    for number, step in enumerate(steps):
        socket, block, length = step.args
        assert isinstance(block, Block)
        named.append(step._replace(args=(socket, block._replace(name=f"message {number}"), length)))
    return named


def join(router: Router, wire: Wire, namespace: int) -> None:
    """Make another interface in an existing network namespace.

    Raises:
        SetupError: an operation failed; nothing is left behind.
    """
    steps = [
        *entering(privileged=router.privileged),
        calls.setns(_ROUTER, k.CLONE_NEWNET, "router"),
        *calls.netlink_socket(0, _THERE),
        calls.setns(OWN, k.CLONE_NEWNET, "network namespace of the container"),
        *calls.netlink_socket(0, _HERE),
        *wiring(wire, later=True),
        calls.close(_HERE),
        calls.close(_THERE),
    ]
    try:
        _walk(router, steps, {OWN.name: namespace})
    except BaseException:
        remove_port(router, wire.port)
        raise


def make_owned(router: Router, wires: Iterable[Wire], sysctls: Mapping[str, str], owner: int) -> int:
    """Make the network namespace of a container so that another user namespace owns it.

    A process with privileges only in that user namespace can enter it, such as an interpreter that enters its container
    by itself.

    Args:
        router, wires, sysctls: as for :func:`make`.
        owner: a descriptor of the user namespace.

    Raises:
        SetupError: an operation failed; nothing is left behind.
    """
    steps = [
        *entering(privileged=router.privileged),
        calls.setns(_USER, k.CLONE_NEWUSER, "user namespace of the container"),
        calls.unshare(k.CLONE_NEWNET, "network namespace", _HINT),
        calls.open_at(_PROC, b"thread-self/ns/net", k.O_RDONLY, OWN),
        *settings_of(sysctls, _LAST_OF_RANGE),
        *calls.netlink_socket(0, _HERE),
        links.set_up(_HERE, "lo", 1),
        calls.close(_HERE),
    ]
    fd = opened(steps, {**router.inputs(), _USER.name: owner}, (OWN.name,)).pop()
    try:
        for wire in wires:
            join(router, wire, fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def remove_port(router: Router, port: str) -> None:
    """Remove an interface by its port. It is not an error if it was removed with its namespace."""
    steps = [
        *router.inside(),
        *calls.netlink_socket(0, _THERE),
        links.delete_link(_THERE, port, tolerate=(ENOENT, 19)),  # ENODEV
        calls.close(_THERE),
    ]
    _walk(router, steps, {})


def _walk(router: Router, steps: list[Operation], slots: Mapping[str, int]) -> None:
    flags = _native.SHARE_FILES | _native.NO_PROCESS
    Program(Plan(tuple(steps))).run({**router.inputs(), **slots}, flags=flags)


@attrs.define(kw_only=True, eq=False, repr=False, weakref_slot=False)
class Endpoint(Namespace):
    """The network namespace of one container. Closing it releases its resources on all its networks."""

    _ends: list[Callable[[], Any]] = attrs.field(factory=list)
    _beside: list[Any] = attrs.field(factory=list)

    @classmethod
    def adopt(cls, fd: int, ends: list[Callable[[], Any]]) -> Endpoint:
        """Own a descriptor, and functions that are called in reverse order when it is closed."""
        status = os.fstat(fd)
        return cls(kind=Kind.NETWORK, device=status.st_dev, inode=status.st_ino, fd=fd, ends=ends)

    def also(self, end: Callable[[], Any]) -> None:
        """Register another function to call when it is closed."""
        self._ends.append(end)

    def beside(self, other: Any) -> None:
        """Own the interface of another network in the same namespace: pass names on to it, and close it too."""
        self._beside.append(other)
        self.also(other.close)

    def close(self) -> None:
        """Close the namespace and release everything that belongs to it. May be called twice."""
        super(Endpoint, self).close()  # noqa: UP008 - attrs replaces a class with slots, so super() fails
        while self._ends:
            self._ends.pop()()
