"""Forwarding of the host is enabled and restored, in a network namespace that simulates a host."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root: it is about the host's own settings")

HOST = """
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
ip link set lo up
ip link add lan type veth peer name lan2
ip address add 203.0.113.1/24 dev lan
ip -6 address add 2001:db8:7::1/64 dev lan nodad
ip link set lan up; ip link set lan2 up
ip link add spare type veth peer name spare2
for each in all default lan spare; do echo 0 > /proc/sys/net/ipv4/conf/$each/forwarding; done
exec "$@"
"""

SCENARIO = """
import os, signal, subprocess, sys, time
from containerkit.gc import gc

OWNER = "import sys, time\\nfrom containerkit import Network\\nlive = Network('x').open()\\nprint('up', flush=True)\\n"
V6 = "/proc/sys/net/ipv6/conf/lan/force_forwarding"

def state():
    paths = ["/proc/sys/net/ipv4/conf/lan/forwarding", "/proc/sys/net/ipv4/conf/spare/forwarding"]
    return " ".join(open(path).read().strip() for path in [*paths, *([V6] if os.path.exists(V6) else paths[:1])])

def owner():
    process = subprocess.Popen([sys.executable, "-c", OWNER + "time.sleep(1000)"], stdout=subprocess.PIPE)
    process.stdout.readline()
    return process

def settled(expected):
    end = time.monotonic() + 30
    while time.monotonic() < end and state() != expected:
        time.sleep(0.02)
    return state()

print(state())
first, second = owner(), owner()
print(state())
first.kill(); first.wait()
time.sleep(0.5)
print(state())
if sys.argv[1] == "guards killed":
    subprocess.run(["pkill", "-9", "-f", "containerkit-guard"], check=True)  # of this pid namespace alone
second.kill(); second.wait()
if sys.argv[1] == "guards killed":
    time.sleep(0.5)
    print(state())
    gc()
print(settled("0 0 0"))
if sys.argv[1] == "closed":
    subprocess.run([sys.executable, "-c", OWNER + "live.close()"], stdout=subprocess.DEVNULL, check=True)
    print(settled("0 0 0"))
"""


FIREWALL = """
import subprocess
from containerkit import Container, Network, SetupError
def told(net):
    try:
        with Container(network=net) as container:
            return net.addresses(container) != ()
    except SetupError as error:
        return str(error)
with Network("out").open() as out, Network("in", internal=True).open() as inner:
    print(told(out))
    subprocess.run(["nft", "add table ip filter; add chain ip filter FORWARD "
        "{ type filter hook forward priority 0; policy drop; }"], check=True)
    print(told(out))
    print(told(inner))
    subprocess.run(["nft", "add chain ip filter FORWARD { policy accept; }"], check=True)
    print(told(out))
"""


VANISHING = """
import subprocess
from containerkit import Network
from containerkit.network import host
wanted = host._wanted
def then_removed(uplink):
    found = [*wanted(uplink), ("/proc/sys/net/ipv4/conf/spare/forwarding", "0", "spare")]
    subprocess.run(["ip", "link", "del", "spare"], check=True)
    return found
host._wanted = then_removed
with Network("x").open():
    print(open("/proc/sys/net/ipv4/conf/lan/forwarding").read().strip())
"""


LOOPBACK = "mount -t tmpfs tmpfs /run; ip link set lo up; "
NO_IPV6 = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; "
NARROW = (
    LOOPBACK
    + """
ip link add lan mtu {mtu} type veth peer name lan2; ip link set lan up; ip link set lan2 up
ip -{version} address add {address} dev lan{nodad}; ip -{version} route add default via {gateway} dev lan; """
)

REACHING = r"""
import socket
from containerkit import Container, Network
LISTEN = "import socket; s = socket.create_server(('::', 80), family=10, dualstack_ipv6=True); print(flush=True)\n"
with Network("x").open() as net, Container(network=net) as box:
    with box.popen(["python3", "-c", LISTEN + "while True: s.accept()"], stdout=-1) as server:
        server.stdout.readline()
        for address in net.addresses(box):
            with socket.create_connection((address, 80), 5) as made:
                print(made.getsockname()[0])
        server.kill()
    print(net.mtu, box.run(["cat", "/sys/class/net/eth0/mtu"], capture_output=True, text=True).stdout.strip())
"""


def on_a_host(scenario, code=SCENARIO, host=HOST):
    shell = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", host, "sh"]
    command = [sys.executable, "-c", code, scenario]
    done = subprocess.run([*shell, *command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split("\n")[:-1]


def test_forwarding_is_on_for_the_interfaces_with_routes_until_the_last_owner_ends():
    assert on_a_host("closed") == ["0 0 0", "1 0 1", "1 0 1", "0 0 0", "0 0 0"]


def test_gc_restores_what_a_killed_guard_did_not():
    assert on_a_host("guards killed") == ["0 0 0", "1 0 1", "1 0 1", "1 0 1", "0 0 0"]


def test_interface_that_is_removed_in_the_meantime_needs_no_forwarding():
    assert on_a_host("", VANISHING) == ["1"]


@pytest.mark.skipif(shutil.which("nft") is None, reason="needs Debian's package nftables")
def test_a_firewall_that_begins_to_drop_forwarded_packets_is_reported_at_the_next_start():
    before, during, inner, after = on_a_host("", FIREWALL)
    assert (before, inner, after) == ("True", "True", "True")
    assert "chain 'ip filter FORWARD'" in during
    assert "open them again" in during


def reached(host):
    return on_a_host("", REACHING, f'set -e; {host}exec "$@"')


@pytest.mark.parametrize("switch", ["", NO_IPV6])
def test_a_host_without_an_address_of_its_own_reaches_containers(switch):
    assert reached(LOOPBACK + switch) == ["169.254.254.1", "fd63:6b::1", "1500 1500"]


def test_a_host_without_ipv6_reaches_containers_by_both_versions():
    host = NARROW.format(mtu=1500, version=4, address="203.0.113.1/24", gateway="203.0.113.9", nodad="")
    assert reached(host + NO_IPV6) == ["203.0.113.1", "fd63:6b::1", "1500 1500"]


@pytest.mark.parametrize(
    ("mtu", "version", "address", "gateway", "expected"),
    [
        (1400, 4, "203.0.113.1/24", "203.0.113.9", 1400),
        (1300, 6, "2001:db8:7::1/64", "2001:db8:7::9", 1300),
        (9000, 4, "203.0.113.1/24", "203.0.113.9", 1500),
    ],
)
def test_interfaces_have_the_mtu_of_the_hosts_default_route(mtu, version, address, gateway, expected):
    host = NARROW.format(
        mtu=mtu, version=version, address=address, gateway=gateway, nodad="" if version == 4 else " nodad"
    )
    assert reached(host)[-1] == f"{expected} {expected}"
