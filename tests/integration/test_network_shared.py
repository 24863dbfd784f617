"""Networks that several processes share, by the command line: their keeper, their containers, the cleanup."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from waiting import wait_for

import forked_commands
from containerkit import Attach, Container, Network, SpecError, StateError, run
from containerkit.container import running
from containerkit.network import keeper

CLI = [sys.executable, "-m", "containerkit"]
NAME = f"test{os.getpid()}"

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root: the uplink is a link of the host's"),
    pytest.mark.usefixtures("forked"),
]


def cli(*words, check=True):
    done = forked_commands.run("containerkit", words, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture
def shared():
    cli("network", "create", NAME)
    yield NAME
    cli("network", "rm", "--force", NAME, check=False)


@contextlib.contextmanager
def server(*options):
    words = [*CLI, "run", *options, "--", "python3", "-m", "http.server", "80"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        yield process
        if process.poll() is None:
            process.terminate()


def members(name):
    return json.loads(cli("network", "inspect", name).stdout)[0]["containers"]


FETCH = """
import sys, time, urllib.request
for _ in range(500):
    try:
        print(urllib.request.urlopen(sys.argv[1], timeout=20).status)
        break
    except OSError:
        time.sleep(0.1)
"""


def test_commands_of_several_processes_find_each_other_by_name(shared):
    with server("--id", "web", "--network", f"{shared}:alias=db", "-p", "127.0.0.1:0:80"):
        wait_for(lambda: members(shared))
        for host in ("web", "db"):
            done = cli("run", "--network", shared, "--", "python3", "-c", FETCH, f"http://{host}/")
            assert done.stdout == "200\n", host


def test_a_network_is_listed_until_it_is_removed(shared):
    assert shared in cli("network", "ls", "-q").stdout.split()
    assert cli("network", "create", shared, check=False).returncode == 125
    with Container(network=keeper.Kept(shared)):
        refused = cli("network", "rm", shared, check=False)
        assert refused.returncode == 125
        assert "containers are on it" in refused.stderr
    wait_for(lambda: not members(shared))
    assert cli("network", "rm", shared).stdout == f"{shared}\n"
    assert shared not in cli("network", "ls", "-q").stdout.split()
    with pytest.raises(StateError, match="it does not exist"):
        Container(network=keeper.Kept(shared)).start()


def test_what_a_container_has_ends_with_its_owner_when_that_is_killed(shared):
    with server("--id", "doomed", "--network", shared) as process:
        wait_for(lambda: members(shared))
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_for(lambda: not members(shared))


def test_the_network_ends_with_its_keeper_and_gc_removes_its_name(shared):
    pid = json.loads(cli("network", "inspect", shared).stdout)[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: cli("network", "inspect", shared, check=False).returncode == 125)
    cli("gc")
    assert not os.path.lexists(f"{keeper.directory()}/{shared}")
    cli("network", "create", shared)


def test_a_keeper_that_is_stopped_is_named_and_not_waited_for(shared):
    pid = keeper.Kept(NAME).inspect()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert f"network {NAME}: its process {pid} is stopped" in cli("network", "ls").stderr
        with pytest.raises(StateError, match="kill -CONT"):
            run(["true"], network=keeper.Kept(NAME))
        assert NAME not in "".join(keeper.sweep())
    finally:
        os.kill(pid, signal.SIGCONT)
    assert NAME in cli("network", "ls").stdout


def test_a_network_whose_creator_was_killed_is_removed_like_any_other():
    name, read_write = f"orphan{os.getpid()}", os.pipe()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        os.makedirs(keeper.directory(), mode=0o700, exist_ok=True)
        listening.bind(f"{keeper.directory()}/{name}")
        listening.listen(8)
        given = (listening.fileno(), read_write[1])
        words = ["-m", "containerkit.network.keeper", json.dumps({"name": name}), *map(str, given)]
        os.close(read_write[0])  # nobody hears that it is open
        kept = subprocess.Popen([sys.executable, *words], pass_fds=given)
    os.close(read_write[1])
    try:
        wait_for(lambda: name in [each for each, _ in keeper.known()])
        keeper.remove(name, force=False)
        assert kept.wait(20) == 0
    finally:
        kept.kill()
        kept.wait()


def test_published_ports_and_fixed_addresses_are_the_keepers_to_give(shared):
    told = json.loads(cli("network", "inspect", shared).stdout)[0]
    address = told["subnets"][0].partition("/")[0].rpartition(".")[0] + ".77"
    with Container(network=Attach(keeper.Kept(shared), addresses=[address]), publish=["0:80"]) as container:
        out = container.run(["ip", "-br", "address"], text=True).stdout
        assert f"{address}/" in out
        with pytest.raises(StateError, match="another container"):
            Container(network=Attach(keeper.Kept(shared), addresses=[address])).start()


IN_ANOTHER = "import sys; from containerkit import run; sys.exit(run(sys.argv[2:], network=sys.argv[1]).returncode)"


def test_the_network_of_another_processs_container_is_joined_by_its_id():
    name = f"pod{os.getpid()}"
    with Container(id=name, network=Network("pod", internal=True), hosts={"x": "10.0.0.9"}) as first:
        inode = first.run(["readlink", "/proc/self/ns/net"], text=True).stdout
        words = ["sh", "-c", "readlink /proc/self/ns/net; grep -c 10.0.0.9 /etc/hosts"]
        assert cli("run", "--network", f"container:{name}", "--", *words).stdout == f"{inode}1\n"
        code = [sys.executable, "-c", IN_ANOTHER, f"container:{name}", "true"]
        subprocess.run(code, check=True, timeout=60)
        with pytest.raises(SpecError, match="shares its hosts"):
            run(["true"], network=f"container:{name}", hosts={"y": "10.0.0.8"})
    refused = cli("run", "--network", f"container:{name}", "--", "true", check=False)
    assert refused.returncode == 125
    assert "no container of that name runs" in refused.stderr


def test_the_network_of_a_detached_container_is_joined_by_its_name():
    name = f"det{os.getpid()}"
    made = cli("run", "-d", "--name", name, "--", "sleep", "100").stdout.strip()
    try:
        inode = cli("exec", name, "readlink", "/proc/self/ns/net").stdout
        for known in (name, made):
            assert cli("run", "--network", f"container:{known}", "--", "readlink", "/proc/self/ns/net").stdout == inode
    finally:
        cli("rm", "-f", name)


def test_a_record_of_a_container_whose_owner_was_killed_misleads_nobody():
    name = f"dead{os.getpid()}"
    code = f"from containerkit import Container; import time; c = Container(id={name!r}).start(); print(c.pid, flush=True); "
    with subprocess.Popen([sys.executable, "-c", code + "time.sleep(1000)"], stdout=subprocess.PIPE) as owner:
        owner.stdout.readline()
        owner.kill()
    wait_for(lambda: running.find(name) is None)
    with pytest.raises(StateError, match="no container of that name runs"):
        run(["true"], network=f"container:{name}")
    running.sweep()  # unless another worker has already done so
    assert not any(each.startswith(name) for each in os.listdir(running.directory()))


def test_options_of_run_reach_the_container():
    words = ("--add-host", "x:10.0.0.9", "--dns", "192.0.2.53", "--dns-search", "a.example", "--egress", "none")
    done = cli("run", "--network", "internet", *words, "--", "cat", "/etc/hosts", "/etc/resolv.conf")
    assert "10.0.0.9\tx\n" in done.stdout
    assert "search a.example\n" in done.stdout
    for bad in (["--network", "nobody-has-it"], ["-p", "80"], ["--network", "internet", "--add-host", "x"]):
        assert cli("run", *bad, "--", "true", check=False).returncode == 125


def test_a_published_port_of_the_command_line_leads_inside():
    with server("--network", "internet", "-p", "18931:80"):
        for _ in range(500):
            with contextlib.suppress(OSError):
                assert urllib.request.urlopen("http://127.0.0.1:18931/", timeout=20).status == 200
                return
            time.sleep(0.1)
        pytest.fail("nobody answers")


def test_explain_lists_the_messages_that_make_a_containers_end_of_a_network():
    told = cli("explain", "--network", "internet", "--", "true").stdout
    network, container = told.split("\n\n")[:2]
    assert network.startswith("the network: ")
    assert "netlink RTM_NEWLINK veth" in network
    assert "netlink RTM_NEWROUTE 0.0.0.0/0 via" in network
    assert "setns network namespace" in container


@pytest.fixture
def inner():
    cli("network", "create", f"{NAME}i", "--internal")
    yield f"{NAME}i"
    cli("network", "rm", "--force", f"{NAME}i", check=False)


ADDRESS = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"


def test_a_container_is_on_several_networks_that_are_kept_and_finds_the_names_of_each(shared, inner):
    with (
        Container(id="front", network=keeper.Kept(shared)),
        Container(id="back", network=Attach(keeper.Kept(inner), aliases=["db"])) as back,
    ):
        own = {each["names"][0]: each["addresses"][0] for name in (shared, inner) for each in members(name)}
        for order in ((shared, inner), (inner, shared)):
            words = [word for name in order for word in ("--network", name)]
            code = "import socket; print(*map(socket.gethostbyname, ('front', 'back', 'db')))"
            done = cli("run", *words, "--", "sh", "-c", f'ip -br link; ip route; python3 -c "{code}"').stdout
            assert "eth0" in done
            assert "eth1" in done
            assert f"default via {cli_gateway(shared)} dev eth{order.index(shared)}" in done
            assert done.splitlines()[-1] == f"{own['front']} {own['back']} {own['back']}"
        # The other containers find it by its id, on each network.
        with Container(id="both", network=[keeper.Kept(inner), keeper.Kept(shared)]):
            assert back.run(["python3", "-c", ADDRESS, "both"], text=True).stdout.strip() in {
                each["addresses"][0] for each in members(inner)
            }
    wait_for(lambda: not members(shared) and not members(inner))


def cli_gateway(name):
    return json.loads(cli("network", "inspect", name).stdout)[0]["gateways"][0]


def test_a_network_that_is_kept_goes_beside_one_of_the_processs_own(shared):
    with (
        Network("own", internal=True).open() as own,
        Container(id="front", network=keeper.Kept(shared)),
        Container(id="near", network=own) as near,
        Container(id="both", network=[own, keeper.Kept(shared)], publish=["0:80"]) as both,
    ):
        (front,) = (each["addresses"][0] for each in members(shared) if "front" in each["names"])
        found = [both.run(["python3", "-c", ADDRESS, name], text=True).stdout.strip() for name in ("near", "front")]
        assert found == [own.addresses(near)[0], front]
        assert f"default via {cli_gateway(shared)} dev eth1" in both.run(["ip", "route"], text=True).stdout
        assert near.run(["python3", "-c", ADDRESS, "both"], text=True).stdout.strip() == own.addresses(both)[0]
    wait_for(lambda: not members(shared))
    with pytest.raises(SpecError, match="different networks"):
        Container(network=[keeper.Kept(shared), keeper.Kept(shared)]).start()
