"""Partitions of processors, on version 2. Invalid ones are refused; valid ones are released at once."""

import os

import pytest
from cgroup_workloads import own_groups, version

from containerkit import Limits, SetupError
from containerkit.cgroup import CGroup

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root"),
    pytest.mark.skipif(version("cpuset") != 2, reason="cpuset is not on version 2 here"),
    pytest.mark.skipif(os.cpu_count() < 2, reason="a partition takes a second processor"),
]
LAST = str(os.cpu_count() - 1)


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert own_groups() == []


@pytest.mark.parametrize("kind", ["root", "isolated"])
def test_a_partition_can_be_made_again_as_soon_as_it_is_removed(kind):
    for _ in range(10):
        with CGroup.create(limits=Limits(cpuset_cpus=LAST, cpuset_partition=kind)) as group:
            assert kind == group.stats().cpuset.partition


@pytest.mark.parametrize(
    "limits", [Limits(cpuset_partition="root"), Limits(cpuset_cpus=f"0-{LAST}", cpuset_partition="root")]
)
def test_an_invalid_partition_is_refused_with_the_kernels_reason(limits):
    with pytest.raises(SetupError, match="root invalid") as refused:
        CGroup.create(limits=limits)
    assert "cpuset_cpus" in refused.value.hint


def test_a_partition_below_a_group_that_is_no_partition_is_refused():
    with (
        CGroup.create(limits=Limits(cpuset_cpus=LAST)) as group,
        pytest.raises(SetupError, match="not a partition root"),
    ):
        group.create_leaf(limits=Limits(cpuset_cpus=LAST, cpuset_partition="root"))


def test_an_update_to_an_invalid_partition_leaves_the_group_as_it_was():
    with CGroup.create(limits=Limits(cpuset_cpus=f"0-{LAST}")) as group:
        with pytest.raises(SetupError, match="root invalid"):
            group.update(Limits(cpuset_partition="root"))
        assert "member" == group.stats().cpuset.partition
