"""Containers on networks: addresses, names, ports, several networks, joining and leaving at run time, cleanup."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
from gc import collect
from ipaddress import ip_address

import pytest
from test_programs import PATH, database_directory
from waiting import wait_for

from containerkit import (
    CNI,
    DNS,
    Attach,
    Capabilities,
    Container,
    Egress,
    LiveNetwork,
    Macvlan,
    Mount,
    Namespaces,
    Network,
    Port,
    Rate,
    RootFS,
    SetupError,
    SpecError,
    StateError,
    _native,
    run,
)
from containerkit.gc import gc
from containerkit.network import connect, files, leases, router
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root: the uplink is a link of the host's")

SERVE = ["python3", "-m", "http.server", "80", "--bind", "::"]
FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=float(sys.argv[2])).status)"


@pytest.fixture
def net():
    with Network("test").open() as live:
        yield live


@contextlib.contextmanager
def serving(container, port=80):
    with container.popen([*SERVE[:3], str(port), *SERVE[4:]], stdout=-3, stderr=-3) as server:
        wait_for_port(container, port)
        yield server
        server.kill()


def wait_for_port(container, port):
    look = f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)"
    for _ in range(500):
        if container.run(["python3", "-c", look]).returncode == 0:
            return
        time.sleep(0.02)
    pytest.fail("the server did not come up")


def fetch(container, host, patience_s=20):
    return container.run(["python3", "-c", FETCH, f"http://{host}/", str(patience_s)], text=True, timeout=60)


def interfaces(container):
    out = container.run(["ip", "-br", "address"], text=True, check=True).stdout
    return {line.split()[0].partition("@")[0]: line.split()[2:] for line in out.splitlines()}


def links_of_the_host():
    return [name for _, name in socket.if_nameindex() if name.startswith("ck")]


# --- One network


def test_two_containers_reach_each_other_by_id_alias_hostname_and_address(net):
    server = Container(id="one", network=Attach(net, aliases=["db"]), hostname="carrot")
    with server, Container(network=net) as client, serving(server):
        four, six = net.addresses(server)
        for host in ("one", "db", "carrot", four, f"[{six}]"):
            assert fetch(client, host).stdout == "200\n", host


def test_addresses_are_of_the_networks_subnets_and_the_gateway_answers_names(net):
    with Container(network=net) as container:
        found = interfaces(container)
        assert set(found) == {"lo", "eth0"}
        assert [text.partition("/")[0] for text in found["eth0"]] == list(net.addresses(container))
        assert container.run(["cat", "/etc/resolv.conf"], text=True).stdout == f"nameserver {net.gateways[0]}\n"


def test_the_host_reaches_a_container_by_its_addresses(net):
    with Container(network=net) as container, serving(container):
        four, six = net.addresses(container)
        for host in (four, f"[{six}]"):
            assert urllib.request.urlopen(f"http://{host}/", timeout=30).status == 200


def test_run_with_the_internet_has_a_way_out_and_no_neighbours():
    try:
        done = run(["ip", "route"], network="internet", text=True, check=True)
        assert "default via" in done.stdout
        with Container(network="internet") as one, Container(network="internet") as two, serving(one):
            address = interfaces(one)["eth0"][0].partition("/")[0]
            assert fetch(two, address, 1).returncode != 0
            assert fetch(one, address).stdout == "200\n"
    finally:
        for live in connect._shared.values():
            live.close()


def test_what_leaves_has_an_address_of_the_host(net):
    """A server in a network namespace outside the host's simulates the internet."""
    with outside() as (address, seen), Container(network=net) as container:
        done = fetch(container, f"{address}:8099")
        assert done.stdout == "200\n", done.stderr
        assert seen() == ["203.0.113.1"]


@contextlib.contextmanager
def outside():
    """A network outside the host's, with a web server that reports the client's address."""
    name = f"cktest{os.getpid() % 10000}"
    server = (
        "import http.server, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        print(self.client_address[0], flush=True); self.send_response(200); self.end_headers()\n"
        "    def log_message(self, *_): pass\n"
        "http.server.HTTPServer(('203.0.113.2', 8099), H).serve_forever()\n"
    )
    subprocess.run(["ip", "netns", "add", name], check=True)
    process = None
    try:
        for words in (
            ["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name],
            ["ip", "address", "add", "203.0.113.1/24", "dev", name],
            ["ip", "link", "set", name, "up"],
            ["ip", "-n", name, "address", "add", "203.0.113.2/24", "dev", "eth0"],
            ["ip", "-n", name, "link", "set", "eth0", "up"],
        ):
            subprocess.run(words, check=True)
        with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding", "w") as file:
            file.write("1")
        words = ["ip", "netns", "exec", name, "python3", "-c", server]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        for _ in range(500):
            with contextlib.suppress(OSError):
                socket.create_connection(("203.0.113.2", 8099), 1).close()
                break
            time.sleep(0.05)
        yield "203.0.113.2", lambda: [process.stdout.readline().strip()]
    finally:
        if process is not None:
            process.kill()
            process.wait()
            process.stdout.close()
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_an_internal_network_leads_nowhere():
    with (
        Network("inside", internal=True).open() as net,
        Container(id="one", network=net) as one,
        Container(network=net) as two,
        serving(one),
    ):
        assert fetch(two, "one").stdout == "200\n"
        assert "default" not in two.run(["ip", "route"], text=True).stdout
        with pytest.raises(OSError):
            urllib.request.urlopen(f"http://{net.addresses(one)[0]}/", timeout=1)


def test_containers_of_an_isolated_network_do_not_reach_each_other():
    with (
        Network("alone", isolated=True).open() as net,
        Container(network=net) as one,
        Container(network=net) as two,
        serving(one),
    ):
        assert fetch(two, net.addresses(one)[0], 1).returncode != 0


def test_an_ipv4_network_has_no_ipv6():
    with Network("four", subnets=["10.213.7.0/28"]).open() as net, Container(network=net) as container:
        assert net.addresses(container) == ("10.213.7.2",)
        assert interfaces(container)["eth0"] == ["10.213.7.2/28"]


def test_fixed_addresses_and_mac_are_had_and_refused_where_they_cannot_be():
    with Network("fixed", subnets=["10.213.8.0/28"]).open() as net:
        wish = Attach(net, addresses=["10.213.8.9"], mac="02:00:00:00:00:42", interface="data0")
        with Container(network=wish) as container:
            assert interfaces(container)["data0"] == ["10.213.8.9/28"]
            assert "02:00:00:00:00:42" in container.run(["ip", "link"], text=True).stdout
            with pytest.raises(StateError, match=r"10\.213\.8\.9.*another container"):
                Container(network=wish).start()
        for address in ("10.213.8.1", "10.213.8.15", "10.213.9.2", "fd00::9"):
            with pytest.raises(SpecError, match="address"):
                Container(network=Attach(net, addresses=[address])).start()
        assert net.inspect()["containers"] == []


def test_all_addresses_of_a_small_network_are_used_before_one_comes_again():
    with Network("small", subnets=["10.213.10.0/29"]).open() as net:
        seen = []
        for _ in range(6):
            with Container(network=net) as container:
                seen += net.addresses(container)
        assert seen == [f"10.213.10.{number}" for number in (2, 3, 4, 5, 6, 2)]
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                stack.enter_context(Container(network=net))
            with pytest.raises(SetupError, match="no address"):
                Container(network=net).start()


def test_hosts_and_dns_are_in_the_files_of_etc(net):
    wish = DNS(servers=["192.0.2.53"], search=["example.org"], options=["ndots:2"])
    with Container(network=net, hosts={"x": "10.0.0.9", "here": "host-gateway"}, dns=wish) as container:
        hosts = container.run(["cat", "/etc/hosts"], text=True).stdout
        assert "10.0.0.9\tx\n" in hosts
        assert f"{files.own_address()}\there\n" in hosts
        resolv = container.run(["cat", "/etc/resolv.conf"], text=True).stdout
        assert resolv == f"nameserver {net.gateways[0]}\nsearch example.org\noptions ndots:2\n"
        assert container.run(["sh", "-c", "echo x >> /etc/hosts"]).returncode != 0


def greet(server):
    server.settimeout(10)
    with server.accept()[0] as client:
        client.send(b"host")


def test_the_host_is_reached_by_name_if_an_egress_rule_names_it(net):
    ask = "import socket; print(socket.create_connection(('here', PORT), 3).recv(9).decode())"
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        command = ["python3", "-c", ask.replace("PORT", str(port))]
        how = {"network": net, "hosts": {"here": "host-gateway"}, "capture_output": True, "text": True}
        assert run(command, egress=Egress.only(f"{files.own_address()}:{port + 1}"), **how).returncode
        assert run(command, **how).returncode
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        done = run(command, egress=Egress.only(f"{files.own_address()}:{port}"), **how)
        assert done.stdout == "host\n", done.stderr
        thread.join()


def test_the_name_of_the_host_needs_a_network_that_leads_to_it():
    wish = {"hosts": {"here": "host-gateway"}, "capture_output": True, "text": True}
    with pytest.raises(SpecError, match="host-gateway"):
        run(["true"], **wish)
    assert run(["getent", "hosts", "here"], network="host", **wish).stdout.split()[0] == "127.0.0.1"


def test_root_inside_has_no_power_over_its_network(net):
    with Container(network=net, capabilities=Capabilities.all()) as container:
        for words in (
            ["ip", "link", "set", "eth0", "address", "02:00:00:00:00:07"],
            ["ip", "address", "add", "10.1.2.3/24", "dev", "eth0"],
            ["python3", "-c", "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)"],
        ):
            assert container.run(words).returncode != 0, words


def test_a_rate_limits_what_goes_through(net):
    code = (
        "import socket, time\n"
        "s = socket.create_server(('', 80)); c, _ = s.accept(); n = 0; t = time.time()\n"
        "while d := c.recv(65536): n += len(d)\n"
        "print(n * 8 / (time.time() - t))\n"
    )
    send = (
        "import socket, sys, time\n"
        "c = socket.create_connection((sys.argv[1], 80)); end = time.time() + float(sys.argv[2])\n"
        "while time.time() < end: c.sendall(b'x' * 65536)\n"
    )

    def measured(rate, seconds):
        with (
            Container(network=Attach(net, rate=rate)) as sink,
            Container(network=net) as source,
            sink.popen(["python3", "-c", code], stdout=-1, text=True) as reading,
        ):
            wait_for_listener(sink)
            source.run(["python3", "-c", send, net.addresses(sink)[0], str(seconds)], timeout=60)
            return float(reading.communicate(timeout=60)[0])

    assert measured(Rate(down="8M"), 1.5) < 12e6
    assert measured(Rate(), 0.5) > 24e6


def wait_for_listener(container):
    for _ in range(500):
        if ":0050 " in container.run(["cat", "/proc/net/tcp"], text=True).stdout:
            return
        time.sleep(0.02)
    pytest.fail("nobody listens")


# --- Several networks, and containers that join later


def test_a_container_on_two_networks_leads_out_by_the_first_that_does(net):
    with Network("back", internal=True).open() as back, Container(network=[back, net]) as container:
        assert set(interfaces(container)) == {"lo", "eth0", "eth1"}
        routes = container.run(["ip", "route"], text=True).stdout
        assert f"default via {net.gateways[0]} dev eth1" in routes


def test_networks_can_be_joined_and_left_at_run_time(net):
    with Container(id="late") as container, Container(network=net) as other, serving(container, 8080):
        assert set(interfaces(container)) == {"lo"}
        assert net.attach(container) == net.addresses(container)
        assert interfaces(container)["eth0"] == [
            f"{text}/{prefix}"
            for text, prefix in zip(
                net.addresses(container), [each.partition("/")[2] for each in net.subnets], strict=True
            )
        ]
        assert fetch(other, "late:8080").stdout == "200\n"
        with pytest.raises(StateError, match="is on"):
            net.attach(container)
        net.detach(container)
        assert net.addresses(container) == ()
        assert set(interfaces(container)) == {"lo"}
        assert fetch(other, "late:8080", 1).returncode != 0
        with pytest.raises(StateError, match="not on"):
            net.detach(container)


def test_what_was_joined_later_ends_with_the_container(net):
    with Container() as container:
        net.attach(container)
    assert net.inspect()["containers"] == []


def test_a_first_network_can_be_left_too(net):
    with Container(network=net) as container:
        net.detach(container)
        assert set(interfaces(container)) == {"lo"}
        assert net.inspect()["containers"] == []
        net.attach(container)
        assert "eth0" in interfaces(container)


def test_a_container_can_share_another_ones_network(net):
    with (
        Container(network=net, hosts={"x": "10.0.0.9"}) as first,
        serving(first),
        Container(network=first) as second,
    ):
        assert interfaces(second) == interfaces(first)
        assert fetch(second, "127.0.0.1").stdout == "200\n"
        assert "10.0.0.9\tx" in second.run(["cat", "/etc/hosts"], text=True).stdout


def test_macvlan_gives_an_interface_on_a_network_of_the_hosts():
    name = f"ckmv{os.getpid() % 10000}"
    subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}b"], check=True)
    try:
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        with Container(network=Macvlan(name, addresses=["198.51.100.7/24"], gateway=["198.51.100.1"])) as container:
            assert interfaces(container)["eth0"][0] == "198.51.100.7/24"
            assert "default via 198.51.100.1" in container.run(["ip", "route"], text=True).stdout
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)
    with pytest.raises(SetupError, match=f"macvlan on {name}"):
        run(["true"], network=Macvlan(name))


# --- Ports


def test_published_ports_lead_inside(net):
    with Container(network=net, publish=[Port(0, 80), Port(0, 80, host="0.0.0.0")]) as container, serving(container):
        joined = container.joined()["network"]
        for published in joined.published:
            assert urllib.request.urlopen(f"http://127.0.0.1:{published.host_port}/", timeout=30).status == 200


def test_a_port_in_use_is_an_error_at_once_and_leaves_nothing(net):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"publish 127.0.0.1:{port}/tcp: Address already in use"):
            Container(network=net, publish=[Port(port, 80)]).start()
    assert net.inspect()["containers"] == []
    socket.create_server(("127.0.0.1", port)).close()


def test_the_first_free_port_of_a_range_is_published(net):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65_000:
            pytest.skip(f"the kernel chose port {port}, after which there are too few")
        ranged = Port.parse(f"{port}-{port + 200}:80")
        with (
            Container(network=net, publish=[ranged, Port(0, 81)]) as one,
            Container(network=net, publish=[ranged]) as other,
        ):
            ports = {net.ports(each)[0].host_port for each in (one, other)}
            assert len(ports) == 2
            assert all(port < each <= port + 200 for each in ports)
        with pytest.raises(SetupError, match="Address already in use"):
            Container(network=net, publish=[Port(port, 80, last=port)]).start()
    assert net.inspect()["containers"] == []


ACCEPT = """
import socket
listening = socket.socket(fileno=5)
for _ in range(2):
    connection, client = listening.accept()
    connection.sendall(f"{client[0]} {client[1]}".encode())
    connection.close()
"""


LISTENING = ["sh", "-c", "echo $LISTEN_FDS $LISTEN_PID $$"]


@pytest.mark.parametrize("seccomp", ["default", None])
def test_a_command_is_informed_of_its_listening_sockets(net, interpreter, seccomp):
    """Each command finds its own pid, as libsystemd and similar code require it."""
    ports = [Port.socket(0, fd=3), Port.socket(0, fd=4)]
    with Container(network=net, publish=ports, seccomp=seccomp) as container:
        for _ in range(2):
            count, told, pid = container.run(LISTENING, text=True, check=True).stdout.split()
            assert (count, told) == ("2", pid)
        with container.popen(LISTENING, stdout=-1, text=True) as process:
            count, told, pid = process.stdout.read().split()
        assert (count, told) == ("2", pid)
    count, told, pid = run(LISTENING, network=net, publish=[Port.socket(0)], text=True, check=True).stdout.split()
    assert (count, told) == ("1", pid)


def test_sockets_have_all_numbers_that_are_allowed(net, interpreter):
    ports = [Port.socket(0, fd=fd) for fd in range(3, 16)]
    script = "for fd in 3 4 5 6 7 8 9 10 11 12 13 14 15; do readlink /proc/$$/fd/$fd; done"
    with Container(network=net, publish=ports) as container:
        listed = [
            container.run(["sh", "-c", script], text=True, check=True),
            container.run(["sh", "-c", script], text=True, check=True, timeout=60, pass_fds=()),
            run(["sh", "-c", script], network=net, publish=ports, text=True, check=True),
        ]
    for done in listed:
        assert 13 == len(re.findall(r"socket:\[\d+\]\n", done.stdout)), done.stdout


@pytest.mark.parametrize("fd", [2, 16, 900])
def test_sockets_with_other_numbers_are_refused(fd):
    with pytest.raises(SpecError, match="fd"):
        Port.socket(80, fd=fd)


def test_sockets_that_do_not_begin_at_3_or_are_in_the_environment_already_are_not_announced(net):
    for fd, env in ((5, {}), (3, {"LISTEN_FDS": ""})):
        wanted = {"PATH": os.environ["PATH"], **env}
        done = run(LISTENING, network=net, publish=[Port.socket(0, fd=fd)], env=wanted, text=True, check=True)
        assert len(done.stdout.split()) == 1


def test_a_pid_is_written_only_where_there_is_room_for_it(interpreter):
    """Both interpreters refuse the step in a process that is not about to exec, and a write past the string."""
    with pytest.raises(SetupError, match="own_pid") as caught:
        Program(Plan((calls.own_pid("X"),))).run({}, envp=[b"X=00"], flags=_native.SHARE_FILES | _native.NO_PROCESS)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("way", ["run", "init", "popen"])
def test_a_listening_socket_is_handed_inside(net, way):
    """The command accepts connections to the host's port, and sees the client's address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {"network": net, "publish": [Port.socket(port, fd=5)]}
    words = ["python3", "-c", ACCEPT]
    with contextlib.ExitStack() as stack:
        if way == "popen":
            container = stack.enter_context(Container(**options))
            process = stack.enter_context(container.popen(words))
            finish = process.wait
        else:
            outcome = []
            thread = threading.Thread(
                target=lambda: outcome.append(run(words, init=way == "init", timeout=20, **options))
            )
            thread.start()
            finish = lambda: thread.join() or outcome[0].returncode  # noqa: E731 - a method in the other branch
        for _ in range(2):
            assert answer_of(port) == 1
        assert finish() == 0
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), 1)


def answer_of(port):
    """Connect to a port. Return whether the answer names this connection."""
    for _ in range(500):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as connection:
            own = connection.getsockname()
            return connection.recv(100).decode() == f"{own[0]} {own[1]}"
        time.sleep(0.05)
    pytest.fail("nobody listens")


# --- What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": "bridge"}, "network: 'bridge'"),
        ({"network": []}, "network: several"),
        ({"network": None}, "network: None"),
        ({"publish": [80]}, "publish: ports can be published"),
        ({"network": "host", "publish": [80]}, "publish: ports can be published"),
        ({"network": "internet", "publish": [80, 80]}, "twice"),
        ({"network": "internet", "publish": ["80:x"]}, "publish: '80:x'"),
        ({"network": "internet", "egress": "pypi.org"}, "egress: 'pypi.org'"),
        ({"network": "internet", "dns": "1.1.1.1"}, "dns: '1.1.1.1'"),
        ({"network": "internet", "hosts": {"a b": "1.2.3.4"}}, "hosts: 'a b'"),
        ({"network": "internet", "hosts": {"a": "1.2.3"}}, "1.2.3"),
        ({"network": "internet", "namespaces": Namespaces(network="host")}, "pass only one of them"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(options, message):
    with pytest.raises(SpecError, match=message):
        Container(**options)


def test_a_closed_network_takes_nobody(net):
    net.close()
    with pytest.raises(StateError, match="closed"):
        Container(network=net).start()


def test_a_subnet_of_the_host_or_of_another_network_is_refused(net):
    with pytest.raises(StateError, match="it overlaps the network"):
        Network("again", subnets=[net.subnets[0]]).open()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with pytest.raises(StateError, match="it overlaps the network"):  # after it has leased the other
            Network("again", subnets=["auto4", net.subnets[1]]).open()
        collect()
    assert caught == []
    own = next(str(each) for each in leases.routes() if each.version == 4 and each.prefixlen < 32)
    with pytest.raises((SpecError, StateError), match="subnet"):
        Network("again", subnets=[own]).open()


# --- What is left


def own_leases(pid):
    """Return the subnets that a process has leased. Other workers have leases in the same directory."""
    found = []
    for name in os.listdir(leases.DIRECTORY) if os.path.isdir(leases.DIRECTORY) else ():
        with contextlib.suppress(OSError), open(f"{leases.DIRECTORY}/{name}") as file:
            if "-" in name and file.read() == f"{pid}\n":
                found.append(name)
    return found


CLOSED = """
import os, socket, subprocess, time
from containerkit import Container, Network, Port
from containerkit.network import leases, router

def own_links():
    known = router._routers.get(os.getpid())
    return [name for _, name in socket.if_nameindex() if known is not None and name == known.uplink]

with Network("gone").open() as net, Container(network=net, publish=[Port(0, 80)]):
    uplink, subnets = net.router.uplink, [subnet.partition("/")[0] for subnet in net.subnets]
    assert own_links() == [uplink]
    leased = os.listdir(leases.DIRECTORY)
    assert all(any(subnet in name for name in leased) for subnet in subnets), (subnets, leased)
assert own_links() == []
left = os.listdir(leases.DIRECTORY)
assert not any(subnet in name for name in left for subnet in subnets), (subnets, left)
for version in ("-4", "-6"):
    routes = subprocess.run(["ip", version, "route"], capture_output=True, text=True, check=True).stdout
    assert not any(subnet in routes for subnet in subnets), (subnets, routes)
deadline = time.monotonic() + 30
while uplink in [name for _, name in socket.if_nameindex()]:
    assert time.monotonic() < deadline, "the kernel has not removed the link"
    time.sleep(0.01)
"""


def test_nothing_is_left_of_a_network_that_was_closed():
    """In a separate process, because a process that has used the internet keeps its router."""
    subprocess.run([sys.executable, "-c", CLOSED], check=True, timeout=60)


AGAIN = """
from containerkit import Container, Network
wish = Network("again", subnets=("10.231.87.0/24", "fd87:231::/64"))
for _ in range(10):
    with wish.open() as net, Container(network=net) as container:
        assert container.run(["true"]).returncode == 0
"""


def test_a_network_can_be_opened_again_at_once():
    subprocess.run([sys.executable, "-c", AGAIN], check=True, timeout=60)


NEVER_CLOSED = """
import sys
from containerkit import Network
net = Network("forgotten").open()
print(net.router.uplink, flush=True)
sys.exit(3)
"""


def test_a_network_that_is_never_closed_does_not_block_the_exit():
    done = subprocess.run([sys.executable, "-c", NEVER_CLOSED], stdout=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 3
    deadline = time.monotonic() + 30
    while done.stdout.strip() in links_of_the_host() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert done.stdout.strip() not in links_of_the_host()


OWNER = """
import time
from containerkit import Container, Network, Port
net = Network("doomed").open()
container = Container(network=net, publish=[Port(0, 80)]).start()
container.popen(["sleep", "1000"])
print(net.router.uplink, net.subnets[0], container.joined()["network"].published[0].host_port, flush=True)
time.sleep(1000)
"""


def test_nothing_outlives_an_owner_that_is_killed():
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    with owner:
        link, _, port = owner.stdout.readline().split()
        tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        assert link in tables
        assert link in links_of_the_host()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    deadline = time.monotonic() + 30
    while link in links_of_the_host() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert link not in links_of_the_host()
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    assert link not in tables
    routes = subprocess.run(["ip", "route"], capture_output=True, text=True, check=True).stdout
    assert link not in routes  # another worker may already have the subnet
    socket.create_server(("127.0.0.1", int(port))).close()
    gc()
    assert own_leases(owner.pid) == []


def test_two_owners_have_different_subnets(net):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as other:
        _, subnet, _ = other.stdout.readline().split()
        assert subnet not in net.subnets
        other.kill()


def test_explain_prints_the_netlink_messages(net):
    from containerkit.network.endpoint import Wire, plan_of

    wire = Wire("br1", 101, "p2", 102, "02:00:00:00:00:02", "02:00:00:00:00:03", "eth0", 2, ("10.9.0.2/24",),
                ("10.9.0.1",), "02:00:00:00:00:01", True, 1500, False, None, None)  # fmt: skip
    text = str(Plan(tuple(plan_of(net.router, [wire], {}))))
    assert "netlink RTM_NEWLINK veth p2, eth0 in another namespace" in text
    assert "netlink RTM_NEWADDR 10.9.0.2/24 dev eth0" in text
    assert "netlink RTM_NEWROUTE 0.0.0.0/0 via 10.9.0.1 dev eth0" in text


def test_an_error_of_netlink_has_the_kernels_own_words(net):
    with Container(network=net) as container:
        with pytest.raises(SetupError, match="RTM_NEWADDR") as caught:
            net.router.run(
                [
                    *net.router.inside(),
                    *calls.netlink_socket(0, _slot("s")),
                    router.links.address(_slot("s"), 4242, "10.0.0.1/8", "nowhere"),
                ]
            )
        assert caught.value.errno
        assert container.state == "running"


def _slot(name):
    return Slot(name)


# --- Networks that are kept ready


def test_containers_that_are_ready_are_on_the_network(net):
    with Container.prepare(ready=3, network=net) as template:
        assert template.wait_full(30)
        assert len(net.inspect()["containers"]) == 3
        before = template.ready
        done = template.run(["ip", "-br", "address"], text=True, check=True)
        assert before == 3
        assert "eth0" in done.stdout
    assert net.inspect()["containers"] == []


def test_networks_that_are_ready_are_given_away_once(net):
    with Container.prepare(networks=3, ready=0, network=net, hosts={"x": "10.0.0.9"}) as template:
        assert template.wait_full(30)
        seen = []
        for _ in range(5):
            with template.container() as container:
                seen += interfaces(container)["eth0"]
                assert "10.0.0.9\tx" in container.run(["cat", "/etc/hosts"], text=True).stdout
        assert len(set(seen)) == len(seen)
    assert net.inspect()["containers"] == []
    with pytest.raises(SpecError, match="fixed port"):
        Container.prepare(networks=2, network=net, publish=[Port(8080, 80)])


def test_networks_are_made_ready_when_a_container_has_ended_or_half_are_taken(net):
    with Container.prepare(networks=4, ready=0, network=net) as template:
        pool = template._pool
        assert template.wait_full(30)
        with template.container() as container:
            container.run(["true"])
            assert len(pool) == 3
        assert template.wait_full(30)
        assert len(pool) == 4
        with template.container(), template.container():
            assert template.wait_full(30)
            assert len(pool) == 4


def test_names_without_a_network_are_no_obstacle_to_ready_networks():
    with Container.prepare(networks=2, ready=0, hosts={"x": "10.0.0.9"}) as template:
        assert template.wait_full(30)
        assert "10.0.0.9" in template.run(["getent", "hosts", "x"], capture_output=True, text=True).stdout


PING = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(5)
s.connect((sys.argv[1], 0))
s.send(bytes((8, 0, 0, 0, 0, 0, 0, 1)) + b"echo")
print(s.recv(100)[8:].decode())
"""


def test_ping_needs_no_capability_whatever_ids_the_container_has(net):
    with Container(network=net) as container:
        done = container.run(["python3", "-c", PING, net.gateways[0]], capture_output=True, text=True)
        assert done.stdout == "echo\n", done.stderr
        if os.geteuid() == 0 and tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 5):
            with container.namespace("network").enter(), open("/proc/sys/net/ipv4/ping_group_range") as file:
                assert file.read().split() == ["0", "4294967294"]


def test_a_template_with_ready_networks_makes_ready_containers_on_them(net):
    with Container.prepare(networks=2, network=net) as template:
        assert template.wait_full(30)
        assert template.ready == 2
        assert "eth0" in template.run(["ip", "-br", "address"], text=True).stdout


# --- Plugins of the Container Network Interface


BRIDGE = {
    "cniVersion": "1.0.0",
    "plugins": [
        {
            "type": "bridge",
            "isGateway": True,
            "ipam": {"type": "host-local", "subnet": "10.213.99.0/24", "routes": [{"dst": "0.0.0.0/0"}]},
        }
    ],
}

with_plugins = pytest.mark.skipif(
    not os.path.exists("/usr/lib/cni/bridge"), reason="needs Debian's package containernetworking-plugins"
)


@pytest.fixture
def conflist(tmp_path):
    """A configuration list with a separate bridge, which the plugins leave behind."""
    name = f"ckcni{os.getpid() % 10000}"
    config = json.loads(json.dumps(BRIDGE))
    config["name"] = name
    config["plugins"][0]["bridge"] = name
    config["plugins"][0]["ipam"]["dataDir"] = str(tmp_path / "leases")
    path = tmp_path / "net.conflist"
    path.write_text(json.dumps(config))
    yield path
    subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


def cni_records():
    """Return the records of the plugins' objects, for any owner on this machine."""
    try:
        return set(os.listdir(f"{leases.DIRECTORY}/cni"))
    except FileNotFoundError:
        return set()


@with_plugins
def test_cni_plugins_make_the_network_and_take_it_back(conflist, tmp_path):
    before = cni_records()
    with Container(network=CNI(conflist)) as container:
        assert interfaces(container)["eth0"] == ["10.213.99.2/24"]
        assert "default via 10.213.99.1" in container.run(["ip", "route"], text=True).stdout
        assert "10.213.99.2" in os.listdir(next((tmp_path / "leases").iterdir()))
    assert "10.213.99.2" not in os.listdir(next((tmp_path / "leases").iterdir()))
    wait_for(lambda: cni_records() <= before)  # other tests make some and take them back


CNI_OWNER = """
import sys, time
from containerkit import CNI, Container
container = Container(network=CNI(sys.argv[1])).start()
print("up", flush=True)
time.sleep(1000)
"""


@with_plugins
def test_gc_undoes_changes_of_plugins_for_an_owner_that_was_killed(conflist, tmp_path):
    before = cni_records()
    with subprocess.Popen([sys.executable, "-c", CNI_OWNER, conflist], stdout=subprocess.PIPE) as owner:
        assert owner.stdout.readline() == b"up\n"
        owner.kill()
    held = next((tmp_path / "leases").iterdir())
    assert "10.213.99.2" in os.listdir(held)
    gc()
    assert "10.213.99.2" not in os.listdir(held)
    wait_for(lambda: cni_records() <= before)  # other tests make some and take them back


@with_plugins
def test_a_plugin_that_fails_is_an_error_with_its_own_words_and_those_before_take_back(conflist, tmp_path):
    config = json.loads(conflist.read_text())
    config["plugins"].append({"type": "bandwidth", "ingressRate": -5})
    conflist.write_text(json.dumps(config))
    with pytest.raises(SetupError, match=r"CNI plugin bandwidth ADD.*hint: \w"):
        Container(network=CNI(conflist)).start()
    assert "10.213.99.2" not in os.listdir(next((tmp_path / "leases").iterdir()))


PORTMAP = """
import json, sys, urllib.request
from containerkit import CNI, Container, Port
with Container(network=CNI(sys.argv[1]), publish=[Port(18765, 80)]) as container:
    serve = "import http.server; s = http.server.HTTPServer(('', 80), http.server.SimpleHTTPRequestHandler); "
    with container.popen(["python3", "-c", serve + "print(1, flush=True); s.serve_forever()"], stdout=-1) as server:
        server.stdout.readline()
        print(urllib.request.urlopen("http://127.0.0.1:18765/", timeout=20).status)
        server.kill()
"""


@with_plugins
@pytest.mark.skipif(not shutil.which("iptables"), reason="needs Debian's package iptables, for the plugin portmap")
def test_ports_are_published_by_the_plugin_portmap(conflist):
    """In a network namespace that simulates the host, because the plugin leaves iptables chains there."""
    config = json.loads(conflist.read_text())
    config["plugins"].append({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    conflist.write_text(json.dumps(config))
    host = 'mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && ip link set lo up && exec "$@"'
    words = ["unshare", "--net", "--mount", "sh", "-c", host, "sh", sys.executable, "-c", PORTMAP, conflist]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "200\n", done.stderr[-2000:]
    with pytest.raises(SpecError, match="not the first free one of a range"):
        Container(network=CNI(str(conflist)), publish=["9000-9001:80"]).start()


def test_cni_that_cannot_be_is_refused(tmp_path):
    broken = tmp_path / "broken.conflist"
    broken.write_text('{"name": "x", "cniVersion": "1.0.0", "plugins": [{"type": "../evil"}]}')
    for config, message in (
        (str(broken), "is not the name of a plugin"),
        ("no-such-network-here", "no configuration"),
        (str(tmp_path / "missing.conflist"), "No such file"),
    ):
        with pytest.raises(SpecError, match=message):
            Container(network=CNI(config)).start()


def test_a_network_that_is_open_reports_its_state(net):
    assert isinstance(net, LiveNetwork)
    assert repr(net).startswith("<LiveNetwork test: ")
    assert not net.closed
    told = net.inspect()
    assert told["subnets"] == list(net.subnets)


def test_the_end_of_a_container_is_not_reported_as_a_refusal(net):
    """The kernel leaves multicast groups when the interface has no address."""
    for _ in range(4):
        with Container(network=net) as container:
            container.run(["true"])
    time.sleep(0.5)
    assert net.refusals() == []


# --- Files of given content


@pytest.mark.parametrize("content", ["text\n", b"\x00\xff binary", ""])
def test_a_file_of_given_content_is_shown_read_only(content):
    expected = content.encode() if isinstance(content, str) else content
    with Container(mounts=[Mount.file("/etc/app/secret", content)]) as container:
        assert container.files.read("/etc/app/secret") == expected
        assert container.run(["sh", "-c", "echo x > /etc/app/secret"]).returncode != 0
        assert container.run(["rm", "/etc/app/secret"]).returncode != 0


def test_files_of_given_content_are_apart():
    texts = {f"/etc/app/{number}": f"text {number}" for number in range(3)}
    between = Mount.tmpfs("/etc/app/memory")
    mounts = [*map(Mount.file, texts, texts.values())]
    with Container(mounts=[*mounts[:2], between, *mounts[2:]]) as container:
        assert [container.files.read_text(path) for path in texts] == list(texts.values())
        assert sorted(container.run(["ls", "/etc/app"], text=True, capture_output=True).stdout.split())[:3] == list(
            "012"
        )


def test_a_file_that_is_too_large_is_refused():
    with pytest.raises(SpecError, match="more than"):
        Mount.file("/x", b"x" * ((1 << 20) + 1))


@pytest.mark.parametrize("name", ["etc", "nothing"])
def test_a_read_only_root_without_the_files_of_etc_goes_without_them(net, tmp_path, name):
    root = tmp_path / "root"
    for each in ("usr", "proc", "sys", "dev", "tmp", *([name] if name == "etc" else [])):
        (root / each).mkdir(parents=True)
    for each in ("bin", "lib", "lib64", "sbin"):
        (root / each).symlink_to(f"usr/{each}")
    mounts = [Mount.bind("/usr", "/usr", readonly=True)]
    with Container(RootFS.dir(root, readonly=True), mounts=mounts, network=net) as container:
        assert "eth0" in interfaces(container)
        assert container.run(["cat", "/etc/resolv.conf"]).returncode != 0
    with Container(RootFS.dir(root), mounts=mounts, network=net) as container:
        assert net.gateways[0] in container.run(["cat", "/etc/resolv.conf"], text=True).stdout


@pytest.mark.parametrize("readonly", [False, True])
def test_files_of_etc_that_are_symlinks_are_covered_and_the_image_left_as_it_is(net, tmp_path, readonly):
    """Images of machines with systemd-resolved have a resolv.conf that is a symlink to a file of the daemon."""
    root = tmp_path / "root"
    for each in ("usr", "proc", "sys", "dev", "tmp", "etc", "run"):
        (root / each).mkdir(parents=True)
    for each in ("bin", "lib", "lib64", "sbin"):
        (root / each).symlink_to(f"usr/{each}")
    (root / "etc/resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")
    (root / "etc/hosts").symlink_to("/usr/hosts-of-the-image")
    mounts = [Mount.bind("/usr", "/usr", readonly=True)]
    with Container(
        RootFS.dir(root, readonly=readonly), mounts=mounts, network=net, hosts={"x": "10.0.0.9"}
    ) as container:
        told = container.run(["cat", "/etc/resolv.conf", "/etc/hosts"], text=True, check=True).stdout
        assert f"nameserver {net.gateways[0]}" in told
        assert "10.0.0.9\tx" in told
    assert sorted(os.listdir(root / "etc")) == ["hosts", "resolv.conf"]
    assert os.readlink(root / "etc/hosts") == "/usr/hosts-of-the-image"
    assert os.listdir(root / "run") == []


def test_parameters_of_the_network_namespace_are_set_before_the_command(net):
    with Container(network=net, sysctls={"net.ipv4.tcp_keepalive_time": 77, "kernel.shmmni": 99}) as container:
        done = container.run(["cat", "/proc/sys/net/ipv4/tcp_keepalive_time", "/proc/sys/kernel/shmmni"], text=True)
        assert done.stdout == "77\n99\n"


# --- The step of the tape


def test_a_netlink_message_is_sent_and_its_ack_read(interpreter):
    """Both interpreters stop at the message that the kernel refuses, with its error, and continue after tolerated errors."""
    at = _slot("s")
    steps = [calls.unshare(0x40000000, "network namespace"), *calls.netlink_socket(0, at)]
    bridge = router.links.bridge(at, 7, "br7", mac="02:00:00:00:00:01", mtu=1500)
    again = bridge._replace(tolerate=(errno.EEXIST,))
    look = router.links.look_at(at, "br7")
    flags = _native.SHARE_FILES | _native.NO_PROCESS
    Program(Plan((*steps, bridge, again, look, calls.close(at)))).run({}, flags=flags)
    with pytest.raises(SetupError, match="RTM_NEWLINK bridge br7") as caught:
        Program(Plan((*steps, bridge, look, bridge))).run({}, flags=flags)
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(SetupError, match="RTM_GETLINK nobody") as caught:
        Program(Plan((*steps, bridge, router.links.look_at(at, "nobody"), bridge))).run({}, flags=flags)
    assert caught.value.errno == errno.ENODEV


def test_containers_are_on_a_network_by_either_interpreter(interpreter):
    with Network("either").open() as live, Container(network=live) as container:
        assert "eth0" in interfaces(container)


def test_a_network_of_ipv6_alone_answers_names_too():
    with (
        Network("six", subnets=["auto6"]).open() as net,
        Container(id="one", network=net) as one,
        Container(network=net) as two,
        serving(one),
    ):
        assert len(net.addresses(one)) == 1
        assert fetch(two, "one").stdout == "200\n"
        assert interfaces(two)["eth0"] == [f"{net.addresses(two)[0]}/64"]


def test_a_bridge_takes_1023_containers_and_the_next_is_refused(net):
    claims = [net.claim(Attach(net), 0, (), has_default_route=True) for _ in range(1023)]
    assert len({claim.addresses for claim in claims}) == 1023
    with pytest.raises(SetupError, match="another network"):
        Container(network=net).start()
    for claim in claims:
        net.release(claim)
    with Container(network=net) as container:
        assert "eth0" in interfaces(container)


@pytest.mark.skipif(database_directory() is None, reason="initdb is not there: install postgresql")
def test_postgresql_with_a_published_port():
    if os.geteuid():
        pytest.skip("PostgreSQL refuses to run as root, and this user has no other id")
    directory = database_directory()
    who = {"env": {"PATH": f"{directory}:{PATH}", "HOME": "/tmp", "LC_ALL": "C.UTF-8"}, "user": "1000:1000"}
    mounts = [Mount.tmpfs("/data", size="512M"), Mount.tmpfs("/run/pg")]
    with Container(network="internet", publish=[Port(0, 5432)], mounts=mounts) as container:
        words = ["initdb", "-D", "/data/base", "-U", "me", "-A", "trust", "--no-sync"]
        container.run(words, check=True, timeout=60, **who)
        container.run(["sh", "-c", "echo host all all all trust >> /data/base/pg_hba.conf"], check=True, **who)
        words = ["postgres", "-D", "/data/base", "-k", "/run/pg", "-c", "listen_addresses=*", "-c", "fsync=off"]
        with container.popen(words, stdout=-1, stderr=-1, **who) as server:
            (port,) = container.joined()["network"].published
            psql = [f"{directory}/psql", "-h", "127.0.0.1", "-p", str(port.host_port), "-U", "me", "-d", "postgres"]
            for _ in range(300):
                done = subprocess.run([*psql, "-Atc", "select sum(n) from generate_series(1, 1000) n"],
                                      capture_output=True, text=True, check=False)  # fmt: skip
                if done.returncode == 0:
                    break
                assert server.poll() is None, server.communicate()
                time.sleep(0.1)
            assert done.stdout == "500500\n"
            server.terminate()


# --- Found by programs of newcomers


def test_two_interfaces_of_a_network_cannot_have_one_mac(net):
    mac = "02:11:22:33:44:55"
    with Container(network=Attach(net, mac=mac)):
        used = len(net._used)
        with pytest.raises(StateError, match="another container has it"):
            Container(network=Attach(net, mac=mac)).start()
        assert len(net._used) == used
    for own in (net.mac, "02:63:6b:40:00:01"):
        with pytest.raises(StateError, match="the network itself has it"):
            Container(network=Attach(net, mac=own)).start()
    four = ip_address(net.gateways[0]).packed[:3].hex(":")
    taken = [f"0a:58:{four}:{number:02x}" for number in range(2, 6)]
    with Container(network=Attach(net, mac=taken[1])) as fixed, Container(network=net) as one, Container(network=net):
        macs = [each["mac"] for each in net.inspect()["containers"]]
        assert len(set(macs)) == len(macs) == 3
        assert fixed.run(["ping", "-c", "1", "-W", "5", net.addresses(one)[0]]).returncode == 0
    with Container(network=Attach(net, mac=mac)):
        pass


def test_reserved_addresses_are_named_for_what_they_are():
    with Network("reserved", subnets=["10.231.8.0/24"]).open() as net:
        for address, kind in (("0", "the network's own"), ("1", "the gateway's"), ("255", "for broadcasts")):
            with pytest.raises(SpecError, match=f"10.231.8.{address}: it is {kind}"):
                Container(network=Attach(net, addresses=[f"10.231.8.{address}"])).start()


def test_ports_are_told_in_the_order_in_which_they_were_asked_for(net):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        number = busy.getsockname()[1]
        wanted = [Port(number, 80, last=min(number + 20, 65_535)), Port(0, 81), Port(0, 82, "udp")]
        with Container(network=net, publish=wanted) as container:
            assert [each.container_port for each in net.ports(container)] == [80, 81, 82]


def test_a_port_of_an_internal_network_can_be_published():
    with Network("inside", internal=True).open() as net:
        ports = [Port(0, 80, host=host) for host in ("127.0.0.1", "0.0.0.0", "::1")]
        with Container(network=net, publish=ports) as web, serving(web):
            for port, host in zip(net.ports(web), ("127.0.0.1", files.own_address(), "[::1]"), strict=True):
                with urllib.request.urlopen(f"http://{host}:{port.host_port}/", timeout=10) as answer:
                    assert answer.status == 200


def test_a_container_is_on_a_network_only_once():
    with pytest.raises(SpecError, match="different networks"):
        Container(network=[Network("twice"), Network("twice")])


def test_containers_with_a_fixed_port_cannot_be_kept_ready(net):
    for options in ({"network": net, "publish": [Port(8080, 80)]}, {"network": Attach(net, mac="02:00:00:00:00:09")}):
        with pytest.raises(SpecError, match="only one container can have its fixed port"):
            Container.prepare(ready=2, **options)
    with Container.prepare(ready=1, network=net, publish=[Port(0, 80)]) as template:
        assert template.run(["true"]).returncode == 0


def test_large_datagrams_to_a_published_port_leave_the_hosts_loopback_as_it_was():
    """A network with a smaller MTU than the link: the first datagram in between was refused, and lowered the MTU."""
    echo = (
        "import socket; s = socket.socket(2, 2); s.bind(('', 53)); print(flush=True)\n"
        "while True:\n    data, who = s.recvfrom(65535); s.sendto(data, who)"
    )
    host = f"127.{os.getpid() % 250 + 2}.7.7"
    with (
        Network("small", mtu=1280).open() as net,
        Container(network=net, publish=[Port(0, 53, "udp", host=host)]) as server,
        server.popen(["python3", "-c", echo], stdout=-1) as running,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(running.kill)
        running.stdout.readline()
        (port,) = net.ports(server)
        for size in (1, 1252, 1253, 1400, 1472, 1473, 9000, 60_000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect((host, port.host_port))
                client.send(bytes(size))
                assert len(client.recv(65_535)) == size
        shown = subprocess.run(["ip", "route", "get", host], capture_output=True, text=True, check=True).stdout
        assert "mtu" not in shown
