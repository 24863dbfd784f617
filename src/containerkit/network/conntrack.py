"""Remove entries of connection tracking that outlive the rule that made them.

The kernel looks a redirection up once for each connection, and keeps it while packets arrive. So a client that sends
datagrams from one port would still reach the address of a removed container, and never that of its successor.

Source: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from errno import ENOENT
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError, UnsupportedError
from containerkit.network.forked import closed_in_children
from containerkit.network.nfnetlink import IPV4, IPV6, nested
from containerkit.network.parsed import ip_address
from containerkit.plan.netlink import ACK, DUMP, REQUEST, attribute, attributes, messages

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Address, IPv6Address

__all__ = ["Connections"]

_NETFILTER: Final = 12
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_IP, _PROTOCOL = 1, 2  # of a tuple
_F_PROTOCOL: Final = 0x08
_NUMBER: Final = 1
_END: Final = {_ORIGINAL: (2, 0x02, 3, 0x20), _REPLY: (1, 0x01, 2, 0x10)}
"""For each side: the attributes of the address and of the port, each with the flag that filters by it."""
_ERROR, _DONE = 2, 3
_PROTOCOLS: Final = {"tcp": 6, "udp": 17}
DELETES_BY_FILTER: Final = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 11)
"""Whether the kernel deletes the entries that a filter describes. Before, it ignores the filter and deletes all."""
_MOST_DELETIONS: Final = 32  # of 0.2 ms each; to list all entries takes 10 ms


class Connections:
    """The tracked connections of the network namespace in which this object is made.

    Any thread may use it.

    Raises:
        UnsupportedError: the kernel has no netlink for netfilter.
    """

    def __init__(self) -> None:
        try:
            self._socket = closed_in_children(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETFILTER))
        except OSError as error:
            hint = "it needs a kernel with NETFILTER_NETLINK and NF_CT_NETLINK"
            raise UnsupportedError("socket", error.errno or 0, "netlink netfilter", hint) from None
        self._lock = threading.Lock()

    def forget_to(self, address: str, ports: range, protocol: str) -> None:
        """Delete the connections to ports of an address. ``0.0.0.0`` and ``::`` mean every address.

        Args:
            address: the destination of the clients.
            ports: within 1 to 65535.
            protocol: ``"tcp"`` or ``"udp"``.

        Raises:
            SetupError: the kernel refused to list or delete connections.
        """
        self._forget(_ORIGINAL, address, ports, protocol)

    def forget_redirected(self, address: str, ports: range, protocol: str) -> None:
        """Delete the connections that ports of this address answer, for any destination of the clients.

        Args:
            address: the address of the container.
            ports, protocol: as for :meth:`forget_to`.

        Raises:
            SetupError: the kernel refused to list or delete connections.
        """
        self._forget(_REPLY, address, ports, protocol)

    def _forget(self, side: int, address: str, ports: range, protocol: str) -> None:
        """Delete the entries whose destination, or whose source of replies, is one of these."""
        parsed = ip_address(address)
        family = IPV4 if parsed.version == 4 else IPV6
        port = _END[side][2]
        with self._lock:
            if DELETES_BY_FILTER and len(ports) <= _MOST_DELETIONS:
                for number in ports:
                    self._delete(family, _filter(side, parsed, protocol, number))
                return
            wanted = _filter(side, parsed, protocol, ports[0] if len(ports) == 1 else None)
            for entry in list(self._list(family, wanted)):
                tuple_ = dict(attributes(entry[side]))
                (number,) = struct.unpack(">H", dict(attributes(tuple_[_PROTOCOL]))[port])
                if number in ports:
                    self._delete(family, _identity(entry))

    def _list(self, family: int, body: bytes) -> Iterator[dict[int, bytes]]:
        """Yield the attributes of each entry."""
        self._send(_GET, DUMP, family, body)
        while True:
            for kind, content in messages(self._socket.recv(1 << 17)):
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    self._refuse("list", content)
                    return
                yield dict(attributes(content[4:]))

    def _delete(self, family: int, which: bytes) -> None:
        self._send(_DELETE, ACK, family, which)
        for kind, content in messages(self._socket.recv(1 << 16)):
            if kind == _ERROR:
                self._refuse("delete", content)

    def _send(self, kind: int, flags: int, family: int, body: bytes) -> None:
        header = struct.pack("=IHHII", 20 + len(body), kind, REQUEST | flags, 1, 0)
        try:
            self._socket.send(header + bytes((family, 0, 0, 0)) + body)
        except OSError as error:
            raise SetupError("conntrack", error.errno or 0, "netlink") from None

    @staticmethod
    def _refuse(what: str, answer: bytes) -> None:
        number = -struct.unpack_from("=i", answer)[0]
        if number not in (0, ENOENT):  # ENOENT: it ended in the meantime
            hint = "listing and deleting connections needs a kernel with NF_CT_NETLINK"
            raise SetupError(f"conntrack {what}", number, "connections of a published port", hint)

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._socket.close()


def _filter(side: int, address: IPv4Address | IPv6Address, protocol: str, port: int | None) -> bytes:
    """Return the attributes of a filter, for any port without one, and for any address with an unspecified one."""
    end, flag, port_number, port_flag = _END[side]
    flags = _F_PROTOCOL | (0 if address.is_unspecified else flag) | (0 if port is None else port_flag)
    where = b"" if address.is_unspecified else attribute(end + (0 if address.version == 4 else 2), address.packed)
    service = attribute(_NUMBER, bytes((_PROTOCOLS[protocol],)))
    service += attribute(port_number, struct.pack(">H", port or 0))
    body = nested(side, nested(_IP, where), nested(_PROTOCOL, service))
    return body + nested(_FILTER, attribute(side, struct.pack("=I", flags)))


def _identity(entry: dict[int, bytes]) -> bytes:
    return b"".join(attribute(each, entry[each]) for each in (_ORIGINAL, _ID, _ZONE) if each in entry)
