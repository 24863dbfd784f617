"""Plans as data: they are described, compared, encoded."""

import pickle
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._native import constants as k
from containerkit.errors import SpecError
from containerkit.plan import calls as plans
from containerkit.plan import entries
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.plan.tape import Plan

LAYOUT = struct.Struct("=HHi8B4h6q")


def steps_of(tape):
    return [LAYOUT.unpack_from(tape.steps, at) for at in range(0, len(tape.steps), LAYOUT.size)]


def test_a_plan_prints_a_numbered_line_for_each_operation():
    plan = Plan((plans.chdir(b"/x"), plans.pivot_root(), plans.leave()))
    assert "  0 chdir /x\n  1 pivot_root .\n  2 leave" == str(plan)


def test_plans_are_compared_by_what_they_do():
    assert Plan((plans.chdir(b"/"),)) == Plan((plans.chdir(b"/"),))
    assert Plan((plans.chdir(b"/"),)) != Plan((plans.chdir(b"/x"),))
    assert 1 == len(Plan([plans.leave()]))


def test_operations_survive_pickling():
    steps = (plans.mount_setattr(Slot("a"), userns=Slot("u")), *plans.new_mount("tmpfs", {"size": "1M"}, Slot("t")))
    assert steps == pickle.loads(pickle.dumps(steps))


def test_equal_slots_share_a_register_and_equal_strings_a_place():
    tape = Plan((plans.chdir(b"/x"), plans.chdir(b"/x"), plans.close(Slot("a")), plans.close(Slot("a")))).encode()
    one, two, three, four = steps_of(tape)
    assert one == two
    assert three == four
    assert {"a": 0} == tape.slots
    assert 1 == tape.data.count(b"/x\0")


def test_blocks_that_are_patched_are_never_shared():
    plan = Plan((plans.mount_setattr(Slot("a"), userns=Slot("u")), plans.mount_setattr(Slot("b"), userns=Slot("u"))))
    tape = plan.encode()
    assert [k.STEP_STORE_SLOT, k.STEP_CALL] * 2 == [step[0] for step in steps_of(tape)]
    assert (0, 0, 1, 1) == tape.origin
    places = [step[-6] for step in steps_of(tape) if step[0] == k.STEP_STORE_SLOT]
    assert 2 == len(set(places))


def test_named_blocks_are_found_by_name():
    tape = Plan((plans.call("write", 1, Block(b"....", name="text"), 4),)).encode()
    offset, length = tape.blocks["text"]
    assert b"...." == tape.data[offset : offset + length]


def test_skipping_counts_the_steps_that_operations_become():
    """An operation with a patched block has two steps, and a skip must skip both."""
    patched = plans.mount_setattr(Slot("a"), userns=Slot("u"))
    plan = Plan((plans.chdir(b"/x")._replace(tolerate=(2,), skip=1, leap=2), patched, patched, plans.leave()))
    first = steps_of(plan.encode())[0]
    assert (2, 4) == (first[9], first[10])


@pytest.mark.parametrize(
    "steps",
    [
        [plans.chdir(b"/a\0b")],
        [Operation("x", args=(1, 2, 3, 4, 5, 6, 7))],
        [Operation("x", tolerate=(1, 2, 3, 4, 5))],
        [plans.clone(0, "nowhere", pid=Slot("p"))],
        [plans.close(Slot(str(number))) for number in range(1025)],
        [
            plans.chdir(b"/")._replace(skip=255, tolerate=(2,)),
            *[plans.mount_setattr(Slot("a"), userns=Slot("u"))] * 255,
        ],
    ],
)
def test_invalid_plan_is_refused(steps):
    with pytest.raises(SpecError):
        Plan(steps).encode()


def test_data_always_ends_in_nul():
    tape = Plan((plans.call("write", 1, Block(b"\xff" * 8), 8),)).encode()
    assert 0 == tape.data[-1]


@given(st.lists(st.binary(max_size=30).filter(lambda raw: b"\0" not in raw), max_size=30))
def test_every_string_lies_where_its_step_points(paths):
    tape = Plan(tuple(plans.chdir(path) for path in paths)).encode()
    for path, step in zip(paths, steps_of(tape), strict=True):
        offset = step[-6]
        assert path == tape.data[offset : tape.data.index(b"\0", offset)]
        assert 0 == offset % 8


@pytest.mark.parametrize(
    "make",
    [
        lambda: entries.directory(b"", 0o755),
        lambda: entries.directory(b"a\0b", 0o755),
        lambda: entries.file(b"a\0b", 0o644, b""),
        lambda: entries.symlink(b"a", b""),
        lambda: entries.symlink(b"a", b"b\0c"),
    ],
)
def test_entries_without_a_name_or_with_a_nul_are_refused(make):
    with pytest.raises(SpecError, match="is empty or contains a NUL"):
        make()


@pytest.mark.parametrize("at", [-1, 10_000])
def test_unknown_entry_leaves_the_operations_own_name(at):
    operation = entries.populate(Slot("d"), [entries.directory(b"a", 0o755)], "all of it")
    assert operation == entries.failed(operation, at)
