"""Finding the hierarchies in the files of /proc, for every layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._linux.cgroupfs import Hierarchy, hierarchies, parse_membership, parse_offered
from containerkit.cgroup.owner import Owner


def mount(point, kind="cgroup", options="rw", root="/"):
    return f"31 23 0:28 {root} {point} rw,nosuid shared:9 - {kind} {kind} {options}\n"


def test_pure_version_2_is_found():
    (found,) = hierarchies(mount("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate"), "0::/user.slice/job.scope\n")
    assert (2, frozenset(), "/user.slice/job.scope") == (found.version, found.controllers, found.own)
    assert "/sys/fs/cgroup/user.slice/job.scope" == found.locate(found.own)
    assert "nsdelegate" in found.options


def test_hybrid_with_joint_and_named_hierarchies_is_found():
    text = (
        mount("/sys/fs/cgroup", "tmpfs")
        + mount("/sys/fs/cgroup/unified", "cgroup2")
        + mount("/sys/fs/cgroup/cpu,cpuacct", options="rw,cpu,cpuacct")
        + mount("/sys/fs/cgroup/systemd", options="rw,xattr,name=systemd")
        + mount("/sys/fs/cgroup/memory", options="rw,memory,clone_children,release_agent=/x")
    )
    membership = "12:name=systemd:/a\n5:memory:/m\n4:cpu,cpuacct:/c\n0::/u\n"
    found = {str(one): one.own for one in hierarchies(text, membership)}
    assert {
        "cgroup2 on /sys/fs/cgroup/unified": "/u",
        "cpu,cpuacct on /sys/fs/cgroup/cpu,cpuacct": "/c",
        "name=systemd on /sys/fs/cgroup/systemd": "/a",
        "memory on /sys/fs/cgroup/memory": "/m",
    } == found


def test_container_that_sees_a_part_of_the_tree_finds_its_group_there():
    text = mount("/sys/fs/cgroup/memory", options="rw,memory", root="/docker/abc")
    (found,) = hierarchies(text, "3:memory:/docker/abc/inner\n")
    assert "/sys/fs/cgroup/memory/inner" == found.locate(found.own)
    assert "/sys/fs/cgroup/memory" == found.locate("/docker/abc")
    assert found.locate("/docker/other") is None


def test_group_outside_the_cgroup_namespace_is_out_of_sight():
    (found,) = hierarchies(mount("/sys/fs/cgroup", "cgroup2"), "0::/../outside\n")
    assert found.locate(found.own) is None
    (found,) = hierarchies(mount("/sys/fs/cgroup", "cgroup2", root="/../.."), "0::/\n")
    assert found.locate(found.own) is None


def test_second_mount_is_taken_where_the_first_does_not_show_the_own_group():
    text = mount("/a", options="rw,pids", root="/other") + mount("/b", options="rw,pids")
    (found,) = hierarchies(text, "3:pids:/mine\n")
    assert "/b" == found.mountpoint


def test_mount_point_with_blanks_and_backslashes_is_unescaped():
    (found,) = hierarchies(mount(r"/my\040cgroup\134x\9", "cgroup2"), "0::/\n")
    assert r"/my cgroup\x\9" == found.mountpoint


def test_removed_group_is_read_without_the_remark():
    assert {frozenset(): "/gone"} == parse_membership("0::/gone (deleted)\n")


def test_offered_controllers_leave_out_the_disabled_and_the_head():
    text = "#subsys_name\thierarchy\tnum_cgroups\tenabled\ncpu\t1\t1\t1\nmemory\t0\t1\t0\nnet_cls\t0\t1\t1\n"
    assert {"cpu": 1, "net_cls": 0} == parse_offered(text)


PIECES = st.lists(
    st.sampled_from(
        [
            "cgroup",
            "cgroup2",
            " - ",
            "rw",
            ",",
            "/",
            "..",
            " ",
            "\n",
            "31 23 0:28 / /x rw - cgroup2 x rw",
            "0::/a",
            "3:pids:",
            "\\04",
            ":",
        ]
    )
).map("".join)


@given(st.one_of(st.text(), PIECES), st.one_of(st.text(), PIECES))
def test_garbage_is_left_out(mountinfo, membership):
    for found in hierarchies(mountinfo, membership):
        assert isinstance(found, Hierarchy)
        found.locate(found.own)
    parse_offered(mountinfo)


@pytest.mark.parametrize(
    "name",
    [
        "job",
        "containerkit.",
        "containerkit.1.2.x.job",
        "containerkit.1.2.job",
        "containerkit.٣.1.1.x",
        "containerkit.-1.1.1.x",
    ],
)
def test_owner_is_none_for_a_foreign_group(name):
    assert Owner.of(name) is None


@given(
    st.integers(1, 1 << 22),
    st.integers(0, 1 << 60),
    st.integers(0, 1 << 40),
    st.from_regex(r"[a-z][a-z.0-9]{0,20}", fullmatch=True),
)
def test_owner_reads_back_from_the_name_of_its_group(pid, start, namespace, name):
    owner = Owner(pid, start, namespace)
    assert owner == Owner.of(owner.label(name))
