"""A hostile container on a bridge, with all capabilities over its namespace, sends forged frames.

As a control, each attack is sent again without the guard, and arrives.
"""

from __future__ import annotations

import socket
import struct

import network_lab as lab
import pytest

pytestmark = lab.NEEDS

OTHER = lab.MACS["c2"]
MAC = lab.MACS["c1"]
LOCAL = "fe80::aff:fe58:5"

HOP_BY_HOP = bytes((58, 0, 1, 4, 0, 0, 0, 0))


def ipv4(protocol, payload):
    """Return a broadcast packet with the container's own address and forged content."""
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0)
    head += socket.inet_aton("10.88.0.5") + socket.inet_aton("255.255.255.255")
    head = head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:]
    return lab.ethernet(MAC, 0x0800, head + payload)


def error4(kind, to, size=28, *, more=0):
    """Return an ICMP error about a packet of a neighbour's to some address, or only its first bytes."""
    quoted = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + socket.inet_aton("10.88.0.6")
    quoted += socket.inet_aton(to) + struct.pack(">HHHH", 1000, 53, 8, 0)
    body = bytes((*kind, 0, 0, 0, 0, 2, 88)) + quoted
    frame = ipv4(1, (body[:2] + struct.pack(">H", lab.checksum(body)) + body[4:])[: 8 + size])
    head = frame[14:20] + struct.pack(">H", more << 13) + frame[22:24] + bytes(2) + frame[26:34]
    return frame[:14] + head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:] + frame[34:]


def error6(kind, to):
    quoted = struct.pack(">IHBB", 0x60000000, 8, 17, 64) + socket.inet_pton(socket.AF_INET6, "fd00:88::6")
    quoted += socket.inet_pton(socket.AF_INET6, to) + struct.pack(">HHHH", 1000, 53, 8, 0)
    return lab.icmp6(MAC, "fd00:88::5", "ff02::1", bytes((*kind, 0, 0, 0, 0, 5, 0)) + quoted)


def ipv6(protocol, payload):
    head = struct.pack(">IHBB", 0x60000000, len(payload), protocol, 64)
    head += socket.inet_pton(socket.AF_INET6, LOCAL) + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return lab.ethernet(MAC, 0x86DD, head + payload, "33:33:00:00:00:01")


ATTACKS = {
    "a frame with another's MAC": lab.udp4(OTHER, "10.88.0.5", "10.88.255.255"),
    "a frame with an unknown MAC": lab.udp4("02:12:34:56:78:9a", "10.88.0.5", "10.88.255.255"),
    "a source address of another's": lab.udp4(MAC, "10.88.0.6", "10.88.255.255"),
    "a source address of the gateway's": lab.udp4(MAC, "10.88.0.1", "10.88.255.255"),
    "ARP: the gateway is at mine": lab.arp(MAC, MAC, "10.88.0.1", "10.88.0.6"),
    "ARP: the gateway is at mine, as a question": lab.arp(MAC, MAC, "10.88.0.1", "10.88.0.6", 1),
    "ARP: my address is at another's": lab.arp(MAC, OTHER, "10.88.0.5", "10.88.0.6"),
    "ND: the gateway is at mine": lab.icmp6(MAC, "fd00:88::5", "ff02::1", lab.advertisement("fd00:88::1", MAC)),
    "ND: the neighbour is at mine": lab.icmp6(MAC, LOCAL, "ff02::1", lab.advertisement("fd00:88::6", MAC)),
    "a router advertisement": lab.icmp6(MAC, LOCAL, "ff02::1", lab.router_advertisement()),
    "a router advertisement behind an extension": lab.icmp6(
        MAC, LOCAL, "ff02::1", lab.router_advertisement(), HOP_BY_HOP
    ),
    "a redirect": lab.icmp6(MAC, LOCAL, "ff02::1", bytes((137, 0)) + bytes(38)),
    "a source address of another's, v6": lab.icmp6(MAC, "fd00:88::6", "ff02::1", bytes((128, 0)) + bytes(6)),
    "a question whether another's address is taken": lab.icmp6(
        MAC, "::", "ff02::1", bytes((135, 0)) + bytes(6) + bytes.fromhex("fd000088") + bytes(11) + b"\6"
    ),
    "a redirect, v4": ipv4(1, bytes((5, 1)) + bytes(2) + bytes((10, 88, 0, 5)) + bytes(28)),
    "an error: a neighbour's port is closed": error4((3, 3), "10.88.0.1"),
    "an error: a neighbour's packet is too large": error4((3, 4), "198.51.100.7"),
    "an error: a neighbour's packet expired": error4((11, 0), "10.88.0.7"),
    "the start of an error in fragments": error4((3, 4), "198.51.100.7", 0, more=1),
    "an error, v6: a neighbour's port is closed": error6((1, 4), "fd00:88::1"),
    "an error, v6: a neighbour's packet is too large": error6((2, 0), "2001:db8::7"),
    "an answer of DHCP": ipv4(17, struct.pack(">HHHH", 67, 68, 248, 0) + b"\2\1\6\0" + bytes(236)),
    "an answer of DHCP, v6": ipv6(17, struct.pack(">HHHH", 547, 546, 16, 0) + b"\7\1\2\3" + bytes(4)),
    "a query for members of a group": lab.icmp6(MAC, LOCAL, "ff02::1", bytes((130, 0)) + bytes(22)),
    "a report of groups, which would go to all ports": lab.icmp6(
        MAC, "::", "ff02::16", bytes((143, 0)) + bytes(26), HOP_BY_HOP
    ),
    "a report of groups from its own address": lab.icmp6(
        MAC, LOCAL, "ff02::16", bytes((143, 0)) + bytes(26), HOP_BY_HOP
    ),
    "a frame of another kind": lab.ethernet(MAC, 0x88B5, bytes(46)),
}


def later_fragment(version, protocol=1, content=b"\3\3"):
    """Return a fragment of a large message, whose bytes look like the type of an error, or a port."""
    if version == 4:
        frame = ipv4(protocol, content + bytes(30))
        head = frame[14:20] + struct.pack(">H", 4) + frame[22:24] + bytes(2) + frame[26:34]
        return frame[:14] + head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:] + frame[34:]
    return ipv6(44, struct.pack(">BBHI", 58, 0, 4 << 3, 7) + bytes((1, 4)) + bytes(30))


FAIR = {
    "a later fragment of its own": later_fragment(4),
    "a later fragment of its own, which begins like an answer of DHCP": later_fragment(4, 17, b"\0\x43"),
    "a later fragment of its own, v6": later_fragment(6),
    "its own ARP": lab.arp(MAC, MAC, "10.88.0.5", "10.88.0.6", 1),
    "an error about a packet to it": error4((3, 3), "10.88.0.5"),
    "an error about a packet to it, v6": error6((1, 4), "fd00:88::5"),
    "its own datagram": lab.udp4(MAC, "10.88.0.5", "10.88.255.255"),
    "its own advertisement": lab.icmp6(MAC, "fd00:88::5", "ff02::1", lab.advertisement("fd00:88::5", MAC)),
}


@pytest.fixture(scope="module")
def guarded():
    with lab.Lab() as made:
        yield made


@pytest.fixture(scope="module")
def open_lab():
    with lab.Lab(rules=False) as made:
        yield made


def arrives(where: lab.Lab, frame: bytes) -> bool:
    victim, hostile = where.wire("c2"), where.wire("c1")
    try:
        hostile.send(frame)
        return where.hears(victim, frame)
    finally:
        victim.close()
        hostile.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_guard_stops_frames_with_foreign_addresses(guarded, open_lab, name):
    assert not arrives(guarded, ATTACKS[name])
    assert arrives(open_lab, ATTACKS[name])  # the control


@pytest.mark.parametrize("name", FAIR)
def test_guard_passes_frames_with_own_addresses(guarded, name):
    assert arrives(guarded, FAIR[name])


def test_guard_filters_frames_to_the_router_too(guarded, open_lab):
    frame = lab.arp(MAC, MAC, "10.88.0.6", "10.88.0.1", 1)
    for where, learned in ((guarded, False), (open_lab, True)):
        where.ip("router", "neigh flush dev br0")
        wire = where.wire("c1")
        wire.send(frame)
        where.hears(wire, b"never")  # half a second
        said = where.run("router", "ip neigh show 10.88.0.6 dev br0")
        assert (MAC in said) == learned
        where.ip("router", "neigh flush dev br0")


def test_guard_cannot_be_changed_by_others(guarded):
    guarded.run("router", "nft flush ruleset")
    assert "table bridge containerkit" in guarded.run("router", "nft list tables")
    with guarded.spaces["router"].enter():
        import subprocess

        done = subprocess.run(
            ["nft", "delete", "table", "bridge", "containerkit"], capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert "Operation not permitted" in done.stderr


def test_guard_passes_no_frame_of_a_removed_port():
    with lab.Lab() as where:
        frame = FAIR["its own datagram"]
        assert arrives(where, frame)
        where.router_rules.remove_endpoint("p1")
        assert not arrives(where, frame)
