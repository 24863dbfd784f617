"""Control groups that exist before the container, or whose values depend on each other."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from oci_bundles import ONE, RUN, as_root, bundle, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

from containerkit.oci.cgroups import Groups, hierarchies

pytestmark = as_root
pytest_generate_tests = try_python_alone


@pytest.fixture
def group():
    """The path of a group for the test. Its remains are removed."""
    path = f"/ck-oci-{RUN}"
    yield path
    for hierarchy in hierarchies():
        for place, _, _ in os.walk(hierarchy.place(path), topdown=False):
            os.rmdir(place)


@pytest.mark.parametrize("below", ["", "/pod/container"])
def test_container_in_a_frozen_group_is_refused(oci, bundle, group, below):
    freezer = Path(Groups(group, hierarchies()).freezer)
    if not freezer.name:
        pytest.skip("no mounted hierarchy has a freezer")
    freezer.parent.mkdir()
    bundle.linux["cgroupsPath"] = group + below
    bundle.write()
    first = freezer.name == "freezer.state"
    freezer.write_text("FROZEN" if first else "1")
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert f"the control group {freezer.parent} is frozen" in told
    assert "does not exist" in oci.refused("state", ONE)
    freezer.write_text("THAWED" if first else "0")
    assert "here\n" == oci.run(bundle.runs("echo", "here")).stdout


def test_period_and_quota_change_in_the_order_that_the_pod_allows(oci, bundle, group):
    cpu = next((each for each in hierarchies() if "cpu" in each.names), None)
    if cpu is None:
        pytest.skip("version 1 has no cpu controller here: version 2 takes both values in one write")
    pod = Path(cpu.place(group))
    pod.mkdir()
    (pod / "cpu.cfs_quota_us").write_text("50000")
    bundle.linux["cgroupsPath"] = f"{group}/container"
    bundle.linux["resources"] = {"cpu": {"quota": 40_000, "period": 100_000, "burst": 30_000}}
    oci.start_one(bundle.runs("sleep", "100"))

    def values():
        return [int((pod / f"container/cpu.cfs_{name}_us").read_text()) for name in ("quota", "period", "burst")]

    assert [40_000, 100_000, 30_000] == values()
    oci("update", "--cpu-period", "10000", "--cpu-quota", "3000", "--cpu-burst", "0", ONE)
    assert [3000, 10_000, 0] == values()
    oci("update", "--cpu-period", "100000", "--cpu-quota", "45000", "--cpu-burst", "1000", ONE)
    assert [45_000, 100_000, 1000] == values()
    assert "cpu.period: write '20000'" in oci.refused("update", "--cpu-period", "20000", ONE)
    oci("delete", "--force", ONE)


@pytest.fixture
def unified():
    """The hierarchy of version 2."""
    found = hierarchies()
    if not found or found[-1].version != 2:
        pytest.skip("version 2 of control groups is not mounted")
    return found[-1]


def test_group_above_that_is_busy_is_named(oci, bundle, group, unified):
    offered = (Path(unified.mountpoint) / "cgroup.controllers").read_text().split()
    known = {"hugetlb": ("hugetlb.2MB.max", "max"), "memory": ("memory.max", "max"), "pids": ("pids.max", "max")}
    name = next((name for name in known if name in offered), None)
    if name is None:
        pytest.skip("version 2 has none of the controllers hugetlb, memory and pids here")
    file, value = known[name]
    busy = Path(unified.place(group))
    busy.mkdir()
    process = subprocess.Popen(["sleep", "100"])
    try:
        (busy / "cgroup.procs").write_text(str(process.pid))
        bundle.linux["cgroupsPath"] = f"{group}/container"
        bundle.linux["resources"] = {"unified": {file: value}}
        bundle.write()
        told = oci.refused("run", "--bundle", bundle.path, ONE)
        assert f"unified.{file}: {busy} contains processes, so its child groups get no controller (hint: move" in told
        assert "domain\n" == (busy / "cgroup.type").read_text(), "it is not a threaded subtree now"
    finally:
        process.kill()
        process.wait()
    assert "here\n" == oci.run(bundle.runs("echo", "here")).stdout


def test_options_of_a_control_group_mount_are_those_of_the_host(oci, bundle):
    shown = hierarchies()
    there = sorted(shown[0].options - {"rw", "ro"} or {"nofavordynmods"})
    mount = next(each for each in bundle.config["mounts"] if each["type"] == "cgroup")
    plain = mount["options"]
    for option in there:
        mount["options"] = [*plain, option]
        assert "here\n" == oci.run(bundle.runs("echo", "here")).stdout
    mount["options"] = [*plain, "nonsense=1"]
    bundle.write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    number = bundle.config["mounts"].index(mount)
    assert f"mounts[{number}].options: the host's hierarchy does not have the option 'nonsense=1'" in told


def test_joined_cgroup_namespace_of_the_host_shows_the_group_alone(oci, bundle, group):
    bundle.linux["cgroupsPath"] = group
    namespace = next(each for each in bundle.linux["namespaces"] if each["type"] == "cgroup")
    namespace["path"] = "/proc/self/ns/cgroup"
    out = oci.run(bundle.runs("find /sys/fs/cgroup -name cgroup.procs | wc -l; cat /proc/self/cgroup")).stdout
    shown, _, member = out.partition("\n")
    assert f"{group}\n" in member
    first = [each for each in hierarchies() if each.version == 1]
    assert (len(first) or 1) == int(shown), "one group of each hierarchy, not all of the host's"


def test_control_group_mount_spreads_as_it_is_asked_to(oci, bundle):
    mount = next(each for each in bundle.config["mounts"] if each["type"] == "cgroup")

    def spreads(option):
        mount["options"] = ["ro", option]
        out = oci.run(bundle.runs("grep ' /sys/fs/cgroup ' /proc/self/mountinfo")).stdout
        return "shared:" in out

    assert [True, False] == [spreads("shared"), spreads("private")]
