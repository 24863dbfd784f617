"""Networks of detached containers are served exactly as long as the container runs."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from detached_samples import Kept, runs
from waiting import wait_for

from containerkit import CNI, Attach, Container, Network, Port
from containerkit.errors import SpecError, StateError
from containerkit.network import keeper

CLI = [sys.executable, "-m", "containerkit"]
SERVE = "import socket; s = socket.create_server(('', 80)); print('up', flush=True)\nwhile True: s.accept()[0].send(b'hello')"

leads_out = pytest.mark.skipif(
    os.geteuid() != 0 and not os.access("/dev/net/tun", os.R_OK | os.W_OK), reason="this user may not open /dev/net/tun"
)


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


@pytest.fixture
def network():
    name = f"d{os.getpid()}-{time.monotonic_ns() % 10**6}"
    yield Network(name, internal=True)
    if any(each == name for each, _ in keeper.known()):
        keeper.remove(name, force=True)


def served(one):
    assert str(next(one.logs(follow=True))) == "up\n"
    (port,) = one.ports
    with socket.create_connection((port.host, port.host_port), timeout=60) as client:
        return client.recv(5)


@leads_out
def test_port_is_served_after_the_caller_and_until_the_end(kept):
    name = f"p{os.getpid()}"
    words = ["run", "-d", "--name", name, "--network", "internet", "-p", "0:80", "--", "python3", "-c", SERVE]
    subprocess.run([*CLI, *words], check=True, timeout=60, stdout=subprocess.DEVNULL)
    (one,) = kept.new()
    assert served(one) == b"hello"
    (port,) = one.ports
    said = subprocess.run([*CLI, "port", name, "80"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == f"127.0.0.1:{port.host_port}\n"
    attendant = one.inspect()["NetworkSettings"]["Attendant"]
    assert runs(attendant)
    one.stop(0)
    assert (one.ports, one.addresses, runs(attendant)) == ([], [], False)
    with socket.socket() as free:  # the port is free again
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((port.host, port.host_port))


@leads_out
def test_policy_starts_network_and_container_again(kept):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    options = {"command": ["python3", "-c", SERVE], "restart": "on-failure:1"}
    one = Container(network="internet", publish=[Port(number, 80)]).detach(**options)
    assert served(one) == b"hello"
    attendant, keeper_pid = one.last_run["attendant"], one.keeper
    os.kill(attendant, signal.SIGKILL)
    wait_for(lambda: one.restarts == 1 and one.status == "running" and one.last_run["attendant"] != attendant, 30)
    assert one.keeper == keeper_pid
    assert any("serves its network has ended" in str(line) for line in one.logs())
    wait_for(lambda: [str(line) for line in one.logs()].count("up\n") == 2)
    with socket.create_connection(("127.0.0.1", number), timeout=60) as client:
        assert client.recv(5) == b"hello"


@leads_out
def test_killed_keeper_takes_the_network_with_it(kept):
    one = Container(network="internet").detach(command=["sleep", "100"])
    attendant = one.last_run["attendant"]
    os.kill(one.keeper, signal.SIGKILL)
    wait_for(lambda: not runs(attendant))
    wait_for(lambda: one.status == "dead")


@leads_out
def test_start_that_fails_leaves_no_attendant(kept):
    before = _attendants()
    with pytest.raises(Exception, match="nosuch"):
        Container(network="internet").detach(command=["/nosuch"])
    wait_for(lambda: _attendants() <= before)
    assert [] == kept.new()


def _attendants():
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"containerkit.detached.wiring" in file.read():
                    found.add(pid)
        except OSError:
            continue
    return found


def test_containers_of_one_network_find_each_other(kept, network):
    first = Container(network=network).detach("alpha", command=["sleep", "100"])
    script = "getent ahostsv4 alpha && getent ahostsv4 other && echo done"
    Container(network=Attach(network, aliases=["other"])).detach("beta", command=["sleep", "100"])
    third = Container(network=network).detach(command=["sh", "-c", script])
    assert third.wait(20) == 0
    found = [str(line).split()[0] for line in third.logs()]
    assert first.addresses[0] == found[0]
    assert found[-1] == "done"
    # A restart uses the same network. The resources of the former run are free again.
    first.stop(0)
    first.start()
    assert first.addresses
    members = keeper.Kept(network.name).inspect()["containers"]
    assert len(members) == 2


@leads_out
def test_fixed_port_and_address_are_had_again_at_once(kept):
    network = Network(f"f{os.getpid()}", subnets=["10.177.66.0/24"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    try:
        attach = Attach(network, addresses=["10.177.66.77"])
        one = Container(network=attach, publish=[Port(number, 80)]).detach(command=["sleep", "100"])
        for _ in range(3):
            one.restart(0)
            assert ([each.host_port for each in one.ports], one.addresses) == ([number], ["10.177.66.77"])
        one.remove(force=True)
    finally:
        keeper.remove(network.name, force=True)


def test_network_of_another_kind_by_the_same_name_is_refused(kept, network):
    Container(network=network).detach(command=["sleep", "100"])
    with pytest.raises(StateError, match="a different network"):
        Container(network=Network(network.name)).detach(command=["true"])


def test_network_goes_with_the_failure_for_which_it_was_made(kept, network):
    with pytest.raises(Exception, match="nosuch"):
        Container(network=network).detach(command=["/nosuch"])
    assert not any(name == network.name for name, _ in keeper.known())


def test_network_of_another_detached_container_is_joined_at_each_start(kept, network):
    name = f"n{os.getpid()}"
    with pytest.raises(StateError, match="no container of that name runs"):
        Container(network=f"container:{name}").detach(command=["sleep", "100"])
    one = Container(network=network).detach(command=["sleep", "100"], name=name)
    other = Container(network=f"container:{name}").detach(command=["sleep", "100"])

    def network_of(container):
        return os.readlink(f"/proc/{container.pid}/ns/net")

    assert network_of(one) == network_of(other)
    before = network_of(one)
    one.restart(0)
    other.restart(0)
    assert network_of(one) == network_of(other) != before


def test_networks_that_end_with_this_process_are_refused(kept, network):
    with network.open() as live, Container() as other:
        for options in (
            {"network": live},
            {"network": Attach(live)},
            {"network": other},
            {"network": [Network("a"), Network("b")]},
            {"network": CNI("/nosuch.conflist")},
            {"network": "internet", "publish": [Port.socket(8080)]},
        ):
            with pytest.raises(SpecError, match="detach"):
                Container(**options).detach(command=["true"])
    assert [] == kept.new()


def test_files_of_names_need_nobody_who_serves_them(kept):
    one = Container(hosts={"somewhere": "192.0.2.7"}).detach(command=["getent", "hosts", "somewhere"])
    assert one.wait(10) == 0
    assert str(next(one.logs())).split() == ["192.0.2.7", "somewhere"]
    assert one.last_run["attendant"] is None
