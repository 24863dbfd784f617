"""Containers on networks, of root and of an unprivileged user, on a simulated host with an outside network."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from shutil import which
from typing import TYPE_CHECKING

import network_lab as lab
import pytest
from name_server import NameServer

import containerkit

if TYPE_CHECKING:
    import socket

pytestmark = lab.NEEDS

FOUR, SIX = lab.OUTSIDE
HOST = "45.0.113.1"

# In the container: what becomes of each connection, as JSON.
TRY = """
import json, socket, sys
found = {}
for place in sys.argv[1:]:
    host, port = place.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), 4) as made:
            found[place] = made.recv(100).decode() or "connected"
    except OSError as error:
        found[place] = type(error).__name__
print(json.dumps(found))
"""

BEGIN = """
import json, os, socket, sys, threading, time
from containerkit import {names}
TRY, FOUR, HOST = {try_!r}, {four!r}, {host!r}
PYTHON = "/usr/bin/python3"

def tried(container, *places):
    done = container.run([PYTHON, "-c", TRY, *places], text=True, capture_output=True, timeout=60)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr

def serving(address, port, said):
    listener = socket.create_server((address, port))
    def serve():
        while True:
            accepted, place = listener.accept()
            accepted.sendall((said or place[0]).encode())
            accepted.close()
    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]
"""

USERS = {
    "root": [],
    "unprivileged": [
        "unshare",
        "-m",
        "sh",
        "-c",
        'mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && exec setpriv --reuid=65534 --regid=65534 --clear-groups "$@"',
        "sh",
    ],
}


@pytest.fixture(scope="module")
def where():
    with lab.Lab(rules=False) as made:
        made.ip("host", "link del ck1", f"route add default via {FOUR}", f"route add default via {SIX}")
        made.write("host", "ipv4/ip_forward", "ipv6/conf/all/forwarding", value="0")
        for address, port in ((FOUR, 80), (FOUR, 443), (SIX, 80)):
            threading.Thread(target=serve, args=(made.listen("outside", address, port),), daemon=True).start()
        yield made


def serve(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):  # closed at the end
        while True:
            accepted, _ = listener.accept()
            accepted.sendall(b"outside")
            accepted.close()


@pytest.fixture(params=USERS)
def user(request, where):
    """Run a program that uses the library as another user. Return its JSON output."""
    if request.param == "unprivileged" and not (which("pasta") or which("slirp4netns")):
        pytest.skip("needs pasta or slirp4netns")

    def run(code: str) -> object:
        names = ", ".join(name for name in containerkit.__all__ if re.search(rf"\b{name}\b", code))  # "*" takes long
        code = BEGIN.format(names=names, try_=TRY, four=FOUR, host=HOST) + code
        with where.spaces["host"].enter():
            done = subprocess.run(
                [*USERS[request.param], sys.executable, "-W", "error", "-c", code],
                capture_output=True, text=True, timeout=100, check=False, cwd="/",
                env={**os.environ, "HOME": "/nonexistent", "PYTHONPATH": ":".join(p for p in sys.path if p)},
            )  # fmt: skip
        assert (0, "") == (done.returncode, done.stderr)
        return json.loads(done.stdout)

    run.name = request.param
    return run


@pytest.fixture
def server(where):
    names = {"allowed.test": (FOUR,), "other.test": (FOUR,), "rebinding.test": ("10.99.0.9",)}
    with where.spaces["outside"].enter():
        made = NameServer(names, address=FOUR)
    yield made
    with where.spaces["outside"].enter():
        made.__exit__()


def test_internet_reaches_the_outside_and_no_service_of_the_host(user):
    found = user("""
port = serving("0.0.0.0", 0, "host")
with Container(network="internet") as c:
    print(json.dumps(tried(c, f"{FOUR}:80", f"{HOST}:{port}", f"127.0.0.1:{port}", "169.254.169.254:80", f"{HOST}:1")))
""")
    outside, by_address, by_loopback, metadata, _ = found.values()
    assert outside == "outside"
    assert by_address == "OSError"
    assert by_loopback == "ConnectionRefusedError"
    assert metadata == "OSError"


@pytest.mark.parametrize("chain", ["ip filter FORWARD", "inet strict forward"])
def test_firewall_that_drops_forwarded_packets_is_not_changed(user, where, chain):
    family, table, _ = chain.split()
    where.run("host", f"nft add table {family} {table}")
    hooked = f"nft add chain {chain} {{ type filter hook forward priority 0 ; policy drop ; }}"
    where.run("host", hooked)
    before = where.run("host", "nft list ruleset")
    try:
        found = user("""
port = serving("0.0.0.0", 0, "host")
code = "import socket; s = socket.create_server(('', 80)); print('up', flush=True)\\nwhile True: c, a = s.accept(); c.sendall(b'served'); c.close()"
with Network("app").open() as net, Container(network=net, publish=[Port(0, 80, host="0.0.0.0")]) as c, c.popen([PYTHON, "-c", code], stdout=PIPE, text=True) as server:
    server.stdout.readline()
    with socket.create_connection((HOST, net.ports(c)[0].host_port)) as made:
        here = made.recv(10).decode()
    print(json.dumps([tried(c, f"{FOUR}:80", f"{HOST}:{port}"), here]))
    server.kill()
""")
        assert where.run("host", "nft list ruleset") == before
    finally:
        where.run("host", f"nft delete table {family} {table}")
    (outside, host), here = found[0].values(), found[1]
    assert (outside, host, here) == ("outside", "OSError", "served")


def test_internet_reaches_the_outside_by_both_ip_versions(user):
    found = user(f"""
with Container(network=Network("app")) as c:
    print(json.dumps(tried(c, f"{{FOUR}}:80", "{SIX}:80")))
""")
    assert list(found.values()) == ["outside", "outside"]


def test_default_container_reaches_nothing(user):
    found = user("""
with Container() as c:
    print(json.dumps(tried(c, f"{FOUR}:80", f"{HOST}:22")))
""")
    assert set(found.values()) == {"OSError"}


def test_host_service_is_reached_if_egress_allows_it(user):
    found = user("""
port = serving("0.0.0.0", 0, "host")
with Container(network="internet", egress=Egress.only(f"{HOST}:{port}")) as c:
    print(json.dumps([tried(c, f"{HOST}:{port}"), tried(c, f"{FOUR}:80")]))
""")
    if user.name == "root" or which("slirp4netns"):  # the host's address is the router's own where pasta made it
        assert list(found[0].values()) == ["host"]
    assert list(found[1].values()) == ["OSError"]


def test_egress_by_name_in_a_container(user, server):
    found = user("""
net = Network("app").open()
rules = Egress.only("allowed.test:80", "rebinding.test")
with net, Container(network=net, egress=rules, dns=DNS(servers=[FOUR])) as c:
    before = tried(c, f"{FOUR}:80")
    named = tried(c, "allowed.test:80", "allowed.test:443", "other.test:80", "rebinding.test:80")
    time.sleep(0.2)
    refused = sorted({(each.kind, each.name) for each in net.refusals()})
    print(json.dumps([before, named, refused]))
""")
    before, named, refused = found
    assert list(before.values()) == ["OSError"]
    assert named["allowed.test:80"] == "outside"
    assert named["allowed.test:443"] == "OSError"
    assert named["other.test:80"] == named["rebinding.test:80"] == "gaierror"
    assert ["dns", "other.test"] in refused
    assert ["rebinding", "rebinding.test"] in refused
    assert ["egress", ""] in refused
    assert "other.test" not in server.asked
    assert "allowed.test" in server.asked


@pytest.mark.parametrize("restricted", [True, False])
def test_network_attached_later_does_not_bypass_egress_rules(user, server, restricted):
    found = user(f"""
rules = Egress.only("allowed.test:80") if {restricted} else None
with Network("in", internal=True).open() as inner, Network("out").open() as outer:
    with Container(network=inner, egress=rules, dns=DNS(servers=[FOUR])) as c:
        outer.attach(c)
        ask = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.connect((sys.argv[1], 53)); s.send(bytes.fromhex('000701000001000000000000056f74686572047465737400' + '00010001')); print(s.recv(500)[3] & 15)"
        asked = [c.run([PYTHON, "-c", ask, each.gateways[0]], text=True, capture_output=True).stdout.strip() for each in (inner, outer)]
        print(json.dumps([tried(c, f"{{FOUR}}:80"), asked]))
""")
    if restricted:
        assert found == [{f"{FOUR}:80": "OSError"}, ["3", "3"]]
        assert "other.test" not in server.asked
    else:
        assert found == [{f"{FOUR}:80": "outside"}, ["0", "0"]]
        assert "other.test" in server.asked


def test_two_containers_by_name_and_a_published_port(user, where):
    found = user("""
code = "import socket; s = socket.create_server(('', 80)); print('up', flush=True)\\nwhile True: c, a = s.accept(); c.sendall(b'served'); c.close()"
with Network("app").open() as net, Network("other").open() as other:
    with Container(network=Attach(net, aliases=["db"]), publish=[Port(0, 80), Port(8099, 80, host="0.0.0.0")]) as db:
        with Container(network=net) as web, Container(network=other) as stranger, db.popen([PYTHON, "-c", code], stdout=PIPE, text=True) as server:
            server.stdout.readline()
            address = net.addresses(db)[0]
            here = []
            for port in net.ports(db):
                with socket.create_connection(("127.0.0.1", port.host_port)) as made:
                    here.append(made.recv(10).decode())
            print(json.dumps([tried(web, "db:80"), tried(stranger, "db:80", f"{address}:80"), here]))
            server.kill()
""")
    web, stranger, here = found
    assert web == {"db:80": "served"}
    assert list(stranger.values()) == ["gaierror", "OSError"]
    assert here == ["served", "served"]


@pytest.mark.parametrize("what", ["ip link set eth0 address 02:00:00:00:00:99", "ip addr add 10.0.0.9/8 dev eth0"])
def test_default_container_cannot_change_its_interface(user, what):
    found = user(f"""
with Container(network="internet") as c:
    done = c.run({what.split()!r}, text=True, capture_output=True)
    raw = c.run([PYTHON, "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"], text=True, capture_output=True)
    print(json.dumps([done.returncode, done.stderr, raw.stderr]))
""")
    assert found[0] != 0
    assert "Operation not permitted" in found[1]
    assert "PermissionError" in found[2]


def test_nothing_is_left_when_the_owner_is_killed(user, where):
    found = user("""
pid = os.fork()
if pid == 0:
    net = Network("app").open()
    c = Container(network=net, publish=[Port(8097, 80, host="0.0.0.0")])
    c.start() if hasattr(c, "start") else c.__enter__()
    os.kill(os.getpid(), 9)
os.waitpid(pid, 0)
until = time.monotonic() + 30
while time.monotonic() < until:
    links = [name for _, name in socket.if_nameindex() if name.startswith("ck")]
    try:
        socket.create_server(("0.0.0.0", 8097)).close()
        free = True
    except OSError:
        free = False
    if not links and free:
        break
    time.sleep(0.05)
print(json.dumps([links, free]))
""")
    assert found == [[], True]
    assert "containerkit" not in where.run("host", "nft list tables")
    assert "ck" not in where.run("host", "ip route")
    assert "ck" not in where.run("host", "ip -6 route")
    assert none_left(where)


def test_forked_child_keeps_nothing_of_a_killed_owners_networks(user, where):
    found = user("""
reading, writing = os.pipe()
pid = os.fork()
if pid == 0:
    net = Network("app").open()
    c = Container(network=net, publish=[Port(8096, 80, host="0.0.0.0")])
    c.__enter__()
    child = os.fork()
    if child == 0:
        os.write(writing, b"%d" % os.getpid())
        time.sleep(60)
        os._exit(0)
    os.close(writing)
    while not os.path.exists(f"/proc/{child}"):
        pass
    time.sleep(0.5)
    os.kill(os.getpid(), 9)
os.close(writing)
child = int(os.read(reading, 20))
os.waitpid(pid, 0)
until = time.monotonic() + 30
while time.monotonic() < until:
    links = [name for _, name in socket.if_nameindex() if name.startswith("ck")]
    held = [link for link in map(os.readlink, (f"/proc/{child}/fd/{fd}" for fd in os.listdir(f"/proc/{child}/fd"))) if "/networks/" in link]
    try:
        socket.create_server(("0.0.0.0", 8096)).close()
        free = True
    except OSError:
        free = False
    if not links and free:
        break
    time.sleep(0.05)
os.kill(child, 9)
print(json.dumps([links, free, held]))
""")
    assert found == [[], True, []]
    assert "containerkit" not in where.run("host", "nft list tables")


def test_first_connection_to_a_fresh_container_is_not_retransmitted(user):
    """Count retransmissions: a packet that waits for an address or a neighbour is sent twice. No time is measured."""
    found = user("""
code = "import socket; s = socket.create_server(('::', 80), family=10, dualstack_ipv6=True); print(flush=True); s.accept(); s.accept()"
ask = "import socket, sys; made = [socket.create_connection((each, 80), 30) for each in sys.argv[1:]]; print(*(int.from_bytes(each.getsockopt(6, 11, 104)[100:104], sys.byteorder) for each in made))"
again = []
with Network("app").open() as net, Container(network=net) as near:
    for _ in range(8):
        with Container(network=net) as fresh, fresh.popen([PYTHON, "-c", code], stdout=PIPE, text=True) as server:
            server.stdout.readline()
            words = [PYTHON, "-c", ask, *reversed(net.addresses(fresh))]
            again += map(int, near.run(words, text=True, capture_output=True, check=True).stdout.split())
print(json.dumps(again))
""")
    assert found == [0] * 16  # tcpi_total_retrans of struct tcp_info


def members(where: lab.Lab) -> list[str]:
    """Return the names of the processes on the simulated host, which include the packet-forwarding programs."""
    found = []
    for pid in where.spaces["host"].members():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/comm") as file:
            found.append(file.read().strip())
    return found


def none_left(where: lab.Lab) -> bool:
    """Return whether these programs end within half a minute. They notice the end of their owner themselves."""
    until = time.monotonic() + 30
    while members(where) and time.monotonic() < until:
        time.sleep(0.05)
    return members(where) == []


def test_missing_programs_are_named(where):
    code = "import os; os.environ['PATH'] = '/nonexistent'\nfrom containerkit import Network\nNetwork('app').open()"
    with where.spaces["host"].enter():
        done = subprocess.run(
            [*USERS["unprivileged"], sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/",
            env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}, check=False,
        )  # fmt: skip
    assert "UnsupportedError" in done.stderr
    assert "install the package passt or slirp4netns" in done.stderr


def test_closed_device_is_named(where):
    code = "from containerkit import Network\nNetwork('app').open()"
    hidden = [*USERS["unprivileged"]]
    hidden[4] = hidden[4].replace("-m 666", "-m 600")
    with where.spaces["host"].enter():
        done = subprocess.run(
            [*hidden, sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd="/",
            env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)}, check=False,
        )  # fmt: skip
    assert "open /dev/net/tun: Permission denied" in done.stderr
