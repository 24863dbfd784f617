"""Unprivileged use of a delegated subtree of version 2, and the rule that inner groups have no processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cgroup_workloads import own_groups, version

from containerkit._linux.cgroupfs import read_hierarchies
from containerkit.cgroup import CGroup
from containerkit.cgroup.directory import Directory

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")]

NOBODY = 65534
CONTROLLER, WISH = ("pids", "pids=5") if version("pids") == 2 else ("hugetlb", "hugetlb={'2M': '4M'}")


@pytest.fixture
def subtree():
    """Yield a subtree of version 2 that belongs to the user nobody, with one controller."""
    if version(CONTROLLER) != 2:
        pytest.skip(f"no version 2 hierarchy has {CONTROLLER}")
    root = next(one.mountpoint for one in read_hierarchies() if one.version == 2)
    base = Directory(os.open(root, os.O_RDONLY | os.O_DIRECTORY), root, 2)
    former = base.read("cgroup.subtree_control").split()
    base.enable([CONTROLLER])
    path = Path(root) / f"containerkit.{os.getpid()}.0.0.delegated"
    path.mkdir()
    for name in (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        os.chown(path / name, NOBODY, NOBODY)
    yield path
    group = CGroup.open("/" + path.name)
    group.kill()
    group.remove()
    if CONTROLLER not in former:
        base.write("cgroup.subtree_control", f"-{CONTROLLER}".encode())
    base.close()
    assert own_groups() == []


PRELUDE = """
import os, pkgutil, importlib, signal, subprocess, sys
import containerkit.cgroup
for found in pkgutil.walk_packages(containerkit.cgroup.__path__, "containerkit.cgroup."):
    importlib.import_module(found.name)
from containerkit.cgroup import CGroup, Limits, sweep
from containerkit.errors import SetupError, UnsupportedError
open(f"{SUBTREE}/cgroup.procs", "w").write("0")
if COMPANY:
    subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
"""


def unprivileged(subtree, script, *, company=False):
    """Run a script as nobody inside the subtree, alone or with another process. Return its output."""
    whole = f"SUBTREE = {str(subtree)!r}\nCOMPANY = {company}\n{PRELUDE}\n{textwrap.dedent(script)}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, env=environment, check=False, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_delegated_subtree_serves_an_unprivileged_owner(subtree):
    script = f"""
    with CGroup.create("job", Limits({WISH})) as group:
        child = os.fork()
        if child == 0:
            for file in group.attach_files():
                os.write(file, b"0")
            signal.pause()
        while child not in group.processes() and os.waitpid(child, os.WNOHANG) == (0, 0):
            pass
        print(group.path.removeprefix(SUBTREE).count("/"), open("/proc/self/cgroup").read().rstrip().rpartition("/")[2])
        group.freeze()
        group.thaw()
        group.kill()
        os.waitpid(child, 0)
    print(os.listdir(SUBTREE).count("supervisor"), [n for n in os.listdir(SUBTREE) if n.startswith("containerkit.")])
    """
    assert unprivileged(subtree, script) == "1 supervisor\n1 []\n"


def test_second_owner_in_the_subtree_steps_aside_too(subtree):
    script = f"""
    from containerkit.cgroup.hierarchy import Tree
    with CGroup.create("job", Limits({WISH})):
        pass
    Tree.current(refresh=True)
    with CGroup.create("again", Limits({WISH})) as group:
        print(group.path.removeprefix(SUBTREE).count("/"))
    """
    assert unprivileged(subtree, script) == "1\n"


def test_other_processes_in_the_own_group_are_named_as_the_reason(subtree):
    script = f"""
    try:
        CGroup.create("job", Limits({WISH}))
    except SetupError as error:
        print(error.errno, "processes" in error.hint)
    print([n for n in os.listdir(SUBTREE) if os.path.isdir(f"{{SUBTREE}}/{{n}}")])
    """
    assert unprivileged(subtree, script, company=True) == "16 True\n[]\n"


def test_error_of_a_controller_that_was_not_delegated_names_the_remedy(subtree):
    script = """
    for wish in (Limits(memory="64M"), Limits(cpus=1)):
        try:
            CGroup.create("job", wish)
        except UnsupportedError as error:
            print(error.target, any(word in error.hint for word in ("subtree_control", "writable", "mount")))
    """
    assert unprivileged(subtree, script) == "memory True\ncpu True\n"


def test_group_without_limits_needs_no_controller(subtree):
    script = """
    with CGroup.create("plain") as group:
        print(sorted(group.paths))
    """
    assert unprivileged(subtree, script) == "['']\n"


def test_group_that_gained_processes_hands_no_controllers_on(subtree):
    script = f"""
    with CGroup.create("job", Limits({WISH})) as group:
        child = os.fork()
        if child == 0:
            signal.pause()
        group.add(child)
        try:
            group.create_leaf("leaf", Limits({WISH}))
        except SetupError as error:
            print(error.errno, error.hint != "")
        group.kill()
        os.waitpid(child, 0)
    """
    assert unprivileged(subtree, script) == "16 True\n"
