"""What makes packets between the host and containers fast: larger segments, and a short way to published ports.

What arrives is what was sent. Containers whose packets must be looked at are left out.
"""

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
from waiting import wait_for

from containerkit import Attach, Container, Egress, Network, Port, Rate
from containerkit.network import links

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root: the uplink is a link of the host's")

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


def exchange(container, address, megabytes, port=80):
    """Send to the container, which must have received it, and receive as much."""
    with container.popen(["python3", "-c", SERVE, str(megabytes)], stdout=-1) as server:
        server.stdout.readline()
        with socket.create_connection((address, port), 20) as made, made.makefile("rb") as answer:
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


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 3),
    reason="Linux 6.3: segments of IPv4 with more than 64 KiB",
)
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


def tracked(net):
    """Return the ends of the connections of TCP that the router tracks, which may be that of other networks too."""
    place = f"--net=/proc/{os.getpid()}/fd/{net.router.netns}"
    lines = subprocess.run(
        ["nsenter", place, "cat", "/proc/net/nf_conntrack"], capture_output=True, text=True, check=True
    )
    return {re.search(r"src=\S+ dst=\S+ sport=\d+", line)[0] for line in lines.stdout.splitlines() if " tcp " in line}


def test_what_passes_a_published_port_takes_the_short_way_and_is_whole():
    with (
        Network("front").open() as net,
        Container(network=net, publish=[Port(0, 80), Port(0, 80, host="0.0.0.0")]) as container,
    ):
        local, outer = net.ports(container)
        before = tracked(net)
        exchange(container, "127.0.0.1", 100, local.host_port)
        exchange(container, host_address(), 20, outer.host_port)
        assert tracked(net) <= before


def host_address():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.connect(("192.0.2.1", 9))
        return asking.getsockname()[0]


@pytest.mark.parametrize(
    ("attach", "options"),
    [({"rate": Rate(down="200M")}, {}), ({}, {"egress": Egress.only("198.51.100.1")}), ({"mtu": 9000}, {})],
    ids=["limited rate", "egress rules", "packets larger than the uplink's"],
)
def test_containers_whose_packets_must_be_looked_at_do_not_have_the_short_way(attach, options):
    attach = dict(attach)
    with (
        Network("front", mtu=attach.pop("mtu", None)).open() as net,
        Container(network=Attach(net, **attach), publish=[Port(0, 80)], **options) as container,
    ):
        before = tracked(net)
        exchange(container, "127.0.0.1", 2, net.ports(container)[0].host_port)
        assert len(tracked(net) - before) == 1


def test_ports_of_a_network_that_was_left_are_closed():
    with Network("front").open() as net, Container(network=net, publish=[Port(0, 80)]) as container:
        (port,) = net.ports(container)
        net.detach(container)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port.host_port), 5)
        with socket.create_server(("127.0.0.1", port.host_port)):
            pass


OWNER = """
import os, re, time
from containerkit import Container, Network, Port
def held():
    kinds = {each: os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{each}")}
    found = [each for each, kind in kinds.items() if "bpf" in kind]
    return sorted(re.search(r"(?:map|prog)_id:\\s*\\d+", open(f"/proc/self/fdinfo/{each}").read())[0] for each in found)
with Network("front").open() as net, Container(network=net, publish=[Port(0, 80)]):
    print(held(), flush=True)
    if os.fork() == 0:
        print(held(), flush=True)
        os._exit(0)
    os.wait()
    time.sleep(100)
"""


def exists(kind, number):
    from containerkit._linux import bpf

    try:
        fd, _ = bpf._bpf({"prog_id": 13, "map_id": 14}[kind], number.to_bytes(4, sys.byteorder))
        os.close(fd)
    except FileNotFoundError:
        return False
    return True


def test_nothing_of_the_short_way_outlives_its_owner_or_is_in_its_children():
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        try:
            held = [each.split(":") for each in eval(owner.stdout.readline())]
            assert [kind for kind, _ in held] == ["map_id", "prog_id"]
            assert owner.stdout.readline() == "[]\n"
            assert all(exists(kind, int(number)) for kind, number in held)
        finally:
            owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not any(exists(kind, int(number)) for kind, number in held))
