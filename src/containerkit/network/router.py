"""The router of a process: a network namespace with a bridge for each network, and one link to the outside.

It exists as long as its owner holds its descriptor. When the owner ends, even if it is killed, the kernel removes the
namespace with its bridges, links, addresses, routes and packet filters, and also the host's end of the link.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from contextlib import ExitStack
from errno import EHOSTUNREACH, ENOENT
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit._native import constants as k
from containerkit.errors import SetupError
from containerkit.network import links
from containerkit.network.forked import closed_in_children
from containerkit.network.host import PREFIX, Forwarding
from containerkit.network.parsed import ip_address
from containerkit.network.sysctls import has_ipv6, write_sysctl
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.program import Program, proc
from containerkit.plan.tape import Plan
from containerkit.start.staging import opened, staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from containerkit.network.attendant import Attendant
    from containerkit.network.firewalls import Watch
    from containerkit.network.host_rules import HostRules
    from containerkit.network.rules import RouterRules
    from containerkit.network.short_way import ShortWay
    from containerkit.spec.idmap import IdMapping

__all__ = ["ALL_GROUPS", "UPLINK", "UPLINK_MTU", "Router", "current", "entering"]

UPLINK: Final = "up0"
"""The router's end of the link to the outside."""

UPLINK_MTU: Final = 1500
"""The MTU of that link."""

ALL_GROUPS: Final = 2**32 - 2
"""The highest group id."""

_UPLINK_INDEX: Final = 2
_NETFILTER: Final = 12
_HOST_NEXT, _ROUTER_NEXT = "169.254.254.1", "169.254.254.2"
_HOST_NEXT6, _ROUTER_NEXT6 = "fe80::1", "fe80::2"
_HOST_ONLY: Final = {4: f"{_HOST_NEXT}/32", 6: "fd63:6b::1/128"}
"""Addresses for the host's end of the link. It gets one if the host has no source address of that version."""
_ROUTER_MAC, _HOST_MAC = "02:63:6b:00:00:02", "02:63:6b:00:00:01"
_PROC: Final = Slot("proc")
_NET: Final = Slot("net")
_ROUTE: Final = Slot("rtnetlink")
_HOLDER: Final = Slot("holder")
_FORWARDING: Final = {
    "ipv4/ip_forward": "1",
    "ipv4/ip_unprivileged_port_start": "0",
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
}
_FORWARDING6: Final = {
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",  # no addresses except those set here
    "ipv6/conf/all/forwarding": "1",
}


_BRIDGED: Final = tuple(f"bridge/bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables", "arptables"))
"""Bridged packets do not go through the rules for routed packets."""


def entering(*, privileged: bool) -> list[Operation]:
    """Return the operations that enter the user namespace in which an unprivileged user may make network namespaces."""
    return [] if privileged else [calls.setns(_HOLDER, k.CLONE_NEWUSER, "holder user namespace")]


def _making(*, privileged: bool, uplink: str) -> list[Operation]:
    """Return the plan of a router. ``host`` is a slot with the host's network namespace."""
    settings = {**_FORWARDING, **(_FORWARDING6 if has_ipv6() else {})}
    steps = [
        *entering(privileged=privileged),
        calls.unshare(k.CLONE_NEWNET, "network namespace of the router", "see user.max_net_namespaces"),
        calls.open_at(_PROC, b"thread-self/ns/net", k.O_RDONLY, _NET),
        *[step for name, value in settings.items() for step in write_sysctl(name, value)],
        *[step for name in _BRIDGED for step in write_sysctl(name, "0", tolerate=(ENOENT,))],
        *calls.netlink_socket(0, _ROUTE),
        links.set_up(_ROUTE, "lo"),
    ]
    if uplink:
        steps.append(
            links.veth(
                _ROUTE,
                UPLINK,
                uplink,
                Slot("host"),
                index=_UPLINK_INDEX,
                mac=_ROUTER_MAC,
                peer_mac=_HOST_MAC,
                mtu=UPLINK_MTU,
                alias=f"containerkit, process {os.getpid()}",
                peer_largest=links.LARGEST,
            )
        )
    return [*steps, calls.close(_ROUTE)]


def _linking(uplink: str, index: int, addresses: Iterable[str], *, ipv6: bool) -> list[Operation]:
    """Return the plan that brings the host's end up, then sets the router's default routes to the host.

    The router's end has no address, nor has the host's, unless the host has no other. Each has a permanent neighbour
    entry for the other. So the host sends to containers from an address that it already has, and no address resolution
    is needed.
    """
    inside, there = Slot("inside"), Slot("outside")
    own = {"addr_gen_mode": "1", "disable_ipv6": "0"}
    steps = [
        # Its own link has IPv6 even if it is disabled on the host's other interfaces.
        *(step for name, value in own.items() for step in write_sysctl(f"ipv6/conf/{uplink}/{name}", value) if ipv6),
        *calls.netlink_socket(0, there),
        links.set_up(there, uplink, index),
        *(links.address(there, index, each, uplink) for each in addresses),
        links.neighbour(there, index, _ROUTER_NEXT, _ROUTER_MAC, uplink),
        calls.setns(_NET, k.CLONE_NEWNET, "router"),
        *calls.netlink_socket(0, inside),
        links.neighbour(inside, _UPLINK_INDEX, _HOST_NEXT, _HOST_MAC, UPLINK),
        links.default_route(inside, _UPLINK_INDEX, _HOST_NEXT, UPLINK),
    ]
    if ipv6:
        steps += [
            links.neighbour(there, index, _ROUTER_NEXT6, _ROUTER_MAC, uplink),
            links.neighbour(inside, _UPLINK_INDEX, _HOST_NEXT6, _HOST_MAC, UPLINK),
            links.default_route(inside, _UPLINK_INDEX, _HOST_NEXT6, UPLINK),
        ]
    return [*steps, calls.close(inside), calls.close(there)]


def _needed_addresses(*, ipv6: bool) -> list[str]:
    """Return an address for each IP version for which the host has no source address."""
    from containerkit.network.uplinks import host_addresses

    ours = {each.partition("/")[0] for each in _HOST_ONLY.values()}
    found = [ip_address(each) for each in host_addresses() - ours]
    present = {each.version for each in found if not each.is_loopback and not each.is_link_local}
    return [each for version, each in _HOST_ONLY.items() if version not in present and (version == 4 or ipv6)]


class Router:
    """The router of this process, made by :func:`current`.

    Attributes:
        netns: the descriptor of its network namespace.
        holder: the descriptor of the user namespace that owns it, or -1 for the machine's own.
        privileged: whether the machine's user namespace owns it.
        last_group: the highest mapped group of the range that begins at 0.
        rules: the packet filters in its namespace.
        host_rules: the packet filters of the host, or None without privileges.
        attendant: answers DNS questions, and holds published ports.
        uplink: the host's end of the link. Empty for an unprivileged user, and if the host drops forwarded packets.
    """

    def __init__(self) -> None:
        from containerkit.network import firewalls
        from containerkit.network.attendant import Attendant
        from containerkit.network.nfnetlink import Nfnetlink
        from containerkit.network.rules import RouterRules

        stage = staging(host=False)
        self._stage = stage  # keeps the holder's descriptor
        self.privileged = stage.privileged
        self.holder = stage.holder
        self.last_group = ALL_GROUPS if self.privileged else _last(stage.mappings[1])
        self._firewalls: Watch | None = firewalls.Watch() if self.privileged else None
        linked = self.privileged and not firewalls.dropping()
        self.uplink = f"{PREFIX}{secrets.token_hex(4)}" if linked else ""
        self.pid = os.getpid()
        self._inside: list[Any] = []  # to close: what has sockets in the router, and the others
        self._outside: list[Any] = [] if self._firewalls is None else [self._firewalls]
        self._forwarding: Forwarding | None = None
        self.host_rules: HostRules | None = None
        self._numbers = iter(range(1, 1 << 30))
        self.lock = threading.RLock()
        self.users = 0
        self._leads_out = False
        self._routed: set[str] = set()
        self._fds = self._made()
        closed_in_children(self)
        (self.netns,) = self._fds
        try:
            rules = Nfnetlink(self.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER))
            self.rules: RouterRules = RouterRules(rules, UPLINK, masquerade=not self.uplink)
            self._inside.append(self.rules)
            if self.uplink:
                self._open_uplink()
            short_way = self._short_way if self.uplink else None
            self.attendant: Attendant = Attendant(self.socket, self.rules, self.host_rules, short_way)
            self._inside.append(self.attendant)
        except BaseException:
            self.close()
            raise

    def _made(self) -> list[int]:
        plan = _making(privileged=self.privileged, uplink=self.uplink)
        host = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return opened(plan, {**self.inputs(), "host": host}, ("net",))
        finally:
            os.close(host)

    def inputs(self) -> dict[str, int]:
        """Return the inputs of plans that the router provides."""
        made = {"net": self.netns} if hasattr(self, "netns") else {}
        return {_PROC.name: proc(), _HOLDER.name: self.holder, **made}

    def run(self, steps: list[Operation]) -> None:
        """Execute operations in a new process, which starts in the caller's namespaces.

        Raises:
            SetupError: an operation failed.
        """
        Program(Plan(tuple(steps))).run(self.inputs(), flags=_native.SHARE_FILES | _native.NO_PROCESS)

    def inside(self) -> list[Operation]:
        """Return the operations that enter the router."""
        return [
            *entering(privileged=self.privileged),
            calls.setns(_NET, k.CLONE_NEWNET, "router"),
        ]

    def lead_out(self) -> None:
        """Make sure that the router has an uplink.

        Without a link the program that replaces it is started when the first network needs it.

        Raises:
            UnsupportedError, SetupError: it can't have one.
        """
        with self.lock:
            if self.uplink or self._leads_out:
                return
            from containerkit.network import uplinks

            self._outside.append(uplinks.start(self))
            self._leads_out = True

    def check_forwarding(self) -> None:
        """Raise an error if a packet filter of another program now drops packets that the host forwards.

        Raises:
            SetupError: one does. Without the error, containers would lose their connection silently.
        """
        found = self._firewalls.dropping() if self._firewalls is not None and self.uplink else ""
        if found:
            hint = (
                f"the chain {found!r}, made after networks were opened here, drops forwarded packets: make it "
                f'accept iifname and oifname "{self.uplink}", or close all networks of this process and open them again'
            )
            raise SetupError("attach", EHOSTUNREACH, f"uplink {self.uplink}", hint)

    def _open_uplink(self) -> None:
        from containerkit.network.host_rules import HostRules
        from containerkit.network.nfnetlink import Nfnetlink

        ipv6 = has_ipv6()
        index = socket.if_nametoindex(self.uplink)
        self.run(_linking(self.uplink, index, _needed_addresses(ipv6=ipv6), ipv6=ipv6))
        self._forwarding = Forwarding(self.uplink, ipv6=ipv6)
        self.host_rules = HostRules(Nfnetlink(), self.uplink, forwards_only_ours=self._forwarding.changed)
        self._outside.append(self.host_rules)
        # Published ports of 127.0.0.1. Only this interface may send from 127.0.0.1 and get packets for it. Its other
        # end is the router, which forwards none, and the rules above accept only answers.
        self.run(write_sysctl(f"ipv4/conf/{self.uplink}/route_localnet", "1"))

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Return a socket in the router's network namespace.

        Raises:
            SetupError: the socket can't be opened.
        """
        program = _socket_program(family, kind | socket.SOCK_CLOEXEC, protocol, privileged=self.privileged)
        made = opened(program, self.inputs(), ("socket",))
        return closed_in_children(socket.socket(family, kind, protocol, fileno=made.pop()))

    def _short_way(self) -> ShortWay:
        from containerkit.network.short_way import ShortWay

        return ShortWay(self.socket, _UPLINK_INDEX, links.mac_bytes(_HOST_MAC) + links.mac_bytes(_ROUTER_MAC))

    def detach(self) -> int:
        """Detach the descriptor that keeps the namespace alive. Return it, or -1. The caller owns it."""
        return self._fds.pop() if self._fds else -1

    def while_open(self, call: Callable[..., object], *arguments: object) -> None:
        """Call a function that undoes a change in the router, unless the router is closed and all changes are gone."""
        if self._fds and os.getpid() == self.pid:
            call(*arguments)

    def number(self) -> int:
        """Return a number that is unused in the router."""
        with self.lock:
            return next(self._numbers)

    def add_route(self, subnet: str, mtu: int) -> None:
        """Route a subnet from the host to the router. Has no effect without privileges.

        If the network's MTU is smaller than the link's, the host has to know: the router would refuse a datagram that
        a published port redirected, and the host would then take the MTU for that of its loopback.
        """
        if not self.uplink:
            return
        at = Slot("outside")
        index = socket.if_nametoindex(self.uplink)
        via = _ROUTER_NEXT6 if ":" in subnet else _ROUTER_NEXT
        step = links.route(at, index, subnet, self.uplink, via=via, mtu=mtu if mtu < UPLINK_MTU else None)
        self.run([*calls.netlink_socket(0, at), step, calls.close(at)])
        self._routed.add(subnet)

    def drop_route(self, subnet: str) -> None:
        """Remove that route. Has no effect if the link is gone."""
        if subnet not in self._routed:
            return
        self._routed.discard(subnet)
        at = Slot("outside")
        try:
            index = socket.if_nametoindex(self.uplink)
        except OSError:
            return
        step = links.gone_route(at, index, subnet, self.uplink, tolerate=(3,))
        self.run([*calls.netlink_socket(0, at), step, calls.close(at)])

    def close(self) -> None:
        """Close it. May be called twice, and has no effect in a forked child."""
        if os.getpid() != self.pid:
            return
        inside, self._inside = self._inside, []
        outside, self._outside = self._outside[::-1], []
        if inside and hasattr(self, "attendant"):
            self.attendant.end()
        # The kernel waits for a grace period to close a table, and all sockets of its namespace wait with it. So each
        # namespace's sockets are closed one after the other, those with tables first, and both at the same time.
        concurrently([lambda: _close(inside), lambda: _close(outside), self._drop_routes])
        while self._fds:
            os.close(self._fds.pop())
        if self._forwarding is not None:
            self._forwarding.close()

    def _drop_routes(self) -> None:
        """Remove the routes of all subnets, so that these can be used again before the kernel has removed the link."""
        for subnet in tuple(self._routed):
            self.drop_route(subnet)

    def __repr__(self) -> str:
        return f"<Router {self.uplink or 'without a link'} {'open' if self._fds else 'closed'}>"


def _close(each: Iterable[Any]) -> None:
    with ExitStack() as ends:  # each is tried, even if others fail
        for one in reversed(tuple(each)):
            ends.callback(one.close)


def _last(mappings: Iterable[IdMapping]) -> int:
    last = -1
    for each in sorted(mappings, key=lambda mapping: mapping.inside):
        if each.inside == last + 1:
            last = each.inside + each.count - 1
    return max(0, last)


@lru_cache(maxsize=32)
def _socket_program(family: int, kind: int, protocol: int, *, privileged: bool) -> tuple[Operation, ...]:
    return (
        *entering(privileged=privileged),
        calls.setns(_NET, k.CLONE_NEWNET, "router"),
        calls.call("socket", family, kind, protocol, target="in the router", result=Slot("socket")),
    )


_routers: dict[int, Router] = {}
_making_one = threading.Lock()


def current() -> Router:
    """Return the router of this process. Make it if there is none. The caller becomes one of its users.

    Raises:
        UnsupportedError: this host does not support networks.
        SetupError: an operation failed. Nothing is left behind.
    """
    with _making_one:
        router = _routers.get(os.getpid())
        if router is None:
            router = _routers[os.getpid()] = Router()
        router.users += 1
        return router


def leave(router: Router, take_back: Callable[[], object] = lambda: None) -> None:
    """Stop being a user of a router. The last user closes it.

    Args:
        router: the router.
        take_back: removes the user's objects in it. It is not called if the whole router is closed.
    """
    if _left_last(router):
        return
    try:
        take_back()
    finally:
        with _making_one:
            router.users -= 1
            _close_unused(router)


def _left_last(router: Router) -> bool:
    with _making_one:
        if router.users != 1 or _routers.get(router.pid) is not router:
            return False
        router.users = 0
        _close_unused(router)
        return True


def _close_unused(router: Router) -> None:
    if router.users == 0 and _routers.get(router.pid) is router:
        del _routers[router.pid]
        router.close()


def concurrently(tasks: Iterable[Callable[[], object]]) -> None:
    """Call functions concurrently, and wait for all of them.

    Raises:
        Exception: the first exception.
    """
    errors: list[Exception] = []

    def guarded(task: Callable[[], object]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - it is raised in the caller's thread
            errors.append(error)

    threads = []
    *others, last = tasks
    for task in others:
        thread = threading.Thread(target=guarded, args=(task,))
        try:
            thread.start()
        except RuntimeError:  # the interpreter is shutting down, or no thread can be started
            guarded(task)
        else:
            threads.append(thread)
    guarded(last)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def _renew() -> None:
    global _making_one  # noqa: PLW0603 - another thread may have held the lock at the fork
    _making_one = threading.Lock()


os.register_at_fork(after_in_child=_renew)
