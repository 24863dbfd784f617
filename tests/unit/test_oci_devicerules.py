"""Device rules of version 1: the writes lead to the wanted list, and no allowed device is denied in between."""

from hypothesis import given
from hypothesis import strategies as st

from containerkit.oci import devicerules
from containerkit.oci.resources import DeviceRule

ACCESS = st.sets(st.sampled_from("rwm"), min_size=1)
LISTS = st.dictionaries(st.tuples(st.sampled_from("cb"), st.sampled_from(["1:3", "1:*", "*:*", "5:0"])), ACCESS)


@given(LISTS, LISTS)
def test_changes_lead_from_one_list_to_the_other(there, wanted):
    now = {key: set(access) for key, access in there.items()}
    for verb, entry in devicerules.changes(there, wanted):
        kind, number, access = entry.split()
        held = now.setdefault((kind, number), set())
        if verb == "allow":
            held |= set(access)
        else:
            held -= set(access)
        for key in there.keys() & wanted.keys():
            assert there[key] & wanted[key] <= now.get(key, set())
    assert wanted == {key: access for key, access in now.items() if access}


def rule(**fields):
    return DeviceRule.read(fields, "")


def test_rules_result_in_a_list():
    deny = rule(allow=False, access="rwm")
    null = rule(allow=True, type="c", major=1, minor=3)
    made = rule(allow=True, access="m")
    assert {("c", "1:3"): set("rwm")} == devicerules.allowed([deny, null])
    assert {("c", "*:*"): {"m"}, ("b", "*:*"): {"m"}} == devicerules.allowed([null, deny, made])
    assert {("c", "1:3"): {"r"}} == devicerules.allowed(
        [deny, null, rule(allow=False, type="c", major=1, minor=3, access="wm")]
    )
    assert {} == devicerules.allowed([deny, null, deny])


def test_rules_that_allow_all_result_in_no_list():
    assert devicerules.allowed([rule(allow=False), rule(allow=True)]) is None
    assert devicerules.allowed([rule(allow=True, type="c", major=1, minor=3)]) is None
    assert devicerules.listed("a *:* rwm\n") is None


def test_list_of_the_kernel_is_read():
    assert {("c", "1:3"): set("rw"), ("b", "*:*"): {"m"}} == devicerules.listed("c 1:3 rw\nb *:* m\n")
    assert {} == devicerules.listed("")
