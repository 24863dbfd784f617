"""Ports of the host that are forwarded to a container.

A socket is bound for each, even if the kernel forwards the packets. So a port in use is an error immediately, and no
other user can bind it. The host's rules (see host_rules) forward all packets that they can. Some connections reach
the socket: those to ::1, those on a host that does not track connections of its loopback, and all if there are no such
rules. They are accepted and forwarded by this process.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import threading
import time
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError
from containerkit.network.forked import closed_in_children

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.network.host_rules import HostRules
    from containerkit.network.splice import Splicer
    from containerkit.spec.network import Port

    SocketMaker = Callable[[socket.AddressFamily, socket.SocketKind, int], socket.socket]

__all__ = ["Published"]

_IDLE_S: Final = 60.0  # seconds after which an idle client of a UDP port is dropped, as in conntrack
_MOST_CLIENTS: Final = 1024
_BACKLOG: Final = 4096
_HINTS: Final = {
    errno.EADDRINUSE: "that port is in use: choose another one, or 0 for any free port",
    errno.EACCES: "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE: choose a higher one",
    errno.EADDRNOTAVAIL: "it is not an address of this host",
    errno.EMFILE: "each published port needs a descriptor of this process: raise RLIMIT_NOFILE",
}


class Published:
    """A published port, made by the attendant.

    Attributes:
        port: the described port.
        host_port: the first port of the host, also if any free port, or one of a range, was requested.

    Raises:
        SetupError: ``EADDRINUSE`` if a port is in use, ``EACCES`` if the user may not bind a port below 1024,
            ``EADDRNOTAVAIL`` if the address is not the host's. No port stays bound.
    """

    def __init__(
        self,
        port: Port,
        addresses: Sequence[str],
        *,
        splicer: Splicer,
        in_router: SocketMaker,
        rules: HostRules | None,
        short_way: Callable[[str, range], Callable[[], None]] | None = None,
    ) -> None:
        self.port = port
        self.host_port = port.host_port
        self._splicer = splicer
        self._in_router = in_router
        self._rules: HostRules | None = None
        self._leave_short_way: Callable[[], None] | None = None
        self._held: list[socket.socket] = []
        self._relays: list[_Relay] = []
        self._target = _target(port, addresses) if port.fd is None else ""
        try:
            if port.last is not None:
                self._held.append(_first_free(port, port.last))
            else:
                self._held += (_bound(port, number) for number in range(port.host_port, port.host_port + port.count))
            self.host_port = self._held[0].getsockname()[1]
            if port.fd is None:
                self._carry(rules, short_way)
        except BaseException:
            self.close()
            raise

    def _carry(self, rules: HostRules | None, short_way: Callable[[str, range], Callable[[], None]] | None) -> None:
        for index, held in enumerate(self._held):
            place = (self._target, self.port.container_port + index)
            if self.port.protocol == "tcp":
                self._splicer.listen(held, partial(self._connect, place))
            else:
                self._relays.append(_Relay(held, place, self._in_router))
        where = ip_address(self.port.host)
        can_redirect = where.version == 4 or not where.is_loopback
        if rules is not None and can_redirect and where.version == ip_address(self._target).version:
            rules.publish(*self._rule, count=self.port.count)
            self._rules = rules
            if short_way is not None and where.version == 4 and self.port.protocol == "tcp":
                first = self.port.container_port
                self._leave_short_way = short_way(self._target, range(first, first + self.port.count))

    @property
    def target(self) -> str:
        """The address of the container to which it leads; empty if the socket is passed on."""
        return self._target

    @property
    def _rule(self) -> tuple[str, int, str, str, int]:
        return self.port.host, self.host_port, self.port.protocol, self._target, self.port.container_port

    def _connect(self, place: tuple[str, int]) -> socket.socket:
        made = self._in_router(_family(place[0]), socket.SOCK_STREAM, 0)
        made.setblocking(False)
        failed = made.connect_ex(place)
        if failed not in (0, errno.EINPROGRESS):
            made.close()
            raise OSError(failed, os.strerror(failed))
        return made

    def fileno(self) -> int:
        """Return the descriptor of the (first) bound socket, which this object still owns."""
        return self._held[0].fileno()

    def close(self) -> None:
        """Release the port, and end its connections. May be called twice."""
        leave, self._leave_short_way = self._leave_short_way, None
        if leave is not None:
            leave()
        rules, self._rules = self._rules, None
        if rules is not None:
            rules.unpublish(*self._rule, count=self.port.count)
        for relay in self._relays:
            relay.close()
        self._relays.clear()
        for held in self._held:
            if self.port.protocol == "tcp" and self.port.fd is None:
                self._splicer.forget(held)
            held.close()
        self._held.clear()

    def __repr__(self) -> str:
        state = "" if self._held else " closed"
        return f"<Published {self.port.host}:{self.host_port}/{self.port.protocol} to {self._target}{state}>"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _target(port: Port, addresses: Sequence[str]) -> str:
    """Return the container's address of the same IP version as the host's address, or else its first."""
    same = [each for each in addresses if (":" in each) == (":" in port.host)]
    return (same or list(addresses))[0]


def _first_free(port: Port, last: int) -> socket.socket:
    for number in range(port.host_port, last):
        try:
            return _bound(port, number)
        except SetupError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bound(port, last)


def _bound(port: Port, number: int) -> socket.socket:
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    made = None
    try:
        made = closed_in_children(socket.socket(_family(port.host), kind))
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            # This ignores only past connections. It is still an error if another process listens on the port.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((port.host, number))
        if kind == socket.SOCK_STREAM:
            made.listen(_BACKLOG)
    except OSError as error:
        if made is not None:
            made.close()
        shown = f"[{port.host}]" if ":" in port.host else port.host
        hint = _HINTS.get(error.errno or 0, "")
        raise SetupError("publish", error.errno or 0, f"{shown}:{number}/{port.protocol}", hint) from None
    return made


class _Relay:
    """Forwards datagrams of one bound socket to a container and back, in a thread."""

    def __init__(self, held: socket.socket, place: tuple[str, int], in_router: SocketMaker) -> None:
        self._held, self._place, self._in_router = held, place, in_router
        held.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._clients: dict[object, tuple[socket.socket, float]] = {}
        self._wake, self._waker = socket.socketpair()
        self._selector.register(held, selectors.EVENT_READ, None)
        self._selector.register(self._wake, selectors.EVENT_READ, self)
        self._thread = threading.Thread(target=self._run, name="containerkit-udp", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(_IDLE_S if self._clients else None):
                if key.data is self:
                    return
                try:
                    self._to_container() if key.data is None else self._to_client(key.data)
                except OSError:  # nobody listens inside: the datagram is lost, as always
                    continue
            self._expire()

    def _to_container(self) -> None:
        data, client = self._held.recvfrom(65535)
        known = self._clients.get(client)
        if known is None:
            if len(self._clients) >= _MOST_CLIENTS:
                return
            made = self._in_router(_family(self._place[0]), socket.SOCK_DGRAM, 0)
            made.setblocking(False)
            made.connect(self._place)
            self._selector.register(made, selectors.EVENT_READ, client)
        else:
            made = known[0]
        self._clients[client] = made, time.monotonic()
        made.send(data)

    def _to_client(self, client: tuple[str, int]) -> None:
        made, _ = self._clients[client]
        data = made.recv(65535)
        self._clients[client] = made, time.monotonic()
        self._held.sendto(data, client)

    def _expire(self) -> None:
        now = time.monotonic()
        for client, (made, used) in list(self._clients.items()):
            if now - used > _IDLE_S:
                self._selector.unregister(made)
                made.close()
                del self._clients[client]

    def close(self) -> None:
        """End the thread and close its sockets."""
        self._waker.send(b"\0")
        self._thread.join()
        self._selector.close()
        for made, _ in self._clients.values():
            made.close()
        self._wake.close()
        self._waker.close()
