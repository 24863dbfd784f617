"""Published ports: who can reach them, which client address arrives, and that no other user can take them over."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import threading

import network_lab as lab
import pytest

from containerkit.errors import SetupError
from containerkit.network.conntrack import DELETES_BY_FILTER
from containerkit.spec.network import Port

pytestmark = lab.NEEDS

FOUR, SIX = lab.OUTSIDE
GATEWAY = lab.GATEWAYS["br0"][0]


@pytest.fixture
def where():
    with lab.Lab() as made:
        made.attendant = made.attend()
        yield made


def publish(where: lab.Lab, port: Port, name: str = "c1"):
    with where.spaces["host"].enter():
        made = where.attendant.publish(port, lab.ADDRESSES[name])
    where.stack.callback(made.close)
    return made


def client(where: lab.Lab, name: str, address: str, port: int) -> socket.socket:
    made = where.socket(name, lab.family(address), socket.SOCK_STREAM)
    made.settimeout(3)
    made.connect((address, port))
    return made


def accepted(where: lab.Lab, listener: socket.socket) -> tuple[socket.socket, str]:
    listener.settimeout(3)
    made, place = listener.accept()
    return where.stack.enter_context(made), place[0]


def test_port_on_all_addresses_is_reached_from_outside_with_the_clients_address(where):
    publish(where, Port(8080, 80, host="0.0.0.0"))
    server = where.listen("c1", "0.0.0.0", 80)
    reached = client(where, "outside", "45.0.113.1", 8080)
    inside, seen = accepted(where, server)
    assert seen == FOUR
    inside.sendall(b"served")
    assert reached.recv(10) == b"served"


def test_port_on_all_addresses_of_ipv6(where):
    publish(where, Port(8080, 80, host="::"))
    server = where.listen("c1", "::", 80)
    client(where, "outside", "2a00:db8:9::1", 8080)
    assert accepted(where, server)[1] == SIX


def test_port_on_one_address_is_not_on_another(where):
    where.ip("host", "addr add 45.0.113.2/24 dev eth0")
    publish(where, Port(8080, 80, host="45.0.113.2"))
    where.listen("c1", "0.0.0.0", 80)
    assert where.reaches("outside", "45.0.113.2", 8080)
    assert not where.reaches("outside", "45.0.113.1", 8080)


@pytest.mark.parametrize("address", ["127.0.0.1", "45.0.113.1"])
def test_host_itself_reaches_a_port_by_every_address(where, address):
    publish(where, Port(8080, 80, host="0.0.0.0"))
    server = where.listen("c1", "0.0.0.0", 80)
    client(where, "host", address, 8080).sendall(b"asked")
    assert accepted(where, server)[0].recv(10) == b"asked"


def test_port_on_the_loopback_is_not_reached_from_outside(where):
    publish(where, Port(8080, 80))
    where.listen("c1", "0.0.0.0", 80)
    assert where.reaches("host", "127.0.0.1", 8080)
    assert not where.reaches("outside", "45.0.113.1", 8080)
    # Nor by a neighbour that sends packets for 127.0.0.1 to this host.
    where.ip("outside", "addr del 127.0.0.1/8 dev lo", "route add 127.0.0.1/32 via 45.0.113.1 src 45.0.113.9")
    assert not where.reaches("outside", "127.0.0.1", 8080)


def test_container_reaches_a_published_port_of_its_neighbour_and_its_own_by_the_hosts_address(where):
    publish(where, Port(8080, 80, host="0.0.0.0"))
    where.listen("c1", "0.0.0.0", 80)
    assert where.reaches("c2", "45.0.113.1", 8080)
    assert where.reaches("c3", "45.0.113.1", 8080)
    assert where.reaches("c1", "45.0.113.1", 8080)
    assert not where.reaches("c2", "45.0.113.1", 8081)


LOOPBACKS = pytest.mark.parametrize("loopback", ["127.0.0.1", "::1"])  # redirected; spliced


@LOOPBACKS
def test_megabytes_pass_both_ways_and_half_closing_works(where, loopback):
    publish(where, Port(8080, 80, host=loopback))
    server = where.listen("c1", "::" if ":" in loopback else "0.0.0.0", 80)
    sent = os.urandom(1 << 20) * 24
    got: list[bytes] = []

    def echo() -> None:
        inside, _ = accepted(where, server)
        inside.settimeout(20)
        while data := inside.recv(1 << 16):
            got.append(data)
        inside.sendall(b"".join(got))
        inside.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=echo)
    thread.start()
    reached = client(where, "host", loopback, 8080)
    reached.settimeout(20)
    reached.sendall(sent)
    reached.shutdown(socket.SHUT_WR)
    back = b"".join(iter(lambda: reached.recv(1 << 16), b""))
    thread.join()
    assert back == sent


def test_connection_to_a_port_nobody_serves_is_refused(where):
    publish(where, Port(8080, 80))
    with pytest.raises(ConnectionRefusedError):
        client(where, "host", "127.0.0.1", 8080)


def test_spliced_connection_to_a_port_nobody_serves_is_reset(where):
    publish(where, Port(8080, 80, host="::1"))
    with pytest.raises(ConnectionResetError):
        client(where, "host", "::1", 8080).recv(1)


def test_container_sees_an_address_of_the_host_for_a_connection_from_its_loopback(where):
    publish(where, Port(8080, 80))
    server = where.listen("c1", "0.0.0.0", 80)
    client(where, "host", "127.0.0.1", 8080)
    assert accepted(where, server)[1] == "10.87.0.1"


def test_host_that_does_not_track_its_loopback_reaches_a_port_by_the_splice(where):
    chain = "add chain inet raw output { type filter hook output priority -300; }"
    where.run("host", "nft add table inet raw")
    where.run("host", f"nft {chain}")
    where.run("host", "nft add rule inet raw output oifname lo notrack")
    publish(where, Port(8080, 80))
    server = where.listen("c1", "0.0.0.0", 80)
    client(where, "host", "127.0.0.1", 8080)
    assert accepted(where, server)[1] == GATEWAY


def test_loopback_of_the_host_is_not_reached_from_a_container_or_the_router(where):
    """Packets for 127.0.0.1 that arrive by the uplink, the one interface on which the host takes them."""
    publish(where, Port(8080, 80))
    where.listen("c1", "0.0.0.0", 80)
    where.listen("host", "127.0.0.1", 8099)
    for name, via in (("c1", "10.88.0.1"), ("router", "10.87.0.1")):
        where.write(name, "ipv4/conf/all/route_localnet")
        where.ip(name, "addr del 127.0.0.1/8 dev lo", f"route add 127.0.0.1/32 via {via}")
    assert not where.reaches("router", "127.0.0.1", 8099)
    assert not where.reaches("router", "127.0.0.1", 8080)
    assert not where.reaches("c1", "127.0.0.1", 8099)


@pytest.mark.parametrize(("host", "client_of", "address"), [
    ("127.0.0.1", "host", "127.0.0.1"),
    ("0.0.0.0", "host", "127.0.0.1"),
    ("0.0.0.0", "outside", "45.0.113.1"),
])  # fmt: skip
def test_datagrams_go_there_and_back(where, host, client_of, address):
    publish(where, Port(5353, 53, "udp", host=host))
    server = where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("0.0.0.0", 53))
    server.settimeout(3)
    for number in range(3):
        asking = where.socket(client_of, socket.AF_INET, socket.SOCK_DGRAM)
        asking.settimeout(3)
        asking.connect((address, 5353))
        asking.send(b"%d" % number)
        data, place = server.recvfrom(10)
        server.sendto(b"back " + data, place)
        assert asking.recv(10) == b"back %d" % number


def asker(where: lab.Lab, address: str, port: int = 5353) -> socket.socket:
    """A client that sends all its datagrams from one port."""
    made = where.socket("outside", lab.family(address), socket.SOCK_DGRAM)
    made.connect((address, port))
    return made


def heard(where: lab.Lab, name: str, client: socket.socket, port: int = 53) -> str:
    """Send a datagram, and return from which address it comes to a container, or ``""``."""
    server = where.socket(name, client.family, socket.SOCK_DGRAM)
    server.bind(("", port))
    server.settimeout(0.5)
    with server:
        client.send(b"asked")
        try:
            return server.recvfrom(10)[1][0]
        except TimeoutError:
            return ""


BY_FILTER = pytest.param("by filter", marks=pytest.mark.skipif(not DELETES_BY_FILTER, reason="needs Linux 6.11"))


def forget(monkeypatch, how: str) -> None:
    monkeypatch.setattr("containerkit.network.conntrack.DELETES_BY_FILTER", how == "by filter")
    if how == "not at all":
        monkeypatch.setattr("containerkit.network.conntrack.Connections._forget", lambda *_: None)


@pytest.mark.parametrize("forgets", ["by list", BY_FILTER, "not at all"])
@pytest.mark.parametrize(
    ("address", "seen", "count"), [("45.0.113.1", FOUR, 1), ("45.0.113.1", FOUR, 3), ("2a00:db8:9::1", SIX, 1)]
)
def test_client_of_a_container_reaches_the_one_that_follows(where, monkeypatch, address, seen, count, forgets):
    forget(monkeypatch, forgets)
    port = Port(5353, 53, "udp", host="::" if ":" in address else address, count=count)
    client = asker(where, address)
    first = publish(where, port)
    assert heard(where, "c1", client) == seen
    first.close()
    publish(where, port, "c2")
    assert heard(where, "c2", client) == ("" if forgets == "not at all" else seen)


@pytest.mark.parametrize("forgets", ["by list", BY_FILTER, "not at all"])
def test_client_that_asked_before_a_port_was_published_is_seen_with_its_address(where, monkeypatch, forgets):
    forget(monkeypatch, forgets)
    client = asker(where, "45.0.113.1")
    client.send(b"asked")
    with pytest.raises(ConnectionRefusedError):
        client.recv(1)
    publish(where, Port(5353, 53, "udp", host="0.0.0.0"))
    assert heard(where, "c1", client) == (GATEWAY if forgets == "not at all" else FOUR)


@pytest.mark.parametrize("forgets", ["by list", BY_FILTER])
def test_end_of_a_port_leaves_the_clients_of_others_alone(where, monkeypatch, forgets):
    forget(monkeypatch, forgets)

    def tracked() -> bool:
        shown = where.run("host", "cat /proc/thread-self/net/nf_conntrack")
        return any(f"dport={other}" in line for line in shown.splitlines())

    other = 5360
    client = asker(where, "45.0.113.1", other)
    publish(where, Port(other, 60, "udp", host="45.0.113.1"))
    assert heard(where, "c1", client, 60) == FOUR
    for count in (1, 3):
        publish(where, Port(5353, 53, "udp", host="0.0.0.0", count=count)).close()
    assert tracked()
    # Of another port whose replies would come from the same address and port, all are forgotten.
    with where.spaces["host"].enter():
        where.host_rules.publish("45.0.113.1", 5370, "udp", "10.88.0.5", 60)
    where.host_rules.unpublish("45.0.113.1", 5370, "udp", "10.88.0.5", 60)
    assert not tracked()


def test_range_of_ports(where):
    publish(where, Port(9000, 7000, host="0.0.0.0", count=20))
    for offset in (0, 19):
        server = where.listen("c1", "0.0.0.0", 7000 + offset)
        client(where, "outside", "45.0.113.1", 9000 + offset)
        assert accepted(where, server)[1] == FOUR
    assert not where.reaches("outside", "45.0.113.1", 9020)


def test_port_in_use_is_an_error_and_leaves_nothing(where):
    where.listen("host", "127.0.0.1", 8083)
    with pytest.raises(SetupError, match=r"8083/tcp.*that port is in use") as caught:
        publish(where, Port(8080, 80, host="0.0.0.0", count=10))
    assert caught.value.errno == errno.EADDRINUSE
    where.listen("host", "0.0.0.0", 8080).close()
    published = publish(where, Port(8080, 80, host="0.0.0.0", count=3))
    published.close()
    assert "8080" not in where.run("host", "nft list ruleset")


def test_port_of_one_owner_cannot_be_taken_by_another(where):
    publish(where, Port(8080, 80, host="0.0.0.0"))
    thief = (
        "import os, socket; os.setuid(65534); s = socket.socket(); s.setsockopt(1, 2, 1); s.setsockopt(1, 15, 1);"
        "s.bind(('{}', 8080)); s.listen()"
    )
    for address in ("127.0.0.1", "0.0.0.0", "45.0.113.1"):
        with where.spaces["host"].enter():
            done = subprocess.run(
                ["python3", "-c", thief.format(address)], capture_output=True, text=True, timeout=20, check=False
            )
        assert "Address already in use" in done.stderr
    with pytest.raises(SetupError, match="that port is in use"):
        publish(where, Port(8080, 80), "c2")


def test_any_free_port(where):
    published = publish(where, Port(0, 80))
    server = where.listen("c1", "0.0.0.0", 80)
    assert published.host_port > 1023
    client(where, "host", "127.0.0.1", published.host_port)
    accepted(where, server)


def test_listening_socket_is_passed_on_and_serves(where):
    published = publish(where, Port.socket(8443, fd=3, host="0.0.0.0"))
    handed = where.stack.enter_context(socket.socket(fileno=os.dup(published.fileno())))
    client(where, "outside", "45.0.113.1", 8443)
    assert accepted(where, handed)[1] == FOUR  # without any translation, so with the client's own address


def test_ports_stay_published_after_a_flush_of_all_rules(where):
    publish(where, Port(8080, 80, host="0.0.0.0"))
    where.listen("c1", "0.0.0.0", 80)
    for name in ("host", "router"):
        where.run(name, "nft flush ruleset")
    assert where.reaches("outside", "45.0.113.1", 8080)


def test_closed_port_is_gone_with_its_spliced_connections(where):
    published = publish(where, Port(8080, 80, host="::1"))
    server = where.listen("c1", "::", 80)
    reached = client(where, "host", "::1", 8080)
    inside, _ = accepted(where, server)
    published.close()
    published.close()
    with pytest.raises(ConnectionResetError):
        reached.recv(1)
    with pytest.raises(ConnectionResetError):
        inside.recv(1)
    assert not where.reaches("host", "::1", 8080)


def test_closed_port_of_the_loopback_is_refused(where):
    published = publish(where, Port(8080, 80))
    where.listen("c1", "0.0.0.0", 80)
    assert where.reaches("host", "127.0.0.1", 8080)
    published.close()
    assert not where.reaches("host", "127.0.0.1", 8080)


@LOOPBACKS
def test_hundreds_of_connections_at_once(where, loopback):
    publish(where, Port(8080, 80, host=loopback))
    server = where.listen("c1", "::" if ":" in loopback else "0.0.0.0", 80)
    server.listen(512)
    before = len(os.listdir("/proc/self/fd"))
    pairs = []
    for _ in range(500):
        reached = client(where, "host", loopback, 8080)
        pairs.append((reached, accepted(where, server)[0]))
    for index, (reached, inside) in enumerate(pairs):
        reached.sendall(b"%d" % index)
        assert inside.recv(10) == b"%d" % index
    for reached, inside in pairs:
        reached.close()
        inside.close()
    deadline = threading.Event()
    for _ in range(50):
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        deadline.wait(0.1)
    assert len(os.listdir("/proc/self/fd")) <= before
