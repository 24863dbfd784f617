"""The short way of connections to published ports: what takes it, and what a hostile container can't do with it.

The containers have all capabilities over their namespaces. A packet that must be refused goes to an address that belongs
to the metadata service of a cloud: the router's rules never forward a new connection to it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import time

import network_lab as lab
import pytest

from containerkit._linux.bpf import Code
from containerkit.network import short_programs, short_way
from containerkit.network.endpoint import Wire
from containerkit.spec.network import Port

pytestmark = lab.NEEDS

OUTSIDE, HOST, CONTAINER = lab.OUTSIDE[0], "45.0.113.1", lab.ADDRESSES["c1"][0]
METADATA = lab.PRIVATE[1]
FIN, SYN, RST, ACK = 1, 2, 4, 16


@pytest.fixture(scope="module")
def place():
    with lab.Lab() as made:
        made.attendant = made.attend()
        yield made


@pytest.fixture
def where(place):
    with contextlib.ExitStack() as place.stack:
        yield place


def wire(where: lab.Lab, port: str = "p1") -> Wire:
    return Wire(
        bridge="br0",
        bridge_index=where.index("router", "br0"),
        port=port,
        port_index=where.index("router", port),
        mac=lab.MACS["c1"],
        port_mac="",
        interface="eth0",
        number=2,
        addresses=(f"{CONTAINER}/16",),
        gateways=lab.GATEWAYS["br0"],
        gateway_mac=where.mac("router", "br0"),
        has_default_route=True,
        mtu=1500,
        isolated=False,
        down=None,
        up=None,
    )


def publish(where: lab.Lab, *, short: bool = True, port: str = "p1"):
    with where.spaces["host"].enter():
        over = wire(where, port) if short else None
        made = where.attendant.publish(Port(8080, 80, host="0.0.0.0"), lab.ADDRESSES["c1"], over)
    where.stack.callback(made.close)
    return made


def made_again(where: lab.Lab, monkeypatch) -> short_way.ShortWay:
    """Replace the short way of a laboratory, whose programs or sizes a test has changed."""
    made = where.short_way()
    where.stack.callback(made.close)
    monkeypatch.setattr(where.attendant, "_short_way", made)
    return made


class Pair:
    """A connection from outside to the published port, and its end in the container."""

    def __init__(self, where: lab.Lab, listener: socket.socket, source: str = OUTSIDE) -> None:
        self.client = where.socket("outside", socket.AF_INET, socket.SOCK_STREAM)
        self.client.settimeout(5)
        self.client.bind((source, 0))
        self.client.connect((HOST, 8080))
        listener.settimeout(5)
        self.server = where.stack.enter_context(listener.accept()[0])
        self.server.settimeout(5)
        self.source, self.number = self.client.getsockname()

    def talks(self) -> bool:
        """Whether a byte arrives, first from the container, then from the client."""
        for one, other in ((self.server, self.client), (self.client, self.server)):
            try:
                one.sendall(b"x")
                if other.recv(1) != b"x":
                    return False
            except OSError:
                return False
        return True


@pytest.fixture
def listener(where):
    return where.listen("c1", CONTAINER, 80)


def tracked(where: lab.Lab, name: str, number: int) -> bool:
    """Return whether a namespace tracks a connection of this port of a client."""
    return f" sport={number} " in where.run(name, "cat /proc/net/nf_conntrack")


def segment(
    pair: Pair,
    flags: int,
    *,
    target: str = "",
    mac: str = lab.MACS["c1"],
    number: int = 0,
    at: tuple[int, int] = (77, 77),
) -> bytes:
    """Return a frame of the container to its client, or to another address, with forged content."""
    to = socket.inet_aton(target or pair.source)
    tcp = struct.pack(">HHIIBBHHH", 80, number or pair.number, *at, 5 << 4, flags, 512, 0, 0) + b"forged"
    ends = socket.inet_aton(CONTAINER) + to
    total = lab.checksum(ends + struct.pack(">HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack(">H", total) + tcp[18:]
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(tcp), 0, 0x4000, 64, 6, 0) + ends
    head = head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:]
    return lab.ethernet(mac, 0x0800, head + tcp, where_to[0])


where_to = [""]  # the MAC of the bridge


@pytest.fixture(autouse=True)
def bridge_mac(place):
    where_to[0] = place.mac("router", "br0")


def passes(where: lab.Lab, frame: bytes, sender: str = "c1") -> bool:
    """Return whether a frame that a container sends comes out of the router."""
    heard = where.socket("host", socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    heard.bind(("ck1", 0x0800))
    with where.wire(sender) as hostile:
        hostile.send(frame)
    while select.select([heard], [], [], 0.2)[0]:
        if heard.recv(2048).endswith(frame[34:]):
            return True
    return False


# --- What takes it


@pytest.mark.parametrize("short", [True, False])
def test_router_tracks_only_connections_that_take_the_usual_way_and_the_host_all(where, listener, short):
    publish(where, short=short)
    inside = where.wire("c1")
    pair = Pair(where, listener)
    assert pair.talks()
    assert tracked(where, "host", pair.number)
    assert tracked(where, "router", pair.number) != short
    frame = inside.recv(100)
    while frame[12:14] != b"\x08\0":
        frame = inside.recv(100)
    # The container can't tell the difference: the MACs of the bridge and of itself, two routers less in the time to live.
    assert frame[:12] == lab.raw(lab.MACS["c1"]) + lab.raw(where_to[0])
    assert frame[22] == 62


def test_connections_of_the_container_from_that_port_take_the_usual_way(where):
    publish(where)
    server = where.listen("outside", OUTSIDE, 4000)
    made = where.socket("c1", socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.settimeout(5)
    made.bind((CONTAINER, 80))
    made.connect((OUTSIDE, 4000))
    with server.accept()[0] as accepted:
        accepted.sendall(b"x")
        assert made.recv(1) == b"x"
    assert "dport=4000 " in where.run("router", "cat /proc/net/nf_conntrack")


def test_connection_continues_when_its_port_is_closed(where, listener):
    published = publish(where)
    one, other = Pair(where, listener), Pair(where, listener)
    published.close()
    assert one.talks()
    other.client.sendall(b"y")  # here the client is the first to send
    assert other.server.recv(1) == b"y"
    assert other.talks()
    assert tracked(where, "router", one.number)


def test_connection_that_was_forgotten_among_many_continues(where, listener, monkeypatch):
    monkeypatch.setattr(short_way, "_MOST_FLOWS", 8)
    made_again(where, monkeypatch)
    publish(where)
    pairs = [Pair(where, listener) for _ in range(40)]
    forgotten = 0
    for pair in pairs:
        assert pair.talks()
        forgotten += tracked(where, "router", pair.number)
    assert forgotten >= 16  # the kernel keeps some more for each processor


def test_packet_that_is_too_large_behind_the_host_is_reported_to_the_container(where, listener):
    publish(where)
    pair = Pair(where, listener)
    where.ip("host", "link set eth0 mtu 1300")
    try:
        pair.server.sendall(bytes(100_000))
        left = 100_000
        while left:
            left -= len(pair.client.recv(left))
    finally:
        where.ip("host", "link set eth0 mtu 1500")
    assert "mtu 1300" in where.run("c1", f"ip route get {OUTSIDE}")
    assert not tracked(where, "router", pair.number)


def test_kernel_that_refuses_a_program_leaves_the_usual_way(where, listener, monkeypatch):
    def refused(*_: object) -> Code:
        code = Code()
        code.jump("end")
        code.label("end")
        return code

    monkeypatch.setattr(short_programs, "inward", refused)
    made = made_again(where, monkeypatch)
    before = len(os.listdir("/proc/self/fd"))
    undo = made.open(wire(where), CONTAINER, range(80, 81))
    assert len(os.listdir("/proc/self/fd")) == before
    undo()
    publish(where)
    pair = Pair(where, listener)
    assert pair.talks()


# --- What a hostile container can't do


@pytest.mark.parametrize("flags", [ACK, SYN | ACK, RST, FIN | ACK, SYN | FIN])
def test_container_reaches_only_clients_that_connected(where, listener, flags):
    publish(where)
    pair = Pair(where, listener, METADATA)
    assert not passes(where, segment(pair, flags, number=pair.number + 1))
    assert not passes(where, segment(pair, flags, target=lab.PRIVATE[2]))
    if not flags & SYN:
        assert passes(where, segment(pair, flags))  # as a control


def test_connection_that_the_container_opens_to_its_client_is_a_new_one(where, listener):
    publish(where)
    pair = Pair(where, listener, METADATA)
    assert passes(where, segment(pair, ACK))
    assert not passes(where, segment(pair, SYN))
    assert not passes(where, segment(pair, ACK))


def test_neighbour_cannot_answer_for_the_container(where, listener):
    publish(where)
    pair = Pair(where, listener, METADATA)
    assert not passes(where, segment(pair, ACK, mac=lab.MACS["c2"]), "c2")
    assert not passes(where, segment(pair, ACK), "c2")
    assert passes(where, segment(pair, ACK))


def test_reset_ends_it(where, listener):
    publish(where)
    pair = Pair(where, listener, METADATA)
    pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    pair.client.close()
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)
    assert not passes(where, segment(pair, ACK))


def test_both_ends_end_it_after_some_time(where, listener, monkeypatch):
    monkeypatch.setattr(short_programs, "_ENDED_NS", 300_000_000)
    made_again(where, monkeypatch)
    publish(where)
    pair = Pair(where, listener, METADATA)
    pair.client.shutdown(socket.SHUT_WR)
    assert pair.server.recv(1) == b""
    time.sleep(0.4)
    assert passes(where, segment(pair, ACK))  # only one end has ended
    pair.server.shutdown(socket.SHUT_WR)
    assert pair.client.recv(1) == b""
    assert passes(where, segment(pair, ACK))
    time.sleep(0.4)
    assert not passes(where, segment(pair, ACK))


def test_closed_port_ends_it(where, listener):
    published = publish(where)
    pair = Pair(where, listener, METADATA)
    published.close()
    assert not passes(where, segment(pair, ACK))


def test_next_container_with_the_address_does_not_get_the_clients_of_the_former(where, listener):
    published = publish(where)
    pair = Pair(where, listener, METADATA)
    published.close()
    publish(where, port="p2")
    assert not passes(where, segment(pair, ACK))


def test_message_about_a_connection_passes_only_if_it_quotes_one(where, listener):
    publish(where)
    pair = Pair(where, listener, METADATA)

    def message(number: int) -> bytes:
        quoted = struct.pack(">BBHHHBBH", 0x45, 0, 1500, 0, 0x4000, 62, 6, 0)
        quoted += socket.inet_aton(pair.source) + socket.inet_aton(CONTAINER) + struct.pack(">HHI", number, 80, 77)
        body = struct.pack(">BBHHH", 3, 4, 0, 0, 1200) + quoted
        body = body[:2] + struct.pack(">H", lab.checksum(body)) + body[4:]
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0)
        head += socket.inet_aton(CONTAINER) + socket.inet_aton(pair.source)
        head = head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:]
        return lab.ethernet(lab.MACS["c1"], 0x0800, head + body, where_to[0])

    assert passes(where, message(pair.number))
    assert not passes(where, message(pair.number + 1))


def test_host_forwards_nothing_that_its_connection_tracking_finds_invalid(where, listener):
    publish(where)
    inside = where.wire("c1")
    pair = Pair(where, listener)
    heard = where.socket("outside", socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
    assert pair.talks()
    frames = [
        each for each in frames_of(inside) if each[23:24] == b"\6" and each[34:36] == pair.number.to_bytes(2, "big")
    ]
    sequence, answer = struct.unpack_from(">II", frames[-1], 38)
    # It acknowledges what was never sent. The router's connection tracking no longer sees that.
    assert passes(where, segment(pair, ACK, at=(answer, sequence + (1 << 30) & 0xFFFFFFFF)))
    assert not any(b"forged" in each for each in frames_of(heard))
    assert passes(where, segment(pair, ACK, at=(answer, sequence)))
    assert any(b"forged" in each for each in frames_of(heard))


def frames_of(heard: socket.socket) -> list[bytes]:
    found = []
    while select.select([heard], [], [], 0.2)[0]:
        found.append(heard.recv(2048))
    return found
