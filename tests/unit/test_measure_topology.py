"""Assignment of processors: no two runs share a core, and each uses as few memory nodes as possible."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit import SpecError
from containerkit.measure import Allotment, Processor, Topology
from containerkit.measure.topology import parse_list

TWO_NODES = Topology(tuple(Processor(n, n % 8, n % 8 // 4) for n in range(16)))
"""Two nodes of four cores with two processors each; siblings are n and n + 8."""


def test_lists_of_the_kernel():
    assert parse_list("0-3,8\n") == (0, 1, 2, 3, 8)
    assert parse_list("") == ()


def test_runs_are_spread_over_the_nodes():
    shares = TWO_NODES.allot(2, 3)
    assert [share.memory_nodes for share in shares] == [(0,), (1,), (0,)]
    assert [share.cores for share in shares] == [(0, 1), (4, 5), (2, 3)]


def test_siblings_are_idle_or_the_same_runs():
    assert {core for share in TWO_NODES.allot(1) for core in share.cores} == set(range(8))
    assert TWO_NODES.allot(2, 1, siblings=True) == (Allotment(cores=(0, 8), memory_nodes=(0,)),)


def test_large_runs_take_several_nodes():
    assert TWO_NODES.allot(6, 1) == (Allotment(cores=(0, 1, 2, 3, 4, 5), memory_nodes=(0, 1)),)
    assert TWO_NODES.allot(16, 1, siblings=True)[0].cores == tuple(range(16))


@pytest.mark.parametrize(("cores", "runs"), [(9, 1), (2, 5), (0, 1), (1, 0), (True, 1), ("1", 1), (1, 1.5)])
def test_run_without_free_processors_is_refused(cores, runs):
    with pytest.raises(SpecError):
        TWO_NODES.allot(cores, runs)


def test_refusal_lists_the_free_processors():
    with pytest.raises(SpecError, match=r"room for 4 runs with 2 processors each, of 16; siblings=True"):
        TWO_NODES.allot(2, 5)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(1, 6),
    st.booleans(),
)
def test_no_core_is_shared(cores_of_threads, wanted, siblings):
    processors, number = [], 0
    for threads, node in cores_of_threads:
        first = number
        for _ in range(threads):
            processors.append(Processor(number, first, node))
            number += 1
    topology = Topology(tuple(processors))
    try:
        shares = topology.allot(wanted, siblings=siblings)
    except SpecError:
        usable = len(processors) if siblings else len(cores_of_threads)
        assert usable < wanted
        return
    by_number = {processor.number: processor for processor in processors}
    seen = set()
    for share in shares:
        assert len(set(share.cores)) == wanted
        assert share.memory_nodes == tuple(sorted({by_number[core].node for core in share.cores}))
        cores = {by_number[core].core for core in share.cores}
        assert not cores & seen
        seen |= cores


def test_machine_is_read(tmp_path):
    for number, siblings in ((0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")):
        (tmp_path / f"cpu{number}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}/topology/thread_siblings_list").write_text(siblings + "\n")
        (tmp_path / f"cpu{number}/node{number % 2}").mkdir()
    found = Topology.read(str(tmp_path), [0, 1, 2, 3])
    assert found == Topology((Processor(0, 0, 0), Processor(1, 1, 1), Processor(2, 0, 0), Processor(3, 1, 1)))
    assert Topology.read().processors
