"""The short way of TCP connections to published ports through a router, without its routing and packet filters.

Two programs of traffic control (see :mod:`containerkit.network.short_programs`) look at the packets of the uplink and
of each bridge with such a port. A connection that a SYN from the host opened to a published port goes from the uplink
into the container, and back. All else takes the usual way: IPv6, UDP, connections that a container opens.

Where the kernel or the user's privileges do not allow it, everything takes the usual way. Nothing is loaded before the
first port. The kernel removes programs and maps with the router's namespace, also if the owner is killed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from contextlib import ExitStack
from errno import EPERM
from functools import partial
from struct import pack, unpack_from
from typing import TYPE_CHECKING, Final

from containerkit._linux import bpf
from containerkit.network import short_programs as programs
from containerkit.network.forked import closed_in_children
from containerkit.network.links import mac_bytes
from containerkit.plan.netlink import CREATE, EXCLUDE, attribute, message

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.network.endpoint import Wire
    from containerkit.network.published import SocketMaker

__all__ = ["ShortWay"]

_MOST_SERVICES: Final = 65_536
_MOST_FLOWS: Final = 16_384
"""Known connections of one router, 96 bytes each. Those not used for longest are forgotten, and take the usual way."""

# Messages of traffic control. Source: linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h.
_NEWQDISC, _NEWTFILTER = 36, 44
_INGRESS, _AT_INGRESS = 0xFFFF0000, 0xFFFFFFF1
_ALL_PROTOCOLS: Final = 3
_OPTIONS, _NESTED = 2, 0x8000
_BPF_FD, _BPF_NAME, _BPF_FLAGS = 6, 7, 8  # the flag 1 makes the program's result the verdict


class _Descriptor:
    """A descriptor that forked children close."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        closed_in_children(self)

    def detach(self) -> int:
        """Detach the descriptor. Return it, or -1 without one. The caller owns it."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close it. May be called twice."""
        fd = self.detach()
        if fd >= 0:
            os.close(fd)


class ShortWay:
    """The short way through one router. Any thread may use it.

    Args:
        in_router: makes a socket in the router's network namespace.
        uplink: the index of the router's interface towards the host.
        header: the first 12 bytes of the Ethernet header of a packet to the host.
    """

    def __init__(self, in_router: SocketMaker, uplink: int, header: bytes) -> None:
        self._in_router = in_router
        self._uplink, self._header = uplink, header
        self._lock = threading.Lock()
        self._refused = False
        self._services: _Descriptor | None = None
        self._outward: _Descriptor | None = None
        self._bridges: set[int] = set()
        self._opened: Counter[bytes] = Counter()  # a container's port may be published at several ports of the host

    def open(self, wire: Wire, address: str, ports: range) -> Callable[[], None]:
        """Let connections to TCP ports of a container take the short way.

        Args:
            wire: the container's interface.
            address: its IPv4 address.
            ports: the ports.

        Returns:
            A function that undoes it. Established connections then take the usual way.
        """
        value = programs.service(wire.port_index, mac_bytes(wire.mac), mac_bytes(wire.gateway_mac))
        added: list[bytes] = []
        try:
            with self._lock:
                services = self._prepared(wire.bridge_index)
                for key in (programs.service_key(address, port) for port in ports):
                    added.append(key)
                    self._opened[key] += 1
                    bpf.store(services, key, value)
        except OSError:  # not possible here, or the map is full: the ports take the usual way
            self._refused = self._services is None
        except BaseException:
            self._undo(added)
            raise
        return partial(self._undo, added)

    def _undo(self, keys: list[bytes]) -> None:
        with self._lock:
            while keys:
                key = keys.pop()
                self._opened[key] -= 1
                if self._opened[key] <= 0:
                    del self._opened[key]
                    if self._services is not None:
                        bpf.remove(self._services.fd, key)

    def _prepared(self, bridge: int) -> int:
        """Return the map of published ports. Load the programs if they are not loaded, and attach them to a bridge."""
        if self._refused:
            raise OSError(EPERM, "refused before")
        if self._services is None or self._outward is None:
            self._load()
        assert self._services is not None
        assert self._outward is not None
        if bridge not in self._bridges:
            self._attach(bridge, self._outward.fd)
            self._bridges.add(bridge)
        return self._services.fd

    def _load(self) -> None:
        with ExitStack() as undo, ExitStack() as loaded:
            services = _Descriptor(bpf.new_hash(b"ck_services", *programs.SERVICE, _MOST_SERVICES))
            undo.callback(services.close)
            flows = bpf.new_lru_hash(b"ck_flows", *programs.FLOW, _MOST_FLOWS)
            loaded.callback(os.close, flows)  # the programs keep it
            code = programs.outward(services.fd, flows, self._uplink, self._header)
            outward = _Descriptor(bpf.load(bpf.TRAFFIC_CONTROL, b"ck_outward", code))
            undo.callback(outward.close)
            inward = bpf.load(bpf.TRAFFIC_CONTROL, b"ck_inward", programs.inward(services.fd, flows))
            loaded.callback(os.close, inward)
            self._attach(self._uplink, inward)
            undo.pop_all()
            self._services, self._outward = services, outward

    def _attach(self, index: int, program: int) -> None:
        """Let a program decide about what arrives at an interface, for as long as the interface exists."""
        queue = message(_NEWQDISC, CREATE, pack("=BxxxiIII", 0, index, _INGRESS, _AT_INGRESS, 0), _kind(b"ingress"))
        options = _number(_BPF_FD, program) + attribute(_BPF_NAME, b"containerkit\0") + _number(_BPF_FLAGS, 1)
        place = pack("=BxxxiIII", 0, index, 0, _INGRESS, 1 << 16 | socket.htons(_ALL_PROTOCOLS))
        rule = message(_NEWTFILTER, CREATE | EXCLUDE, place, _kind(b"bpf"), attribute(_OPTIONS | _NESTED, options))
        with self._in_router(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asking:
            for each in (queue, rule):
                asking.send(each)
                refused = -unpack_from("=i", asking.recv(1 << 14), 16)[0]
                if refused:
                    raise OSError(refused, os.strerror(refused), f"traffic control of interface {index}")

    def close(self) -> None:
        """Close its descriptors. The programs stay as long as the router. May be called twice."""
        with self._lock:
            self._refused = True
            for each in (self._services, self._outward):
                if each is not None:
                    each.close()
            self._services = self._outward = None


def _kind(name: bytes) -> bytes:
    return attribute(1, name + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, pack("=I", value))
