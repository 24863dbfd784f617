"""Refusals as events, from the kernel's log of packets or from the resolver."""

from __future__ import annotations

import secrets
import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from errno import EBUSY
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Literal

import attrs

from containerkit.network.forked import closed_in_children
from containerkit.plan.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Log", "Refusal", "subscribe"]

Kind = Literal["connections", "dns", "egress", "host", "network", "rebinding", "router", "spoofed"]

_MOST: Final = 1000
_PACKET_HEADER, _PAYLOAD, _PREFIX = 1, 9, 10
_LOG_SUBSYSTEM: Final = 4
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}


@attrs.frozen(kw_only=True)
class Refusal:
    """A packet or question of a container that was refused.

    Attributes:
        when: seconds since the epoch.
        kind: ``"egress"``: a destination that no egress rule names, or that is never part of the internet;
            ``"network"``: another network, or the outside of an internal one; ``"router"``: a service of the router;
            ``"host"``: a service of the host; ``"spoofed"``: an address or a MAC that is not its own; ``"dns"``: a name
            that no egress rule names; ``"rebinding"``: a name whose answer was a private address; ``"connections"``:
            more connections to the outside than a container may have open (8,192 from each of its addresses), or make
            (10,000 at once, and then 1,000 a second).
        source: the container's address in the packet.
        destination: the destination address; empty for ``"dns"``.
        protocol: such as ``"tcp"``, or its number.
        port: the destination port, or 0.
        name: the requested name.
    """

    when: float
    kind: str
    source: str
    destination: str = ""
    protocol: str = ""
    port: int = 0
    name: str = ""


def subscribe(opened: socket.socket, group: int) -> None:
    """Subscribe a netfilter socket to the packets of a log group.

    Raises:
        OSError: ``EPERM`` without CAP_NET_ADMIN, ``EBUSY`` if another process receives them.
    """
    opened.bind((0, 0))
    opened.setsockopt(270, 5, 1)  # NETLINK_NO_ENOBUFS: packets that do not fit are lost without an error
    bind = _config(0, group, struct.pack("=HHB3x", 5, 1, 1))  # NFULNL_CFG_CMD_BIND
    copy = _config(0, group, struct.pack("=HH", 10, 2) + struct.pack(">IBx", 128, 2) + bytes(2))  # COPY_PACKET
    soon = _config(
        0, group, struct.pack("=HH", 8, 5) + struct.pack(">I", 1)
    )  # NFULA_CFG_QTHRESH: send each packet at once
    for message in (bind, copy, soon):
        opened.send(message)
        data = opened.recv(4096)
        number = -struct.unpack_from("=i", data, 16)[0]
        if number:
            raise OSError(number, "log of packets")
    opened.setblocking(False)


def free_group() -> tuple[socket.socket, int]:
    """Return a socket for an unused log group of this network namespace, and the number of the group.

    Raises:
        OSError: ``EPERM`` without CAP_NET_ADMIN.
    """
    while True:
        group = 1 + secrets.randbelow(0xFFFF)
        opened = closed_in_children(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        try:
            subscribe(opened, group)
        except OSError as error:
            opened.close()
            if error.errno != EBUSY:
                raise
        else:
            return opened, group


def _config(family: int, group: int, body: bytes) -> bytes:
    kind = _LOG_SUBSYSTEM << 8 | 1
    head = struct.pack("=IHHII", 20 + len(body), kind, 0x5, 0, 0)
    return head + bytes((family, 0)) + struct.pack(">H", group) + body


def read(data: bytes) -> list[Refusal]:
    """Return the refusals in one datagram of the log.

    Packets that can't be parsed are left out, because a container made them.
    """
    found = []
    while len(data) >= 20:
        length, kind = struct.unpack_from("=IH", data)
        if kind == _LOG_SUBSYSTEM << 8 and length >= 20:
            with suppress(struct.error, IndexError, ValueError, KeyError):
                found.append(_packet(data[20:length]))
        data = data[max(16, length + -length % 4) :]
    return found


def _packet(body: bytes) -> Refusal:
    parts = dict(attributes(body))
    prefix = parts[_PREFIX].rstrip(b"\0").decode()
    ethertype = struct.unpack_from(">H", parts[_PACKET_HEADER])[0]
    source, destination, protocol, port = _addresses(ethertype, parts.get(_PAYLOAD, b""))
    return Refusal(when=time.time(), kind=prefix, source=source, destination=destination, protocol=protocol, port=port)


def _addresses(ethertype: int, packet: bytes) -> tuple[str, str, str, int]:
    if ethertype == 0x0806:
        return str(ip_address(packet[14:18])), str(ip_address(packet[24:28])), "arp", 0
    if ethertype == 0x86DD:
        number, start, source, destination = packet[6], 40, packet[8:24], packet[24:40]
    else:
        number, start, source, destination = packet[9], (packet[0] & 15) * 4, packet[12:16], packet[16:20]
    port = 0
    if number in (6, 17) and len(packet) >= start + 4:
        port = struct.unpack_from(">H", packet, start + 2)[0]
    return str(ip_address(source)), str(ip_address(destination)), _PROTOCOLS.get(number, str(number)), port


class Log:
    """The latest 1,000 refusals, and their listeners."""

    def __init__(self) -> None:
        self._kept: deque[Refusal] = deque(maxlen=_MOST)
        self._lock = threading.Lock()
        self._listeners: dict[object, Callable[[Refusal], object]] = {}

    def add(self, refusal: Refusal) -> None:
        """Store a refusal and call the listeners. Their errors go to ``threading.excepthook``."""
        with self._lock:
            self._kept.append(refusal)
            listeners = list(self._listeners.values())
        for each in listeners:
            try:
                each(refusal)
            except Exception:  # noqa: BLE001 - an error of the caller's code must not end this thread
                threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))

    def set_listener(self, key: object, listener: Callable[[Refusal], object] | None) -> None:
        """Add a listener, or remove it (None)."""
        with self._lock:
            self._listeners.pop(key, None)
            if listener is not None:
                self._listeners[key] = listener

    def drain(self, wanted: Callable[[Refusal], bool]) -> list[Refusal]:
        """Remove and return the matching refusals, the oldest first."""
        with self._lock:
            found = [each for each in self._kept if wanted(each)]
            left = [each for each in self._kept if not wanted(each)]
            self._kept.clear()
            self._kept.extend(left)
        return found
