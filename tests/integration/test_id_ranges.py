"""Ranges of ids that a privileged process holds for its containers."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root's containers have ranges of their own")

HOLD = """
import sys
from containerkit.start import id_ranges
id_ranges._GRANTEES = ()  # not those that an administrator has granted
if "singly" in sys.argv:
    id_ranges.lease_singly()
print(*[id_ranges.lease().base for _ in range(int(sys.argv[1]))], flush=True)
sys.stdin.read()
"""
BLOCK = 256 * 65536


@pytest.fixture
def hold():
    made = []

    def begin(count, *words):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(count), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        made.append(process)
        return {int(word) for word in process.stdout.readline().split()}

    yield begin
    for process in made:
        process.communicate()


def test_processes_with_one_container_each_share_a_block(hold):
    bases = [hold(1, "singly") for _ in range(4)]
    assert len(set.union(*bases)) == 4
    assert len({base // BLOCK for each in bases for base in each}) == 1


def test_one_of_them_may_take_more(hold):
    first, second = hold(3, "singly"), hold(2, "singly")
    assert (len(first), len(second)) == (3, 2)
    assert not first & second


def test_a_block_that_is_shared_is_nobodys_whole_and_the_other_way_round(hold):
    (single,) = hold(1, "singly")
    whole = [min(hold(1)) // BLOCK for _ in range(4)]
    assert single // BLOCK not in whole
    assert len(set(whole)) == 4
    (other,) = hold(1, "singly")
    assert other // BLOCK not in whole
