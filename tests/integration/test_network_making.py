"""The making of a container's network beside its start: the start waits for it, and nothing is left if it fails."""

import errno
import os
import signal
import struct
import subprocess
import sys

import pytest
from waiting import wait_for

from containerkit import Container, Network, SetupError, _native, run
from containerkit._native import constants as k
from containerkit.compile import start as compiled_starts
from containerkit.network import endpoint, making
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.start import context

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="root: an unprivileged user's network is made before the start"),
    pytest.mark.skipif(_native.interpreter().Beside is None, reason="the compiled interpreter"),
]

SHOW = ["ip", "-br", "address", "show", "eth0"]
NO_SUCH_CALL = 100_000


@pytest.fixture
def net():
    with Network("making").open() as live:
        yield live


@pytest.fixture
def plan_of(monkeypatch):
    """A function that makes later networks by a changed plan."""
    real = endpoint.plan_of

    def change(changed):
        making._compiled.clear()
        monkeypatch.setattr(endpoint, "plan_of", lambda *wanted: changed(real(*wanted)))

    yield change
    making._compiled.clear()


def nap(seconds):
    """An operation that sleeps."""
    whole, rest = divmod(int(seconds * 1e9), 10**9)
    number = {"x86_64": 35, "aarch64": 101}[k.MACHINE]
    return Operation("nanosleep", call=number, args=(Block(struct.pack("=qq", whole, rest)), 0))


def after(name, extra):
    """A change of a plan: more operations after the first one of a name."""

    def change(steps):
        at = next(number for number, step in enumerate(steps) if step.name == name)
        return [*steps[: at + 1], *extra, *steps[at + 1 :]]

    return change


def ports(net):
    """The ports in the router."""
    done = subprocess.run(
        ["nsenter", f"--net=/proc/{os.getpid()}/fd/{net.router.netns}", "ip", "-br", "link", "show", "type", "veth"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("@")[0] for line in done.stdout.splitlines() if line.startswith("p")]


def test_a_command_sees_the_whole_network_however_slow_its_making_is(net, plan_of):
    plan_of(after("await_release", [nap(0.3)]))
    for init in (True, False):
        shown = run(SHOW, network=net, init=init, text=True, check=True).stdout
        assert shown.split()[1] == "UP", init
        assert "/" in shown.split()[2], init
    with Container(network=net) as container:
        assert container.run(SHOW, text=True, check=True).stdout.split()[1] == "UP"


def test_without_the_wait_a_command_would_come_before_its_network(net, plan_of, monkeypatch):
    monkeypatch.setattr(compiled_starts, "made_network", lambda start: [])
    context.programs.kept.clear()
    plan_of(after("await_release", [nap(0.5)]))
    try:
        assert run(SHOW, network=net).returncode != 0
    finally:
        context.programs.kept.clear()


def test_a_failure_of_each_operation_is_told_and_leaves_nothing(net, plan_of, left_of):
    run(["true"], network=net)
    plan = list(endpoint.plan_of(net.router, [], {}))
    met = []

    def break_at(position):
        def change(steps):
            plan[:] = steps
            known = steps[position]
            met[:] = [(known.name, known.target)]
            broken = known._replace(step=k.STEP_CALL, call=NO_SUCH_CALL, args=(), tolerate=())
            return [*steps[:position], broken, *steps[position + 1 :]]

        return change

    def sabotage():
        position = 0
        while position < len(plan):
            plan_of(break_at(position))
            position += 1
            with pytest.raises(SetupError) as caught:
                Container(network=net).start()
            assert [(caught.value.operation, caught.value.target)] == met
            assert net.inspect()["containers"] == []
        assert position > 40  # all of them, the messages of the interface included

    assert left_of(sabotage) == {}
    wait_for(lambda: ports(net) == [])  # the kernel removes them with their namespaces


def test_the_error_names_this_container_though_the_plan_was_anothers(net, plan_of):
    bad = endpoint.links.address(Slot("rtnetlink"), 9999, "10.0.0.1/8", "nowhere")
    for _ in range(2):
        run(["true"], network=net)
    plan_of(lambda steps: [*steps[:-3], bad, *steps[-3:]])
    with pytest.raises(SetupError, match=r"RTM_NEWADDR 10\.0\.0\.1/8 dev nowhere") as caught:
        run(["true"], network=net)
    assert caught.value.errno == errno.ENODEV
    assert net.inspect()["containers"] == []


def test_a_process_that_is_killed_fails_the_start(net, plan_of, left_of):
    def sabotage():
        for name in ("unshare", "await_release"):
            plan_of(after(name, [calls.leave()]))
            with pytest.raises(SetupError, match=r"network namespace.*killed"):
                run(["true"], network=net)
            with pytest.raises(SetupError, match="killed"), Container(network=net):
                pass

    assert left_of(sabotage) == {}
    wait_for(lambda: ports(net) == [])  # the kernel removes them with their namespaces


def test_names_of_other_lengths_need_another_plan(net):
    for _ in range(120):  # the names of the ports get one and two digits more
        assert run(SHOW, network=net, text=True).returncode == 0
    assert net.inspect()["containers"] == []


OWNER = """
import os, signal
from containerkit import Attach, Network, run
from containerkit.network.connect import Connector
from containerkit.network.making import Making
net = Network("owner", internal=True).open()
run(["true"], network=net)
connector = Connector(((net, Attach(net)),), (), (), None, None, {})
connector.make().close()
waiting = Making(net.router, {}, connector.latest[0])
print(os.fstat(waiting.fileno()).st_ino, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_process_waits_for_an_owner_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        inode = int(owner.stdout.readline())
        assert owner.wait() == -signal.SIGKILL
    wait_for(lambda: inode not in set(namespaces()))


def namespaces():
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                yield os.stat(f"/proc/{name}/ns/net").st_ino
            except OSError:
                continue
