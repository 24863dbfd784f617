"""Operations of rtnetlink: links, addresses, routes and neighbours, one message each.

Pure functions: each returns an operation of a plan, for a netlink socket in the namespace concerned.
Source: rtnetlink(7), the kernel's include/uapi/linux/if_link.h, rtnetlink.h, if_addr.h, neighbour.h, veth.h.
"""

from __future__ import annotations

from errno import EINVAL
from struct import pack
from typing import TYPE_CHECKING, Final

from containerkit.network.parsed import ip_address, ip_network
from containerkit.plan import calls
from containerkit.plan.netlink import CREATE, EXCLUDE, REPLACE, attribute, message

if TYPE_CHECKING:
    from containerkit.plan.operation import Operation, Slot

__all__ = [
    "LARGEST",
    "address",
    "bridge",
    "default_route",
    "delete_link",
    "gone_route",
    "large_segments",
    "look_at",
    "mac_bytes",
    "macvlan",
    "neighbour",
    "rate",
    "route",
    "set_up",
    "veth",
]

_NEWLINK, _DELLINK, _GETLINK, _NEWADDR, _NEWROUTE, _DELROUTE, _NEWNEIGH, _NEWQDISC = 16, 17, 18, 20, 24, 25, 28, 36
_ADDRESS, _NAME, _MTU, _LINK, _MASTER, _INFO, _ALIAS, _NS_FD = 1, 3, 4, 5, 10, 18, 20, 28
_TX_QUEUES, _RX_QUEUES = 31, 32
_GSO_IPV4: Final = 63  # IFLA_GSO_IPV4_MAX_SIZE
_INFO_KIND, _INFO_DATA = 1, 2
_INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _PORT_ISOLATED = 4, 5, 33
_VETH_PEER: Final = 1
_NESTED: Final = 0x8000
_UP: Final = 1
_NODAD: Final = 2
_INET, _INET6 = 2, 10
_PERMANENT: Final = 0x80
_ONLINK: Final = 4
_MAIN_TABLE, _BOOT, _STATIC = 254, 3, 4
_LINK_SCOPE: Final = 253
_METRICS, _METRIC_MTU = 8, 2
_MODES: Final = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
_TICKS_PER_US: Final = 15.625
"""Ticks of the packet scheduler, 64 ns each. Source: PSCHED_SHIFT in the kernel's include/net/pkt_sched.h."""

LARGEST: Final = 185_000
"""The bytes of the largest segment of TCP over IPv4 that the host and a router pass to a container in one piece.

By default it is 64 KiB. Every packet between them costs the same whatever its size is, and none of these interfaces
cuts them. A segment becomes one of 64 KiB at most on an interface that has not been told otherwise, such as a
container's own or a network card. Linux before 6.3 ignores the attribute.
"""


def mac_bytes(text: str) -> bytes:
    """Return the bytes of an address such as ``02:00:00:00:00:01``."""
    return bytes.fromhex(text.replace(":", ""))


def _header(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return pack("=BxHiII", 0, 0, index, flags, change)


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, pack("=I", value))


def bridge(socket: Slot, index: int, name: str, *, mac: str, mtu: int) -> Operation:
    """Make a bridge with a given index, and bring it up.

    Its own MAC is fixed, because otherwise it would change when ports are added and removed.
    """
    info = attribute(_INFO | _NESTED, _text(_INFO_KIND, "bridge"))
    parts = (_text(_NAME, name), attribute(_ADDRESS, mac_bytes(mac)), _number(_MTU, mtu), info)
    body = message(_NEWLINK, CREATE | EXCLUDE, _header(index, _UP, _UP), *parts)
    return calls.netlink(socket, body, f"RTM_NEWLINK bridge {name}")


def veth(
    socket: Slot,
    name: str,
    peer: str,
    peer_namespace: Slot,
    *,
    index: int,
    peer_index: int = 0,
    mac: str,
    peer_mac: str,
    mtu: int,
    master: int = 0,
    up: bool = True,
    alias: str = "",
    largest: int = 0,
    peer_largest: int = 0,
) -> Operation:
    """Make a pair of interfaces: one in this namespace, its peer in another one, where the peer must be brought up.

    Args:
        socket: a netlink socket in the namespace of the first.
        name, mac, index: those of the first.
        peer, peer_mac, peer_index: those of the peer. With the index 0 the kernel chooses one.
        peer_namespace: the slot with the descriptor of the other's network namespace.
        mtu: the MTU of both.
        master: the index of the bridge of which the first is a port, or 0.
        up: whether to bring the first up.
        alias: a text that ``ip link`` shows.
        largest, peer_largest: the bytes of the largest segment of IPv4 that each sends, or 0 for the kernel's default.
    """
    inner_head = (
        _header(peer_index) + _text(_NAME, peer) + attribute(_ADDRESS, mac_bytes(peer_mac)) + _number(_MTU, mtu)
    )
    # Without a number the kernel makes a queue for each possible processor, then removes all but one and waits for an
    # RCU grace period at each end.
    queues = _number(_TX_QUEUES, 1) + _number(_RX_QUEUES, 1)
    inner = inner_head + queues + _segments(peer_largest) + _number(_NS_FD, 0)
    parts = [_text(_NAME, name), attribute(_ADDRESS, mac_bytes(mac)), _number(_MTU, mtu), queues, _segments(largest)]
    if master:
        parts.append(_number(_MASTER, master))
    if alias:
        parts.append(attribute(_ALIAS, alias.encode()))
    info = _text(_INFO_KIND, "veth") + attribute(_INFO_DATA | _NESTED, attribute(_VETH_PEER | _NESTED, inner))
    flags = _UP if up else 0
    body = message(_NEWLINK, CREATE | EXCLUDE, _header(index, flags, flags), *parts, attribute(_INFO | _NESTED, info))
    # The last four bytes are those of the peer's namespace, because no padding follows them.
    what = f"RTM_NEWLINK veth {name}, {peer} in another namespace"
    return calls.netlink(socket, body, what, at=len(body) - 4, slot=peer_namespace)


def _segments(largest: int) -> bytes:
    return _number(_GSO_IPV4, largest) if largest else b""


def large_segments(socket: Slot, index: int, name: str) -> Operation:
    """Let a bridge send segments of :data:`LARGEST` bytes.

    It needs a message of its own, because a bridge takes the limit of its hardware from its first port.
    """
    body = message(_NEWLINK, 0, _header(index), _segments(LARGEST))
    return calls.netlink(socket, body, f"RTM_NEWLINK {name} segments of {LARGEST}", tolerate=(EINVAL,))


def macvlan(
    socket: Slot, parent: int, name: str, namespace: Slot, *, index: int, mode: str, mac: str | None, mtu: int | None
) -> Operation:
    """Make a macvlan interface in another namespace, on an interface of this one.

    Args:
        socket: a netlink socket in the namespace of the parent.
        parent: the index of the parent.
        name: its name there.
        namespace: the slot with the descriptor of that namespace.
        index: its index there.
        mode, mac, mtu: as for :class:`containerkit.Macvlan`.
    """
    data = attribute(_INFO_DATA | _NESTED, _number(1, _MODES[mode]))
    parts = [_text(_NAME, name), _number(_LINK, parent)]
    parts += [] if mac is None else [attribute(_ADDRESS, mac_bytes(mac))]
    parts += [] if mtu is None else [_number(_MTU, mtu)]
    parts.append(attribute(_INFO | _NESTED, _text(_INFO_KIND, "macvlan") + data))
    body = message(_NEWLINK, CREATE | EXCLUDE, _header(index), *parts, _number(_NS_FD, 0))
    return calls.netlink(socket, body, f"RTM_NEWLINK macvlan {name}", at=len(body) - 4, slot=namespace)


def set_up(socket: Slot, name: str, index: int = 0) -> Operation:
    """Bring an interface up, by its name or its index."""
    parts = () if index else (_text(_NAME, name),)
    return calls.netlink(socket, message(_NEWLINK, 0, _header(index, _UP, _UP), *parts), f"RTM_NEWLINK {name} up")


def isolate(socket: Slot, index: int, name: str) -> Operation:
    """Make a port of a bridge reach only ports that are not isolated. Source: bridge(8), "isolated"."""
    data = attribute(_INFO_SLAVE_DATA | _NESTED, attribute(_PORT_ISOLATED, b"\1"))
    info = attribute(_INFO | _NESTED, _text(_INFO_SLAVE_KIND, "bridge") + data)
    return calls.netlink(socket, message(_NEWLINK, 0, _header(index), info), f"RTM_NEWLINK {name} isolated")


def delete_link(socket: Slot, name: str, *, tolerate: tuple[int, ...] = ()) -> Operation:
    """Remove an interface, and with it its peer."""
    body = message(_DELLINK, 0, _header(), _text(_NAME, name))
    return calls.netlink(socket, body, f"RTM_DELLINK {name}", tolerate=tolerate)


def look_at(socket: Slot, name: str) -> Operation:
    """Request an interface. When the kernel answers, its deferred work of bringing the interface up is done."""
    return calls.netlink(socket, message(_GETLINK, 0, _header(), _text(_NAME, name)), f"RTM_GETLINK {name}")


def address(socket: Slot, index: int, text: str, name: str) -> Operation:
    """Add an address with its prefix, such as ``10.9.0.2/24``. Duplicate detection is off for IPv6."""
    own, _, prefix = text.partition("/")
    packed, length = ip_address(own).packed, int(prefix)
    family, flags = (_INET, 0) if len(packed) == 4 else (_INET6, _NODAD)
    body = pack("=BBBBI", family, length, flags, 0, index)
    parts = [attribute(2, packed), attribute(1, packed)]  # IFA_LOCAL, IFA_ADDRESS
    if family == _INET and length < 31:
        broadcast = int.from_bytes(packed, "big") | (1 << 32 - length) - 1
        parts.append(attribute(4, broadcast.to_bytes(4, "big")))
    return calls.netlink(socket, message(_NEWADDR, CREATE | EXCLUDE, body, *parts), f"RTM_NEWADDR {text} dev {name}")


def route(
    socket: Slot,
    index: int,
    subnet: str,
    name: str,
    *,
    via: str | None = None,
    source: str | None = None,
    mtu: int | None = None,
) -> Operation:
    """Route a subnet to an interface.

    Args:
        socket: a netlink socket in the namespace.
        index, name: the interface.
        subnet: such as ``10.9.0.0/24``.
        via: the next hop, which need not be in a subnet of the interface.
        source: the source address that the host itself uses (default: the kernel's choice).
        mtu: bytes of the largest packet (default: the interface's MTU).
    """
    metrics = b"" if mtu is None else attribute(_METRICS | _NESTED, _number(_METRIC_MTU, mtu))
    return _route(socket, _NEWROUTE, CREATE | EXCLUDE, (index, subnet, name, via, source), metrics)


def default_route(socket: Slot, index: int, via: str, name: str) -> Operation:
    """Add a default route."""
    return route(socket, index, "0.0.0.0/0" if ip_address(via).version == 4 else "::/0", name, via=via)


def gone_route(socket: Slot, index: int, subnet: str, name: str, *, tolerate: tuple[int, ...] = ()) -> Operation:
    """Remove a route that :func:`route` added."""
    return _route(socket, _DELROUTE, 0, (index, subnet, name, None, None))._replace(tolerate=tolerate)


def _route(
    socket: Slot, kind: int, how: int, what: tuple[int, str, str, str | None, str | None], metrics: bytes = b""
) -> Operation:
    index, subnet, name, via, source = what
    network = ip_network(subnet)
    family = _INET if network.version == 4 else _INET6
    scope = 0 if via or family == _INET6 or kind == _DELROUTE else _LINK_SCOPE
    flags = _ONLINK if via else 0
    body = pack("=BBBBBBBBI", family, network.prefixlen, 0, 0, _MAIN_TABLE, _STATIC, scope, 1, flags)
    parts = [attribute(1, network.network_address.packed)] if network.prefixlen else []
    parts += [attribute(5, ip_address(via).packed)] if via else []
    parts += [attribute(7, ip_address(source).packed)] if source else []
    parts += [_number(4, index), metrics]
    verb = "RTM_NEWROUTE" if kind == _NEWROUTE else "RTM_DELROUTE"
    hop = f" via {via}" if via else ""
    return calls.netlink(socket, message(kind, how, body, *parts), f"{verb} {subnet}{hop} dev {name}")


def neighbour(socket: Slot, index: int, of: str, mac: str, name: str) -> Operation:
    """Add a permanent neighbour entry, so that nobody is asked for the address and nobody can spoof an answer."""
    packed = ip_address(of).packed
    family = _INET if len(packed) == 4 else _INET6
    body = pack("=BxxxiHBB", family, index, _PERMANENT, 0, 0)
    parts = attribute(1, packed), attribute(2, mac_bytes(mac))
    what = f"RTM_NEWNEIGH {of} is {mac} dev {name}"
    return calls.netlink(socket, message(_NEWNEIGH, CREATE | REPLACE, body, *parts), what)


def rate(socket: Slot, index: int, bits_per_second: int, name: str, *, mtu: int) -> Operation:
    """Limit the outgoing rate of an interface: a token bucket of 10 ms, and a queue of 50 ms. Source: tc-tbf(8)."""
    per_second = bits_per_second // 8
    burst = max(per_second // 100, 2 * mtu, 16_384)
    limit = per_second // 20 + burst
    buffer = int(burst / per_second * 1e6 * _TICKS_PER_US)
    spec = pack("=BBHhHI", 0, 1, 0, 0, 0, min(per_second, 2**32 - 1))  # struct tc_ratespec, TC_LINKLAYER_ETHERNET
    options = attribute(1, spec + bytes(12) + pack("=III", limit, min(buffer, 2**32 - 1), 0))
    options += attribute(4, pack("=Q", per_second)) if per_second >= 2**32 else b""
    options += _number(6, burst)
    body = pack("=BxxxiIII", 0, index, 0x10000, 2**32 - 1, 0)
    parts = _text(1, "tbf"), attribute(2 | _NESTED, options)
    return calls.netlink(
        socket,
        message(_NEWQDISC, CREATE | REPLACE, body, *parts),
        f"RTM_NEWQDISC tbf {bits_per_second} bit/s dev {name}",
    )
