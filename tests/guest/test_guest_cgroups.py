"""The tests of control groups, and of containers with limits, repeated in guests.

Version 2, version 1 with joint mounts, version 2 under systemd.
"""

from __future__ import annotations

import os
import sys

import pytest
from harness import PROJECT, run_in_guest, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(2500),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

TESTS = sorted(str(path.relative_to(PROJECT)) for path in (PROJECT / "tests/integration").glob("test_cgroup_*.py"))
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=600"]
"""The factor of timeouts: tests take longer there, because the processor is emulated."""
CONTAINERS = ["tests/integration/test_container_limits.py", "tests/integration/test_container_pause.py"]


def test_guest_returns_output_and_status():
    done = run_in_guest(
        ["sh", "-c", "cat /sys/fs/cgroup/cgroup.controllers; echo $WORD; exit 7"], environment={"WORD": "a b"}
    )
    assert done.returncode == 7
    assert {"memory", "pids", "cpu", "io"} <= set(done.output.split())
    assert done.output.endswith("a b\n")


def test_guest_leaves_nothing_in_this_machines_file_system(tmp_path):
    done = run_in_guest(["sh", "-c", f"echo x >{tmp_path}/x && cat {tmp_path}/x"])
    assert (done.returncode, done.output) == (0, "x\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["unified", "legacy", "systemd"])
def test_cgroup_tests_pass_in_the_guest(layout):
    if layout == "systemd" and not os.path.exists("/lib/systemd/systemd"):
        pytest.skip("a guest with systemd needs the packages systemd and dbus")
    tests = [test for test in TESTS if ("systemd" in test) == (layout == "systemd")]
    done = run_in_guest([*PYTEST, *tests], layout=layout, timeout_s=2400)
    print(done.output)
    assert done.returncode == 0
    assert " passed" in done.output
    assert " failed" not in done.output


@pytest.mark.parametrize("layout", ["unified", "legacy"])
def test_limits_of_containers_hold_in_the_guest(layout):
    words = ["-m", "not slow", "-k", "not sixteen", *CONTAINERS]
    done = run_in_guest([*PYTEST, *words], layout=layout, timeout_s=2400)
    print(done.output)
    assert done.returncode == 0
    assert " passed" in done.output
    assert " failed" not in done.output
