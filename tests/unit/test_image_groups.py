"""Which layers of a stack are merged."""

from __future__ import annotations

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from containerkit.image.layers.stack import grouped


def members(sizes, **limits):
    return [sizes[group] for group in grouped(sizes, **limits)]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([5, 1, 1], [[5], [1], [1]]),
        ([5, 1, 1, 5], [[5], [1, 1], [5]]),
        ([1, 1, 5, 1, 1], [[1, 1], [5], [1, 1]]),
        ([1, 1, 1, 1, 90, 90, 90], [[1, 1, 1, 1], [90], [90], [90]]),
        ([90, 90, 90, 90], [[90], [90], [90], [90]]),
        ([0, 0, 90, 90], [[0, 0], [90], [90]]),
    ],
)
def test_small_neighbours_are_merged(sizes, expected):
    assert expected == members(sizes, few=3, most=4, entries=50)


def test_more_than_the_most_are_merged_at_any_cost():
    assert 4 == len(members([90] * 9, few=3, most=4, entries=50))


@settings(max_examples=examples(ci=200, nightly=2000), deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 100), min_size=1, max_size=60), st.integers(1, 10), st.integers(0, 500))
def test_groups_are_the_stack_and_cost_no_more_than_allowed(sizes, few, entries):
    groups = members(sizes, few=few, most=20, entries=entries)
    assert sizes == [size for group in groups for size in group]
    assert len(groups) <= max(few, 20) or len(sizes) == len(groups)
    spent = sum(max(size, 1) for group in groups if len(group) > 1 for size in group)
    assert spent <= entries or len(groups) >= 20
