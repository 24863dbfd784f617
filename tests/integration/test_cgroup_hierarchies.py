"""The choice of hierarchies: in another cgroup namespace, with some of them hidden, mounted read-only."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from cgroup_workloads import own_groups, version

from containerkit.cgroup import CGroup, Limits

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")]


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert own_groups() == []


def within(group, shell, script):
    """Run shell commands, then a script, in a group with new cgroup and mount namespaces. Return the output."""
    prelude = "from containerkit.cgroup import CGroup, Limits\nfrom containerkit.errors import UnsupportedError\n"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SCRIPT": prelude + textwrap.dedent(script),
        "PYTHON": sys.executable,
        "SHELL_PART": shell,
    }
    command = 'read go && exec unshare --cgroup --mount sh -ec \'eval "$SHELL_PART"; exec "$PYTHON" -c "$SCRIPT"\''
    with subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        group.add(process.pid)
        output, errors = process.communicate("go\n", timeout=60)
    assert process.returncode == 0, errors
    return output


REMOUNT = """
umount -R /sys/fs/cgroup
mount -t tmpfs cgroup /sys/fs/cgroup
for name in memory pids cpu,cpuacct cpu; do
    mkdir -p /sys/fs/cgroup/$name
    mount -t cgroup -o $name cgroup /sys/fs/cgroup/$name 2>/dev/null || rmdir /sys/fs/cgroup/$name
done
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
"""


def test_group_in_a_namespace_of_its_own_is_below_the_visible_root():
    with CGroup.create("outer", Limits(memory="200M", pids=32)) as outer:
        leaf = outer.create_leaf("init")
        script = """
        from containerkit.cgroup.hierarchy import Tree
        with CGroup.create("inner", Limits(memory="64M", pids=8)) as group:
            print(group.path.rpartition("/")[0])
            print(group.stats().memory.limit_bytes, group.stats().pids.limit)
            print(open("/proc/self/cgroup").read().count("outer"))
        """
        base, limits, seen = within(leaf, REMOUNT, script).splitlines()
        assert base.startswith("/sys/fs/cgroup/")
        assert (limits, seen) == ("67108864 8", "0")
        assert not [name for part in leaf.parts for name in part.groups() if name != "supervisor"]


def test_read_only_hierarchies_are_unusable_and_the_error_names_them():
    shell = "for point in $(grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f5); do mount -o remount,bind,ro $point; done"
    script = """
    try:
        CGroup.create("inner", Limits(memory="64M"))
    except UnsupportedError as error:
        print(error.target, "writable" in error.hint or "mount" in error.hint)
    """
    with CGroup.create("outer") as outer:
        # In the caller's cgroup namespace the mounts still show the whole tree.
        assert within(outer, shell, script) == "memory True\n"


@pytest.mark.skipif(version("memory") != 1, reason="the memory controller is on version 2")
def test_hidden_version_2_tree_is_done_without():
    if not os.path.ismount("/sys/fs/cgroup/unified"):
        pytest.skip("no version 2 hierarchy to hide")
    script = """if True:
    from containerkit.cgroup import CGroup, Limits
    with CGroup.create("inner", Limits(pids=8)) as group:
        print(group.unified, group.part("freezer") is not None, group.part("cpuacct") is not None)
        group.freeze()
        group.thaw()
        print(group.usage().cpu_us, group.stats().frozen)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "SCRIPT": script, "PYTHON": sys.executable}
    shell = 'umount -l /sys/fs/cgroup/unified && exec "$PYTHON" -c "$SCRIPT"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.stderr, done.stdout) == ("", "None True True\n0 False\n")
