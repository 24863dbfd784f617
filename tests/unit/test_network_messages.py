"""The pure functions of networks: DNS and packet filter messages, egress rules, and the log of packets."""

import contextlib
import struct
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import SpecError
from containerkit.network import dns, nfnetlink, refusals
from containerkit.network.guard import link_local
from containerkit.network.resolver import host_servers
from containerkit.network.rules import asked_elements, check_named, opened
from containerkit.spec.network import Egress, EgressRule


def asked(name, kind=dns.A, number=7, extra=b""):
    labels = b"".join(bytes((len(label),)) + label for label in name.encode().split(b".")) + b"\0"
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 1 if extra else 0) + labels + struct.pack(">HH", kind, 1) + extra


def test_question_is_read():
    found = dns.question(asked("Web.Example.ORG", dns.AAAA))
    assert (found.name, found.kind, found.number, found.size, found.extended) == (
        "web.example.org",
        dns.AAAA,
        7,
        512,
        False,
    )


def test_question_with_edns_has_its_maximum_size():
    assert dns.question(asked("a.test", extra=struct.pack(">BHHIH", 0, 41, 4096, 0, 0))).size == 1232


@given(st.binary(max_size=80))
def test_question_of_anything_is_read_or_refused(data):
    for message in (data, asked("a.test")[:12] + data):
        with contextlib.suppress(ValueError):
            dns.question(message)
        with contextlib.suppress(ValueError):
            dns.records(message)


@pytest.mark.parametrize(
    "name",
    [b"\xc0\x0c", b"\x01a\xc0\x0c", b"\xc0\xff", b"\x41" + b"a" * 65 + b"\0", b"\x3f" + b"a" * 63, b"\3a.b\0"],
    ids=["itself", "back to itself", "ahead", "unknown kind of label", "cut off", "dot in a label"],
)
def test_name_with_an_invalid_pointer_is_refused(name):
    with pytest.raises(ValueError, match=r"."):
        dns.question(struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1))


def test_answer_has_what_was_asked_for():
    question = dns.question(asked("a.test", dns.AAAA))
    reply = dns.answer(question, ["10.0.0.1", "fd00::1", "fd00::2"], 9)
    assert dns.records(reply) == [("fd00::1", 9), ("fd00::2", 9)]
    assert dns.answers(reply, 7, question)
    assert not dns.answers(reply, 8, question)
    assert not dns.answers(reply, 7, dns.question(asked("b.test", dns.AAAA)))


def test_answer_without_addresses_of_the_kind_is_no_error():
    reply = dns.answer(dns.question(asked("a.test", dns.AAAA)), ["10.0.0.1"])
    assert reply[3] & 15 == dns.NO_ERROR
    assert dns.records(reply) == []


def test_question_for_a_server_holds_nothing_of_the_client_but_the_name():
    secret = b"carried along"
    option = struct.pack(">BHHIH", 0, 41, 4096, 0, len(secret)) + secret
    made = dns.ask(dns.question(asked("a.test", extra=option)), 99)
    assert secret not in made
    assert dns.question(made).name == "a.test"


def test_attribute_is_padded_to_four_bytes():
    assert nfnetlink.attribute(3, b"abcde") == struct.pack("=HH", 9, 3) + b"abcde\0\0\0"


def test_batch_frames_each_message_and_numbers_it():
    data = nfnetlink.encode([nfnetlink.table(nfnetlink.INET, "t")], 40)
    kinds = []
    while data:
        length, kind, _, number = struct.unpack_from("=IHHI", data)
        kinds.append((kind, number))
        data = data[length:]
    assert kinds == [(0x10, 40), (10 << 8, 41), (0x11, 42)]


def test_many_elements_are_several_messages():
    wanted = [nfnetlink.Element(struct.pack(">I", number)) for number in range(1000)]
    made = nfnetlink.elements(nfnetlink.INET, "t", "s", wanted)
    assert len(made) == 4
    assert all(len(each.body) < 65536 for each in made)


def test_rules_by_network_become_ranges():
    (element,) = asked_elements("10.0.0.5", [EgressRule("198.51.100.0/24", ((443, 444),), "tcp")], exact=False)
    assert element.key == bytes((10, 0, 0, 5, 198, 51, 100, 0, 6, 0, 0, 0)) + struct.pack(">HH", 443, 0)
    assert element.end == bytes((10, 0, 0, 5, 198, 51, 100, 255, 6, 0, 0, 0)) + struct.pack(">HH", 444, 0)


def test_network_with_special_ranges_allows_only_the_rest():
    ranges = opened(ip_network("0.0.0.0/0"))
    assert (bytes((1, 0, 0, 0)), bytes((9, 255, 255, 255))) in ranges
    for special in (
        "10.1.2.3",
        "127.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.168.1.1",
        "224.0.0.1",
    ):
        packed = ip_address(special).packed
        assert not any(first <= packed <= last for first, last in ranges)
    assert any(first <= bytes((8, 8, 8, 8)) <= last for first, last in ranges)


def test_network_within_a_special_range_is_allowed_without_nested_special_ranges():
    assert opened(ip_network("10.1.0.0/16")) == [(bytes((10, 1, 0, 0)), bytes((10, 1, 255, 255)))]
    assert opened(ip_network("169.254.169.254")) == [(bytes((169, 254, 169, 254)),) * 2]
    carriers = opened(ip_network("100.64.0.0/10"))
    assert [last for _, last in carriers] == [bytes((100, 100, 100, 199)), bytes((100, 127, 255, 255))]
    assert all(len(first) == 16 for first, _ in opened(ip_network("::/0")))


def test_ports_without_a_protocol_are_those_of_tcp_and_udp():
    made = asked_elements("10.0.0.5", Egress.only("198.51.100.0/24:53").rules, exact=False)
    assert {element.key[8] for element in made} == {6, 17}
    assert asked_elements("10.0.0.5", Egress.only("2001:db8::/32").rules, exact=False) == []


def test_rule_by_name_with_too_many_ports_is_refused():
    with pytest.raises(SpecError, match="at most 256 ports"):
        check_named(Egress.only("a.test:1000-2000"))
    with pytest.raises(SpecError, match=r"is a URL; name its host"):
        Egress.only("https://a.test/")
    with pytest.raises(SpecError, match="the protocol is /tcp or /udp"):
        Egress.only("a.test:443/icmp")
    with pytest.raises(SpecError, match=r"without rules all are allowed, or name '\*\.example\.com'"):
        Egress.only("*")
    check_named(Egress.only("198.51.100.0/24:1000-2000", "a.test:1000-1255"))


def test_link_local_address_is_the_kernels():
    assert link_local("02:00:0a:58:00:05").hex() == "fe8000000000000000000afffe580005"


def test_log_of_packets_is_read():
    packet = bytes((0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 5, 198, 51, 100, 7)) + struct.pack(">HH", 9, 443)
    body = b"\2\0\0\1" + nfnetlink.attribute(1, struct.pack(">HBx", 0x0800, 1))
    body += nfnetlink.attribute(9, packet) + nfnetlink.attribute(10, b"egress\0")
    (found,) = refusals.read(struct.pack("=IHHII", 16 + len(body), 4 << 8, 0, 0, 0) + body)
    assert isinstance(found, refusals.Refusal)
    assert (found.kind, found.source, found.destination) == ("egress", "10.0.0.5", "198.51.100.7")
    assert (found.protocol, found.port) == ("tcp", 443)


@given(st.binary(max_size=120))
def test_log_of_anything_is_read_without_an_error(data):
    refusals.read(struct.pack("=IHHII", 16 + len(data), 4 << 8, 0, 0, 0) + data)
    refusals.read(data)


def test_servers_of_the_host_are_read(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text("# nameserver 9.9.9.9\nsearch a.test\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\noptions x\n")
    assert host_servers(str(path)) == ("192.0.2.53", "fe80::1%eth0")
    assert host_servers(str(tmp_path / "nothing")) == ("127.0.0.1",)
