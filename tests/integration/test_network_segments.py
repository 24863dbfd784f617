"""Segments of more than 64 KiB between the host and containers: what arrives is what was sent, and who sees them."""

import contextlib
import hashlib
import os
import socket

import pytest

from containerkit import Attach, Container, Network, Rate
from containerkit.network import links

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root: the uplink is a link of the host's"),
    pytest.mark.skipif(
        tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3),
        reason="Linux 6.3: segments of IPv4 with more than 64 KiB",
    ),
]

PIECE = os.urandom(1 << 20)
SERVE = """
import hashlib, socket, sys
listener = socket.create_server(("", 80))
print(flush=True)
made, _ = listener.accept()
heard, left, piece = hashlib.sha256(), int(sys.argv[1]) << 20, b""
while left and (data := made.recv(min(left, 1 << 18))):
    heard.update(data)
    left -= len(data)
    piece = piece if len(piece) == 1 << 20 else (piece + data)[:1 << 20]
made.sendall(heard.digest())
for _ in range(int(sys.argv[1])):
    made.sendall(piece)
"""


def exchange(container, address, megabytes):
    """Send to the container, which must have received it, and receive as much."""
    with container.popen(["python3", "-c", SERVE, str(megabytes)], stdout=-1) as server:
        server.stdout.readline()
        with socket.create_connection((address, 80), 20) as made, made.makefile("rb") as answer:
            sent = hashlib.sha256()
            for _ in range(megabytes):
                made.sendall(PIECE)
                sent.update(PIECE)
            assert answer.read(32) == sent.digest()
            assert [answer.read(1 << 20) == PIECE for _ in range(megabytes)] == [True] * megabytes
        server.kill()


@contextlib.contextmanager
def watched(container):
    """Yield a function that returns the bytes of the largest packet into a container and of the largest out of it."""
    with container.namespace("network") as space, space.enter():
        seen = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL: also what it sends
    with seen:
        seen.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE: the first packets that fit are enough
        seen.setblocking(False)

        def largest():
            found = {True: 0, False: 0}
            with contextlib.suppress(BlockingIOError):
                while True:
                    length, place = seen.recvfrom_into(bytearray(64), 64, socket.MSG_TRUNC)
                    outgoing = place[2] == socket.PACKET_OUTGOING
                    found[outgoing] = max(found[outgoing], length)
            return found[False], found[True]

        yield largest


def test_what_the_host_sends_arrives_in_larger_segments_and_whole():
    with Network("large").open() as net, Container(network=net) as container:
        address = net.addresses(container)[0]
        with watched(container) as largest:
            exchange(container, address, 100)
            assert 100_000 < largest()[0] <= links.LARGEST + 14
        with watched(container) as largest:  # whose buffer has room for all of this
            exchange(container, address, 4)
            # What a container sends may leave by a network card, which does not take more.
            assert 1 << 14 < largest()[1] <= (1 << 16) + 14


@pytest.mark.parametrize("how", [{"rate": Rate(down="200M")}, {"mtu": 1280}])
def test_segments_are_cut_where_a_rate_is_limited_and_for_a_smaller_mtu(how):
    with Network("large", mtu=how.get("mtu")).open() as net:
        attach = Attach(net, **{"rate": how["rate"]} if "rate" in how else {})
        with Container(network=attach) as container:
            exchange(container, net.addresses(container)[0], 8)
