"""A thread that serves a router: the resolver's sockets, the log of refused packets, and the forwarded ports.

It belongs to the owner's process, so it ends with the owner in any case. It sleeps until a packet arrives.
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from errno import EADDRINUSE
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import ContainerError, SetupError
from containerkit.network import refusals
from containerkit.network.guard import GROUP
from containerkit.network.published import Published
from containerkit.network.resolver import Resolver, receive
from containerkit.network.splice import Splicer
from containerkit.network.uplinks import HostAddresses

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from containerkit.network.dns import Question
    from containerkit.network.endpoint import Wire
    from containerkit.network.host_rules import HostRules
    from containerkit.network.published import SocketMaker
    from containerkit.network.refusals import Refusal
    from containerkit.network.resolver import Peer
    from containerkit.network.rules import RouterRules
    from containerkit.network.short_way import ShortWay
    from containerkit.spec.network import DNS, Egress, Port

__all__ = ["Attendant"]

_MOST_AT_ONCE: Final = 128  # forwarded questions and TCP clients; each has a thread
_MOST_OF_ONE: Final = 16  # the share of one address, so that a container can't block the others
_PORT: Final = 53
_NETFILTER: Final = 12
_BUFFER: Final = 1 << 20  # bytes of a socket's receive buffer; the kernel doubles it: some 2,700 short questions
_IDLE_S: Final = 10.0


class Attendant:
    """Serves one router. Any thread may call it.

    Args:
        in_router: makes a socket in the router's network namespace.
        rules: the rules of the router.
        host_rules: the rules of the host. Without them the router itself denies containers the host's addresses.
        short_way: makes the short way through the router, for the first port that needs it; see
            :mod:`containerkit.network.short_way`. This object then owns it.

    Raises:
        SetupError: the log of packets can't be opened.

    Side effects: one thread runs until :meth:`close`, and more while name servers are asked.
    """

    def __init__(
        self,
        in_router: SocketMaker,
        rules: RouterRules | None,
        host_rules: HostRules | None = None,
        short_way: Callable[[], ShortWay] | None = None,
    ) -> None:
        self._in_router = in_router
        self._make_short_way = short_way
        self._short_way: ShortWay | None = None
        self._host_rules = host_rules
        self._log = refusals.Log()
        self.resolver: Final = Resolver(rules, self._log)
        self._lock = threading.Lock()
        self._bound: dict[str, list[socket.socket]] = {}
        self._asking: dict[str, int] = {}
        self._splicer = Splicer()
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._log_socket: socket.socket | None = None
        self._addresses: HostAddresses | None = None
        self._closed = self._released = False
        try:
            self._selector.register(self._wake, selectors.EVENT_READ, None)
            opened = in_router(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER)
            self._log_socket = opened
            refusals.subscribe(opened, GROUP)
            self._selector.register(opened, selectors.EVENT_READ, self._logged)
            if host_rules is not None:
                self._selector.register(host_rules.log, selectors.EVENT_READ, self._logged)
            elif rules is not None:
                self._addresses = HostAddresses(rules)
                self._selector.register(self._addresses.socket, selectors.EVENT_READ, self._readdressed)
        except OSError as error:
            self._release()
            raise SetupError("subscribe", error.errno or 0, "log of refused packets") from None
        self._thread = threading.Thread(target=self._run, name="containerkit-network", daemon=True)
        self._thread.start()

    # --- Networks and containers

    def add_network(self, bridge: str, gateways: Sequence[str], *, internal: bool = False) -> None:
        """Answer the DNS questions that containers of a network send to its gateways.

        Args:
            bridge: the network.
            gateways: the addresses of the bridge.
            internal: whether to refuse questions about anything but containers.

        Raises:
            SetupError: port 53 of a gateway can't be bound.
        """
        made: list[socket.socket] = []
        try:
            for gateway in gateways:
                family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    bound = self._in_router(family, kind, 0)
                    made.append(bound)
                    bound.setblocking(False)
                    _enlarge(bound)
                    if kind == socket.SOCK_STREAM:
                        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    bound.bind((gateway, _PORT))
                    if kind == socket.SOCK_STREAM:
                        bound.listen(64)
        except OSError as error:
            for each in made:
                each.close()
            hint = "another network has that address" if error.errno == EADDRINUSE else ""
            raise SetupError("bind", error.errno or 0, f"port {_PORT} of {', '.join(gateways)}", hint) from None
        self.resolver.add_network(bridge, internal=internal)
        with self._lock:
            self._bound[bridge] = made
            for each in made:
                asked = self._datagram if each.type == socket.SOCK_DGRAM else self._stream
                self._selector.register(each, selectors.EVENT_READ, asked)
        self._waker.send(b"\1")

    def remove_network(self, bridge: str) -> None:
        """Stop answering. Has no effect for an unknown network."""
        self.resolver.remove_network(bridge)
        with self._lock:
            for each in self._bound.pop(bridge, []):
                self._selector.unregister(each)
                each.close()

    def add_container(self, token: Hashable, bridge: str, addresses: Sequence[str], names: Sequence[str]) -> None:
        """Add a container on a network; see :meth:`Resolver.add_container`."""
        self.resolver.add_container(token, bridge, addresses, names)

    def remove_container(self, token: Hashable, bridge: str | None = None) -> None:
        """Remove a container from one network, or from all."""
        self.resolver.remove_container(token, bridge)

    def set_policy(
        self, token: Hashable, servers: DNS | None, egress: Egress | None, peers: Sequence[Peer] | None = None
    ) -> None:
        """Set which names a container may ask for, and which servers answer; see :meth:`Resolver.set_policy`."""
        self.resolver.set_policy(token, servers, egress, peers)

    def publish(
        self, port: Port, addresses: Sequence[str], over: Wire | None = None, *, internal: bool = False
    ) -> Published:
        """Publish a port of a container.

        Args:
            port: the port.
            addresses: the addresses of the container.
            over: its interface, if its connections may take the short way.
            internal: whether its network is internal. The host has no route to such a network, so the packets are
                spliced.

        Raises:
            SetupError: the port can't be bound; see :class:`Published`.
        """
        way = None
        if over is not None and self._make_short_way is not None:
            with self._lock:
                self._short_way = self._short_way or self._make_short_way()
            way = partial(self._short_way.open, over)
        return Published(
            port,
            addresses,
            splicer=self._splicer,
            in_router=self._in_router,
            rules=None if internal else self._host_rules,
            short_way=way,
        )

    # --- What was refused

    def refusals(self, subnets: Sequence[str] = ()) -> list[Refusal]:
        """Return the latest refusals, at most 1,000. Each is returned once.

        Args:
            subnets: return only refusals from these, and those with a spoofed source (default all).
        """
        networks = [ip_network(each) for each in subnets]
        return self._log.drain(lambda refusal: _is_of(refusal, networks))

    def set_listener(
        self, key: object, listener: Callable[[Refusal], object] | None, subnets: Sequence[str] = ()
    ) -> None:
        """Call a function with each refusal, in the attendant's thread. The function must not block.

        Args:
            key: identifies the listener. Another call with the same key replaces the function.
            listener: the function, or None to stop.
            subnets: as for :meth:`refusals`.
        """
        networks = [ip_network(each) for each in subnets]

        def chosen(refusal: Refusal) -> None:
            if listener is not None and _is_of(refusal, networks):
                listener(refusal)

        self._log.set_listener(key, None if listener is None else chosen)

    # --- The thread

    def _run(self) -> None:
        while not self._closed:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._wake.recv(4096)
                    continue
                try:
                    key.data(key.fileobj)
                except (OSError, ContainerError):  # closed by another thread, or a client that is gone
                    continue

    def _readdressed(self, _: socket.socket) -> None:
        if self._addresses is not None:
            self._addresses.changed()

    def _logged(self, opened: socket.socket) -> None:
        for refusal in refusals.read(opened.recv(1 << 16)):
            self._log.add(refusal)

    def _datagram(self, bound: socket.socket) -> None:
        data, place = bound.recvfrom(4096)
        reply, asked = self.resolver.answer_locally(data, place[0])
        if reply is not None:
            bound.sendto(reply, place)
        elif asked is not None:
            self._in_thread(place[0], lambda: bound.sendto(self.resolver.forward(asked, place[0]), place))

    def _stream(self, bound: socket.socket) -> None:
        accepted, place = bound.accept()
        if not self._in_thread(place[0], lambda: self._answer_stream(accepted, place[0])):
            accepted.close()

    def _answer_stream(self, accepted: socket.socket, source: str) -> None:
        with accepted:
            accepted.settimeout(_IDLE_S)
            while (data := receive(accepted)) is not None:
                reply, asked = self.resolver.answer_locally(data, source)
                if asked is not None:
                    reply = self._forwarded(asked, source)
                if reply is None:
                    return
                accepted.sendall(struct.pack(">H", len(reply)) + reply)

    def _forwarded(self, asked: Question, source: str) -> bytes:
        return self.resolver.forward(asked, source, stream=True)

    def _in_thread(self, source: str, work: Callable[[], Any]) -> bool:
        """Run a task that may block in a thread. Return False if too many are running."""
        with self._lock:
            mine = self._asking.get(source, 0)
            if mine >= _MOST_OF_ONE or sum(self._asking.values()) >= _MOST_AT_ONCE:
                return False
            self._asking[source] = mine + 1
        threading.Thread(target=self._counted, args=(source, work), name="containerkit-dns", daemon=True).start()
        return True

    def _counted(self, source: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except (OSError, ContainerError):  # the client is gone, or the container, or the router with its sockets
            pass
        finally:
            with self._lock:
                left = self._asking[source] - 1
                if left:
                    self._asking[source] = left
                else:
                    del self._asking[source]

    def end(self) -> None:
        """End the thread, so that it no longer uses the packet filters. May be called twice."""
        with self._lock:
            ended, self._closed = self._closed, True
        if not ended:
            self._waker.send(b"\0")
        if self._thread is not threading.current_thread():
            self._thread.join()

    def close(self) -> None:
        """End the thread and close its sockets. May be called twice. Published ports are closed by their owners."""
        if not self._released:
            self._released = True
            self.end()
            self._release()

    def _release(self) -> None:
        self._splicer.close()
        self._selector.close()
        if self._short_way is not None:
            self._short_way.close()
        if self._addresses is not None:
            self._addresses.close()
        for bound in self._bound.values():
            for each in bound:
                each.close()
        for opened in (self._log_socket, self._wake, self._waker):
            if opened is not None:
                opened.close()


def _enlarge(bound: socket.socket) -> None:
    """Enlarge the buffer of a socket for questions of several containers, as far as the user's privileges allow."""
    try:
        bound.setsockopt(socket.SOL_SOCKET, 33, _BUFFER)  # SO_RCVBUFFORCE
    except PermissionError:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)


def _is_of(refusal: Refusal, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    return not networks or refusal.kind == "spoofed" or any(ip_address(refusal.source) in each for each in networks)
