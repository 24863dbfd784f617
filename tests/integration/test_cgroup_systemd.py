"""Groups in a scope that systemd delegates, if systemd is the init: in a guest, or on such a machine."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cgroup_workloads import eventually, version

from containerkit.cgroup import systemd
from containerkit.errors import UnsupportedError

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root"),
    pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not the init"),
]


def run(script, **environment):
    whole = "import os, subprocess\nfrom containerkit.cgroup import CGroup, Limits\n" + textwrap.dedent(script)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


USE = """
with CGroup.create("job", Limits(memory="64M", pids=8, cpus=0.5), systemd=CHOICE) as group:
    child = subprocess.Popen(["sleep", "60"])
    group.add(child.pid)
    print(group.path)
    print(group.stats().memory.limit_bytes, group.stats().pids.limit, child.pid in group.processes())
child.wait()
print(os.path.exists(group.path))
"""


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1, where root needs no scope")
@pytest.mark.parametrize("choice", [None, True])
def test_scope_is_asked_for_and_goes_with_its_owner(choice):
    path, limits, left = run(f"CHOICE = {choice}\n{USE}").splitlines()
    assert "/system.slice/containerkit-" in path
    assert ".scope/containerkit." in path
    assert (limits, left) == ("67108864 8 True", "False")
    assert eventually(lambda: not os.path.exists(path.rpartition("/")[0]))


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1, where root needs no scope")
def test_scope_is_given_up_when_its_owner_is_killed():
    whole = """if True:
    import os
    from containerkit.cgroup import CGroup, Limits
    with CGroup.create("job", Limits(pids=8), systemd=True) as group:
        print(group.path, flush=True)
        os.kill(os.getpid(), 9)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == -9
    scope = done.stdout.strip().rpartition("/")[0]
    assert eventually(lambda: not os.path.exists(scope))


def test_scope_can_be_declined():
    script = """
    from containerkit.errors import SetupError
    try:
        with CGroup.create("job", Limits(memory="64M"), systemd=False) as group:
            print(".scope/" in group.path)
    except SetupError as error:
        print(error.errno == 16 and "processes" in error.hint)
    """
    assert run(script) in {"True\n", "False\n"}


def test_one_scope_serves_all_groups_of_a_process():
    script = """
    with CGroup.create("one", systemd=True) as one, CGroup.create("two", systemd=True) as two:
        print(one.path.rpartition("/")[0] == two.path.rpartition("/")[0])
    """
    assert run(script) == "True\n"


def test_error_of_an_unreachable_manager_names_the_remedy(tmp_path):
    former = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path)
    try:
        with pytest.raises(UnsupportedError, match="systemd-run"):
            systemd.Scope("user")
    finally:
        if former is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = former


def test_managers_own_socket_serves_where_there_is_no_bus():
    bus = Path("/run/dbus/system_bus_socket")
    hidden = bus.with_name("hidden")
    if not bus.exists():
        pytest.skip("there is no bus to hide")
    bus.rename(hidden)
    try:
        assert run('with CGroup.create("one", systemd=True) as one: print(".scope/" in one.path)') == "True\n"
    finally:
        hidden.rename(bus)
