"""A router's rules and attendant in namespaces made by hand. The containers have all capabilities in theirs."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from shutil import which
from typing import Self

import pytest

from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.namespace import Namespace
from containerkit.network.attendant import Attendant
from containerkit.network.host_rules import HostRules
from containerkit.network.nfnetlink import Nfnetlink
from containerkit.network.rules import RouterRules
from containerkit.network.short_way import ShortWay

NEEDS = pytest.mark.skipif(
    os.geteuid() != 0 or which("nft") is None or which("ip") is None,
    reason="needs root for network namespaces by hand, and Debian's packages nftables and iproute2",
)

MACS = {"c1": "02:00:0a:58:00:05", "c2": "02:00:0a:58:00:06", "c3": "02:00:0a:59:00:05"}
ADDRESSES = {
    "c1": ("10.88.0.5", "fd00:88::5"),
    "c2": ("10.88.0.6", "fd00:88::6"),
    "c3": ("10.89.0.5", "fd00:89::5"),
}
GATEWAYS = {"br0": ("10.88.0.1", "fd00:88::1"), "br1": ("10.89.0.1", "fd00:89::1")}
OUTSIDE = ("45.0.113.9", "2a00:db8:9::9")
PRIVATE = ("10.99.0.9", "169.254.169.254", "100.100.100.200")


def _fresh() -> Namespace:
    made: list[Namespace] = []

    def work() -> None:
        calls.unshare(k.CLONE_NEWNET)
        made.append(Namespace.current("network"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0]


class Lab:
    """outside - host - router - br0 (c1, c2), br1 (c3), each a network namespace."""

    def __init__(self, *, rules: bool = True) -> None:
        self.spaces = {name: _fresh() for name in ("outside", "host", "router", "c1", "c2", "c3")}
        self.stack = contextlib.ExitStack()
        self.router_rules: RouterRules | None = None
        self.host_rules: HostRules | None = None
        for name in self.spaces:
            self.ip(name, "link set lo up")
            self.write(name, "ipv6/conf/default/accept_dad", "ipv6/conf/all/accept_dad", value="0")
        self.pair("outside", "eth0", "host", "eth0")
        self.pair("host", "ck1", "router", "up0")
        self.ip("outside", "addr add 45.0.113.9/24 dev eth0", "addr add 2a00:db8:9::9/64 dev eth0 nodad")
        self.ip(
            "host",
            "addr add 45.0.113.1/24 dev eth0",
            "addr add 2a00:db8:9::1/64 dev eth0 nodad",
            "addr add 10.87.0.1/30 dev ck1",
            "addr add fd00:87::1/64 dev ck1 nodad",
        )
        self.ip("router", "addr add 10.87.0.2/30 dev up0", "addr add fd00:87::2/64 dev up0 nodad")
        self.ip("outside", *[f"addr add {address}/32 dev lo" for address in PRIVATE])
        self.ip("host", *[f"route add {address}/32 via 45.0.113.9" for address in PRIVATE])
        nets = ("10.88.0.0/16", "10.89.0.0/16", "fd00:88::/64", "fd00:89::/64")
        self.ip("host", *[f"route add {net} via {'fd00:87::2' if ':' in net else '10.87.0.2'}" for net in nets])
        self.ip("outside", "route add default via 45.0.113.1", "route add default via 2a00:db8:9::1")
        self.ip("router", "route add default via 10.87.0.1", "route add default via fd00:87::1")
        for name in ("router", "host"):
            self.write(name, "ipv4/ip_forward", "ipv6/conf/all/forwarding")
        for table in ("iptables", "ip6tables", "arptables"):  # as the router does: frames are the guard's alone
            self.write("router", f"bridge/bridge-nf-call-{table}", value="0")
        for bridge, (four, six) in GATEWAYS.items():
            made = (f"link add {bridge} type bridge", f"link set {bridge} up")
            self.ip("router", *made, f"addr add {four}/16 dev {bridge}", f"addr add {six}/64 dev {bridge} nodad")
        for index, (name, bridge) in enumerate((("c1", "br0"), ("c2", "br0"), ("c3", "br1")), 1):
            self._container(name, bridge, f"p{index}")
        with self.spaces["router"].enter():
            self.nft = Nfnetlink()
            if rules:
                self.router_rules = RouterRules(self.nft)
        if self.router_rules is not None:
            for bridge in GATEWAYS:
                self.router_rules.add_bridge(bridge)
            for index, name in enumerate(MACS, 1):
                self.router_rules.add_endpoint(f"p{index}", MACS[name], ADDRESSES[name])
        if rules:
            with self.spaces["host"].enter():
                self.host_rules = HostRules(Nfnetlink(), "ck1")
            self.write("host", "ipv4/conf/ck1/route_localnet")
            for net in nets:
                self.host_rules.add_subnet(net)

    def _container(self, name: str, bridge: str, port: str) -> None:
        self.pair(name, "eth0", "router", port, mac=MACS[name])
        self.ip("router", f"link set {port} master {bridge}")
        four, six = ADDRESSES[name]
        added = (f"addr add {four}/16 dev eth0", f"addr add {six}/64 dev eth0 nodad")
        self.ip(name, *added, *[f"route add default via {gateway}" for gateway in GATEWAYS[bridge]])

    def pair(self, one: str, first: str, other: str, second: str, mac: str = "") -> None:
        with self.spaces[one].enter():
            made = f"ip link add {first} {f'address {mac}' if mac else ''} type veth peer name {second}"
            subprocess.run(
                [*made.split(), "netns", f"/proc/self/fd/{self.spaces[other].fileno()}"],
                check=True,
                pass_fds=[self.spaces[other].fileno()],
            )
        self.ip(one, f"link set {first} up")
        self.ip(other, f"link set {second} up")

    def ip(self, name: str, *commands: str) -> None:
        """Run commands of ip(8), all in one process."""
        self.run(name, "ip -batch -", input="\n".join(commands))

    def run(self, name: str, command: str, **more) -> str:
        with self.spaces[name].enter():
            done = subprocess.run(command.split(), capture_output=True, text=True, timeout=20, **more)
        assert done.returncode == 0, (name, command, done.stderr)
        return done.stdout

    def write(self, name: str, *settings: str, value: str = "1") -> None:
        with self.spaces[name].enter():
            for setting in settings:
                with open(f"/proc/sys/net/{setting}", "w") as file:
                    file.write(value)

    def socket(self, name: str, *how) -> socket.socket:
        with self.spaces[name].enter():
            return self.stack.enter_context(socket.socket(*how))

    def listen(self, name: str, address: str, port: int) -> socket.socket:
        made = self.socket(name, family(address), socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if made.family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(16)
        return made

    def reaches(self, name: str, address: str, port: int, timeout: float = 1.0, source: str = "") -> bool:
        with self.spaces[name].enter():
            made = socket.socket(family(address), socket.SOCK_STREAM)
        with made:
            made.settimeout(timeout)
            try:
                if source:
                    made.bind((source, 0))
                made.connect((address, port))
            except OSError:
                return False
            return True

    def in_router(self, family, kind, protocol) -> socket.socket:
        with self.spaces["router"].enter():
            return socket.socket(family, kind, protocol)

    def attend(self) -> Attendant:
        attendant = Attendant(self.in_router, self.router_rules, self.host_rules, self.short_way)
        self.stack.callback(attendant.close)
        for bridge, gateways in GATEWAYS.items():
            attendant.add_network(bridge, gateways)
        for name, bridge in (("c1", "br0"), ("c2", "br0"), ("c3", "br1")):
            attendant.add_container(name, bridge, ADDRESSES[name], (name, f"{name}.{bridge}.test"))
        return attendant

    def short_way(self) -> ShortWay:
        header = raw(self.mac("host", "ck1")) + raw(self.mac("router", "up0"))
        return ShortWay(self.in_router, self.index("router", "up0"), header)

    def index(self, name: str, interface: str) -> int:
        with self.spaces[name].enter():
            return socket.if_nametoindex(interface)

    def mac(self, name: str, interface: str) -> str:
        return self.run(name, f"ip -o link show {interface}").split("link/ether ")[1].split()[0]

    # --- Frames

    def wire(self, name: str, interface: str = "eth0") -> socket.socket:
        made = self.socket(name, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((interface, 0))
        made.settimeout(0.5)
        return made

    def hears(self, listener: socket.socket, frame: bytes) -> bool:
        """Return whether a frame arrives within half a second."""
        with contextlib.suppress(TimeoutError):
            while True:
                if listener.recv(2048)[: len(frame)] == frame:
                    return True
        return False

    def close(self) -> None:
        self.stack.close()
        self.nft.close()
        if self.host_rules is not None:
            self.host_rules.close()
        for space in self.spaces.values():
            space.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(source: str, kind: int, body: bytes, target: str = "ff:ff:ff:ff:ff:ff") -> bytes:
    return raw(target) + raw(source) + struct.pack(">H", kind) + body


def arp(source: str, sender_mac: str, sender: str, target: str, operation: int = 2) -> bytes:
    body = bytes.fromhex("0001080006040000")[:6] + struct.pack(">H", operation)
    body += raw(sender_mac) + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    return ethernet(source, 0x0806, body)


def udp4(source_mac: str, source: str, target: str, target_mac: str = "ff:ff:ff:ff:ff:ff") -> bytes:
    payload = struct.pack(">HHHH", 4000, 4001, 12, 0) + b"evil"
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target)
    head = head[:10] + struct.pack(">H", checksum(head)) + head[12:]
    return ethernet(source_mac, 0x0800, head + payload, target_mac)


def icmp6(source_mac: str, source: str, target: str, body: bytes, extension: bytes = b"") -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, target)
    total = checksum(ends + struct.pack(">IHBB", len(body), 0, 0, 58) + body)
    body = body[:2] + struct.pack(">H", total) + body[4:]
    following = 0 if extension else 58
    head = struct.pack(">IHBB", 0x60000000, len(extension) + len(body), following, 255) + ends
    return ethernet(source_mac, 0x86DD, head + extension + body, "33:33:00:00:00:01")


def advertisement(target: str, mac: str) -> bytes:
    """Return a neighbour advertisement that claims an address."""
    return struct.pack(">BBHI", 136, 0, 0, 0x20000000) + socket.inet_pton(socket.AF_INET6, target) + b"\2\1" + raw(mac)


def router_advertisement() -> bytes:
    return struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
