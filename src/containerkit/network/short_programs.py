"""The two programs of the short way through a router, see :mod:`containerkit.network.short_way`.

Each looks at the headers of a packet and searches two maps:

* ``services``: the published ports. The key is a container's address and port; the value is the index of its port of
  the bridge, and the first 12 bytes of an Ethernet header to the container.
* ``flows``: the connections to these. The key is the container's address, the client's address, and the ports in the
  same order; the value is the index of the container's port of the bridge, who has sent a FIN, and when the last packet
  passed, in nanoseconds.

Whatever a program does not know it leaves to the router, so that the packet filters decide.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

from containerkit._linux.bpf import FRAME, Code, Map, Register

__all__ = ["FLOW", "SERVICE", "inward", "outward", "service", "service_key"]

SERVICE: Final = (8, 16)
"""The bytes of a key and a value of ``services``."""

FLOW: Final = (12, 16)
"""The bytes of a key and a value of ``flows``."""

_OWNER, _HEADER = 0, 4  # of a service: the index of its port, and the Ethernet header
_ENDS, _SEEN = 4, 8  # of a flow, whose owner is at 0 too
_CLIENT_ENDED, _CONTAINER_ENDED = 4, 5  # a byte for each, because both may be written at the same time
_BOTH_ENDED: Final = 0x0101

# Offsets in struct __sk_buff.
_KIND, _VLAN, _DATA, _DATA_END = 4, 20, 76, 80
# Offsets in a frame with an IPv4 header without options.
_ETHERTYPE, _VERSION, _FRAGMENT, _TTL, _PROTOCOL, _CHECKSUM = 12, 14, 20, 22, 23, 24
_TRANSPORT: Final = 34
_FLAGS: Final = _TRANSPORT + 13
_TCP_END: Final = _TRANSPORT + 20
_QUOTED: Final = _TRANSPORT + 8  # the header that an ICMP message quotes
_QUOTED_END: Final = _QUOTED + 28
_FIN, _SYN, _RST, _ACK = 1, 2, 4, 16
_ICMP, _TCP, _UNREACHABLE = 1, 6, 3

_LOOKUP, _UPDATE, _DELETE, _NOW, _REDIRECT_PEER = 1, 2, 3, 5, 155
_GO_ON: Final = -1  # TC_ACT_UNSPEC
_SECOND_NS: Final = 1_000_000_000
_OPEN_NS: Final = 432_000 * _SECOND_NS
_ENDED_NS: Final = 120 * _SECOND_NS
"""How long a flow without packets is known, before and after both have sent a FIN: as connection tracking does."""

R0, R1, R2, R3, R4 = map(Register, range(5))
_PACKET, _CONTEXT, _SERVICE, _FLOW = map(Register, (6, 7, 8, 9))
# Places on the stack, below its end.
_SERVICE_KEY, _FLOW_KEY, _NEW_FLOW = -8, -24, -40


class _Ends(NamedTuple):
    """Where a header has the address and port of the container, and those of its client."""

    container: int
    client: int
    container_port: int
    client_port: int


def _ends(header: int, *, from_container: bool) -> _Ends:
    """Return the places of an IPv4 header without options, followed by ports."""
    source, target, source_port, target_port = header + 12, header + 16, header + 20, header + 22
    if from_container:
        return _Ends(source, target, source_port, target_port)
    return _Ends(target, source, target_port, source_port)


def service_key(address: str, port: int) -> bytes:
    """Return the key of a published port in ``services``."""
    return socket.inet_aton(address) + struct.pack(">H", port) + bytes(2)


def service(index: int, mac: bytes, bridge_mac: bytes) -> bytes:
    """Return the value of a published port: the index of the port of the bridge, and the MACs of a frame from it."""
    return struct.pack("=I6s6s", index, mac, bridge_mac)


def inward(services: int, flows: int) -> Code:
    """Return the program for packets that come from the host.

    A SYN to a published port makes a flow. It, and the packets of known flows, enter the container at once.
    """
    code = _beginning()
    _keys(code, _ends(_VERSION, from_container=False))
    _find_service(code, services)
    code.load(1, R1, _PACKET, _FLAGS)
    code.jump_if(R1, "&", _SYN, "opening")
    _find_flow(code, flows)
    _note_end(code, flows, _CLIENT_ENDED)

    code.label("opening")
    code.compute(R1, "&", _FIN | _SYN | _RST | _ACK)
    code.jump_if(R1, "!=", _SYN, "pass")
    code.call(_NOW)
    code.store(8, FRAME, _NEW_FLOW + _SEEN, R0)
    code.store(4, FRAME, _NEW_FLOW + _ENDS, 0)
    code.load(4, R1, _SERVICE, _OWNER)
    code.store(4, FRAME, _NEW_FLOW + _OWNER, R1)
    _on_map(code, _UPDATE, flows, _FLOW_KEY, _NEW_FLOW)
    code.jump_if(R0, "!=", 0, "pass")
    code.jump("deliver")

    _quoted(code, services, flows, from_container=False)
    code.label("deliver")
    for offset in (0, 4, 8):
        code.load(4, R1, _SERVICE, _HEADER + offset)
        code.store(4, _PACKET, offset, R1)
    _one_hop(code)
    code.load(4, R1, _SERVICE, _OWNER)
    code.compute(R2, "=", 0)
    code.call(_REDIRECT_PEER)
    code.exit()
    return _end(code)


def outward(services: int, flows: int, uplink: int, header: bytes) -> Code:
    """Return the program for packets that containers send to the router.

    Those of known flows leave by the uplink at once. The guard of the bridge's ports has passed them before.

    Args:
        services, flows: the descriptors of the maps.
        uplink: the index of the interface.
        header: the first 12 bytes of the Ethernet header there.
    """
    code = _beginning()
    _keys(code, _ends(_VERSION, from_container=True))
    _find_service(code, services)
    code.load(1, R1, _PACKET, _FLAGS)
    code.compute(R1, "&", _SYN | _ACK)
    code.jump_if(R1, "==", _SYN, "connecting")
    _find_flow(code, flows)
    _note_end(code, flows, _CONTAINER_ENDED)

    # The container opens a connection of its own with the port: from now on the filters see all of it.
    code.label("connecting")
    _on_map(code, _DELETE, flows, _FLOW_KEY)
    code.jump("pass")

    _quoted(code, services, flows, from_container=True)
    code.label("deliver")
    for offset, (word,) in zip((0, 4, 8), struct.iter_unpack("=I", header), strict=True):
        code.compute(R1, "=", word, wide=False)
        code.store(4, _PACKET, offset, R1)
    _one_hop(code)
    code.compute(R1, "=", uplink)
    code.compute(R2, "=", 0)
    code.call(_REDIRECT_PEER)
    code.exit()
    return _end(code)


def _beginning() -> Code:
    """Begin with the checks of both: a whole packet of TCP over IPv4 for this machine, without options or VLAN."""
    code = Code()
    code.compute(_CONTEXT, "=", R1)
    code.load(4, R1, _CONTEXT, _KIND)
    code.jump_if(R1, "!=", 0, "pass")  # PACKET_HOST
    code.load(4, R1, _CONTEXT, _VLAN)
    code.jump_if(R1, "!=", 0, "pass")
    code.load(4, _PACKET, _CONTEXT, _DATA)
    _has(code, _TCP_END)
    code.load(2, R1, _PACKET, _ETHERTYPE)
    code.jump_if(R1, "!=", socket.htons(0x0800), "pass")
    code.load(1, R1, _PACKET, _VERSION)
    code.jump_if(R1, "!=", 0x45, "pass")
    code.load(2, R1, _PACKET, _FRAGMENT)
    code.jump_if(R1, "&", socket.htons(0x3FFF), "pass")
    code.load(1, R1, _PACKET, _TTL)
    code.jump_if(R1, "<=", 1, "pass")  # the router says that it has expired
    code.load(1, R1, _PACKET, _PROTOCOL)
    code.jump_if(R1, "==", _ICMP, "message")
    code.jump_if(R1, "!=", _TCP, "pass")
    return code


def _has(code: Code, length: int) -> None:
    """Go on only if that many bytes of the packet can be read directly."""
    code.load(4, R2, _CONTEXT, _DATA_END)
    code.compute(R1, "=", _PACKET)
    code.compute(R1, "+", length)
    code.jump_if(R1, ">", R2, "pass")


def _quoted(code: Code, services: int, flows: int, *, from_container: bool) -> None:
    """Deliver messages that something can't be reached, or that a packet was too large, if they quote a known flow.

    The router's connection tracking does not know the flow and would drop them.
    """
    code.label("message")
    _has(code, _QUOTED_END)
    code.load(1, R1, _PACKET, _TRANSPORT)
    code.jump_if(R1, "!=", _UNREACHABLE, "pass")
    code.load(1, R1, _PACKET, _QUOTED)
    code.jump_if(R1, "!=", 0x45, "pass")
    code.load(2, R1, _PACKET, _QUOTED + _FRAGMENT - _VERSION)
    code.jump_if(R1, "&", socket.htons(0x1FFF), "pass")
    code.load(1, R1, _PACKET, _QUOTED + _PROTOCOL - _VERSION)
    code.jump_if(R1, "!=", _TCP, "pass")
    # The packet that is quoted went the other way, and the message goes to its sender.
    code.load(4, R1, _PACKET, _VERSION + 16)
    code.load(4, R2, _PACKET, _QUOTED + 12)
    code.jump_if(R1, "!=", R2, "pass")
    _keys(code, _ends(_QUOTED, from_container=not from_container))
    _find_service(code, services)
    _find_flow(code, flows, "limit of the quoted flow")


def _keys(code: Code, ends: _Ends) -> None:
    """Put the keys of the service and the flow on the stack."""
    code.load(4, R1, _PACKET, ends.container)
    code.load(4, R2, _PACKET, ends.client)
    code.load(2, R3, _PACKET, ends.container_port)
    code.load(2, R4, _PACKET, ends.client_port)
    for size, place, value in (
        (4, _SERVICE_KEY, R1),
        (2, _SERVICE_KEY + 4, R3),
        (2, _SERVICE_KEY + 6, 0),
        (4, _FLOW_KEY, R1),
        (4, _FLOW_KEY + 4, R2),
        (2, _FLOW_KEY + 8, R3),
        (2, _FLOW_KEY + 10, R4),
    ):
        code.store(size, FRAME, place, value)


def _on_map(code: Code, function: int, which: int, *places: int) -> None:
    """Call a function with a map and pointers to the stack."""
    code.wide(R1, Map(which))
    for register, place in zip((R2, R3), places, strict=False):
        code.compute(register, "=", FRAME)
        code.compute(register, "+", place)
    code.compute(R4, "=", 0)  # flags of the one that has them
    code.call(function)


def _find_service(code: Code, services: int) -> None:
    _on_map(code, _LOOKUP, services, _SERVICE_KEY)
    code.jump_if_null(R0, "pass")
    code.compute(_SERVICE, "=", R0)


def _find_flow(code: Code, flows: int, limit: str = "limit") -> None:
    """Find a flow that belongs to the container which has the service now, and is not too old.

    Args:
        code: the program.
        flows: the map.
        limit: a label that the program does not have yet.
    """
    _on_map(code, _LOOKUP, flows, _FLOW_KEY)
    code.jump_if_null(R0, "pass")
    code.compute(_FLOW, "=", R0)
    code.load(4, R1, _FLOW, _OWNER)
    code.load(4, R2, _SERVICE, _OWNER)
    code.jump_if(R1, "!=", R2, "pass")
    code.call(_NOW)
    code.load(8, R1, _FLOW, _SEEN)
    code.compute(R2, "=", R0)
    code.compute(R2, "-", R1)
    code.load(2, R1, _FLOW, _ENDS)
    code.wide(R3, _OPEN_NS)
    code.jump_if(R1, "!=", _BOTH_ENDED, limit)
    code.wide(R3, _ENDED_NS)
    code.label(limit)
    code.jump_if(R2, "signed >", R3, "pass")  # another processor may have seen it an instant later: then r2 is negative
    code.store(8, _FLOW, _SEEN, R0)


def _note_end(code: Code, flows: int, who: int) -> None:
    """Note a FIN, forget the flow after a RST, and deliver the packet."""
    code.load(1, R1, _PACKET, _FLAGS)
    code.jump_if(R1, "&", _RST, "reset")
    code.compute(R1, "&", _FIN)
    code.jump_if(R1, "==", 0, "deliver")
    code.store(1, _FLOW, who, 1)
    code.jump("deliver")
    code.label("reset")
    _on_map(code, _DELETE, flows, _FLOW_KEY)
    code.jump("deliver")


def _one_hop(code: Code) -> None:
    """Decrement the time to live, and correct the header's checksum as the kernel's ip_decrease_ttl does."""
    code.load(1, R1, _PACKET, _TTL)
    code.compute(R1, "-", 1)
    code.store(1, _PACKET, _TTL, R1)
    code.load(2, R1, _PACKET, _CHECKSUM)
    code.compute(R1, "+", socket.htons(0x0100))
    code.jump_if(R1, "<", 0xFFFF, "summed")
    code.compute(R1, "+", 1)
    code.label("summed")
    code.store(2, _PACKET, _CHECKSUM, R1)


def _end(code: Code) -> Code:
    code.label("pass")
    code.compute(R0, "=", _GO_ON)
    code.exit()
    return code
