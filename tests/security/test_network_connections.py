"""A container that opens as many connections as it can: the shared connection table still has room for others."""

import socket

import network_lab as lab
import pytest

pytestmark = lab.NEEDS

MANY = """
import socket, sys
address, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
for port in range(first, last):
    try:
        made.sendto(b"x", (address, port))
    except OSError:
        pass
"""
OVER = 9500  # more than may be open at once, less than may be made at once


@pytest.fixture
def where():
    with lab.Lab() as made:
        made.listen("outside", lab.OUTSIDE[0], 80)
        yield made


def connections(where, name):
    return int(where.run(name, "cat /proc/sys/net/netfilter/nf_conntrack_count"))


def flood(where, name, address, count=OVER):
    with where.spaces[name].enter():
        lab.subprocess.run(["python3", "-c", MANY, address, "20000", str(20000 + count)], check=True, timeout=60)


@pytest.mark.parametrize("address", lab.OUTSIDE)
def test_connections_of_one_container_are_bounded_and_others_continue(where, address):
    attendant = where.attend()
    flood(where, "c1", address)
    for name in ("router", "host"):
        assert 8000 <= connections(where, name) <= 8300, name
    assert not where.reaches("c1", lab.OUTSIDE[0], 80) or ":" in address
    assert where.reaches("c2", lab.OUTSIDE[0], 80, timeout=5)
    assert {each.kind for each in attendant.refusals()} == {"connections"}


def test_without_the_bound_one_container_has_unlimited_connections():
    with lab.Lab(rules=False) as where:
        where.run("host", "nft add table inet t")
        where.run("host", "nft add chain inet t f { type filter hook forward priority 0; }")
        where.run("host", "nft add rule inet t f ct state new accept")
        flood(where, "c1", lab.OUTSIDE[0])
        assert connections(where, "host") >= OVER


def test_dns_questions_are_not_tracked_as_connections(where):
    where.attend()
    before = connections(where, "router")
    question = bytes.fromhex("000101000001000000000000") + b"\2c2\0\0\1\0\1"
    for _ in range(50):
        with where.spaces["c1"].enter():
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with asking:
            asking.settimeout(10)
            asking.connect(("10.88.0.1", 53))
            asking.send(question)
            assert asking.recv(512)[:2] == question[:2]
    assert connections(where, "router") <= before + 5
