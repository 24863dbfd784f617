import pickle
from struct import unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._native import constants as k
from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan.operation import Block
from containerkit.plan.tape import Plan
from containerkit.security.capabilities import NAMES, Capabilities, after_setuid, before_setuid, canonical, no_new_privs

LAST = len(NAMES) - 1
NAME_LISTS = st.lists(st.sampled_from(NAMES), max_size=8)


def dropped(operations):
    return {step.args[1] for step in operations if step.args[0] == k.PR_CAPBSET_DROP}


def capset_masks(operations):
    (step,) = [step for step in operations if step.name == "capset"]
    data = step.args[1]
    assert isinstance(data, Block)
    effective, permitted, inheritable, *high = unpack("=6I", data.content)
    return [low | top << 32 for low, top in zip((effective, permitted, inheritable), high, strict=True)]


@pytest.mark.parametrize("name", ["NET_RAW", "CAP_NET_RAW", "cap_net_raw", "net_raw"])
def test_capability_name_is_accepted_in_any_spelling(name):
    assert canonical(name) == "CAP_NET_RAW"


def test_capability_name_unknown_is_refused_with_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'CAP_NET_RAW'"):
        canonical("NET_ROW")


def test_capabilities_given_as_one_string_are_refused():
    with pytest.raises(SpecError, match="pass several values in a list"):
        Capabilities(bounding="CAP_CHOWN")


def test_capabilities_none_are_empty_in_all_five_sets():
    empty = Capabilities.none()
    assert [empty.mask(which) for which in ("bounding", "permitted", "effective", "inheritable", "ambient")] == [0] * 5


def test_capabilities_docker_are_fourteen_and_never_inheritable():
    docker = Capabilities.docker()
    assert tuple(
        len(names)
        for names in (docker.bounding, docker.permitted, docker.effective, docker.inheritable, docker.ambient)
    ) == (14, 14, 14, 0, 0)
    assert docker.mask("bounding") == 0x00000000A80425FB  # what a Docker container shows in /proc/self/status


def test_capabilities_all_stop_at_the_last_of_the_kernel():
    assert len(Capabilities.all(last_cap=37).bounding) == 38
    assert "CAP_BPF" not in Capabilities.all(last_cap=37).bounding


def test_capabilities_added_to_ambient_are_in_all_five_sets():
    assert sorted(Capabilities.of("net_bind_service", ambient=True).ambient) == ["CAP_NET_BIND_SERVICE"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"effective": ["CHOWN"]}, "CAP_CHOWN is effective but not permitted"),
        ({"inheritable": ["CHOWN"]}, "CAP_CHOWN is inheritable but not bounding"),
        ({"ambient": ["CHOWN"]}, "CAP_CHOWN is ambient but not permitted"),
        (
            {"bounding": ["CHOWN"], "permitted": ["CHOWN"], "ambient": ["CHOWN"]},
            "CAP_CHOWN is ambient but not inheritable",
        ),
        ({"securebits": ["no_root"]}, "unknown securebit 'no_root'"),
    ],
)
def test_capabilities_that_the_kernel_refuses_are_refused_before(sets, message):
    with pytest.raises(SpecError, match=message):
        Capabilities(**sets)


def test_capabilities_ambient_against_the_securebit_are_refused():
    with pytest.raises(SpecError, match="no_cap_ambient_raise"):
        Capabilities(
            bounding=["KILL"],
            permitted=["KILL"],
            inheritable=["KILL"],
            ambient=["KILL"],
            securebits=["no_cap_ambient_raise"],
        )


@given(NAME_LISTS, NAME_LISTS, st.booleans())
def test_capabilities_dropped_are_in_no_set(added, removed, ambient):
    left = Capabilities.of(*added, ambient=ambient).drop(*removed)
    assert set(added) - set(removed) == left.bounding == left.permitted == left.effective
    assert (left.bounding if ambient else frozenset()) == left.inheritable == left.ambient


@given(NAME_LISTS, st.booleans())
def test_capabilities_round_trip_through_masks(names, ambient):
    made = Capabilities.of(*names, ambient=ambient)
    sets = ("bounding", "permitted", "effective", "inheritable", "ambient")
    assert made == Capabilities.from_masks(**{which: made.mask(which) for which in sets})


@given(NAME_LISTS, NAME_LISTS, st.integers(LAST, 63))
def test_plan_drops_exactly_what_is_not_bounding(names, ambient, last_cap):
    wanted = Capabilities.of(*names).add(*ambient, ambient=True)
    keep = {NAMES.index(name) for name in (*names, *ambient)}
    assert set(range(last_cap + 1)) - keep == dropped(before_setuid(wanted, last_cap=last_cap))
    assert [wanted.mask(which) for which in ("effective", "permitted", "inheritable")] == capset_masks(
        after_setuid(wanted)
    )
    raised = [
        step.args[2] for step in after_setuid(wanted) if step.args[:2] == (k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE)
    ]
    assert sorted(wanted.ambient, key=NAMES.index) == [NAMES[number] for number in raised]


def test_plan_clears_ambient_before_it_raises_any():
    names = [step.target for step in after_setuid(Capabilities.of("KILL", ambient=True))]
    assert names[0] == "clear the ambient set"
    assert names[-1] == "raise CAP_KILL to the ambient set"


def test_plan_keeps_capabilities_across_the_change_of_user_only_if_there_are_any():
    def keeps(wanted, **options):
        return any(step.args[0] == k.PR_SET_KEEPCAPS for step in before_setuid(wanted, last_cap=LAST, **options))

    assert [
        keeps(Capabilities.none()),
        keeps(Capabilities.of("KILL")),
        keeps(Capabilities.none(), keep=True),
    ] == [False, True, True]


def test_plan_sets_securebits_together_with_keep_caps():
    wanted = Capabilities(bounding=["KILL"], permitted=["KILL"], securebits=["noroot", "noroot_locked"])
    (bits,) = [step.args[1] for step in before_setuid(wanted, last_cap=LAST) if step.args[0] == k.PR_SET_SECUREBITS]
    assert bits == 0x13


def test_plan_of_a_capability_newer_than_the_kernel_is_unsupported():
    with pytest.raises(UnsupportedError, match=r"drop\('CAP_BPF'\)"):
        before_setuid(Capabilities.of("BPF"), last_cap=37)


def test_plan_of_a_capability_that_the_host_lacks_is_unsupported():
    with pytest.raises(UnsupportedError, match=r"CAP_SYS_RESOURCE.*new user namespace"):
        before_setuid(Capabilities.of("SYS_RESOURCE"), last_cap=LAST, available=set(NAMES) - {"CAP_SYS_RESOURCE"})


def test_plan_of_capabilities_encodes():
    wanted = Capabilities.docker().add("NET_ADMIN", ambient=True)
    steps = (*before_setuid(wanted, last_cap=LAST), *after_setuid(wanted), no_new_privs())
    assert len(steps) == len(set(Plan(steps).encode().origin))


def test_capabilities_pickle_and_print():
    made = Capabilities.of("KILL", "CHOWN")
    assert made == pickle.loads(pickle.dumps(made))
    assert str(made) == "bounding: chown kill; permitted: chown kill; effective: chown kill"
    assert str(Capabilities.none()) == "no capabilities"
