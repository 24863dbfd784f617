"""Collections that hold their members weakly, without callbacks."""

import gc

from containerkit.weak import WeakMembers, WeakValues


class Thing:
    pass


def test_members_end_with_their_last_other_reference():
    things = [Thing() for _ in range(3)]
    members = WeakMembers()
    for thing in things:
        members.add(thing)
    members.add(things[0])
    assert set(members) == set(things)
    assert len(members) == 3
    members.discard(things.pop())
    members.discard(Thing())
    del thing
    assert set(members) == set(things)
    things.clear()
    assert list(members) == []
    assert not members


def test_references_to_dead_objects_do_not_accumulate():
    members, values = WeakMembers(), WeakValues()
    kept = [Thing() for _ in range(50)]
    for thing in kept:
        members.add(thing)
    for number in range(10_000):
        members.add(Thing())
        values.get(number, Thing)
    assert set(members) == set(kept)
    assert len(members._references) < 250
    assert len(values._references) < 250


def test_a_value_is_made_once_while_it_lives():
    values = WeakValues()
    first = values.get("a", Thing)
    assert values.get("a", Thing) is first
    assert values.get("b", Thing) is not first
    made = []
    del first
    gc.collect()
    again = values.get("a", lambda: made.append(Thing()) or made[-1])
    assert made == [again]


def test_no_python_code_runs_when_a_member_goes():
    """Else a signal handler could run there, and what it raises would be lost."""
    import sys

    members, values = WeakMembers(), WeakValues()
    member, value = Thing(), values.get("a", Thing)
    members.add(member)
    calls = []
    sys.setprofile(lambda frame, event, _: calls.append(event) if event == "call" else None)
    try:
        member = value = None
    finally:
        sys.setprofile(None)
    assert member is value is None
    assert calls == []
