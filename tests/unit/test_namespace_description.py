"""The description of namespaces: accepted and refused values, and its conversion. Only one handle is opened."""

import os
import pathlib
import pickle

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._native import constants as k
from containerkit.errors import SetupError, SpecError
from containerkit.namespace import Kind, Namespace, Namespaces, TimeOffsets

KINDS = [kind.value for kind in Kind]


def test_kind_knows_flag_and_files():
    expected = {
        "user": (k.CLONE_NEWUSER, "user", "user"),
        "cgroup": (k.CLONE_NEWCGROUP, "cgroup", "cgroup"),
        "ipc": (k.CLONE_NEWIPC, "ipc", "ipc"),
        "uts": (k.CLONE_NEWUTS, "uts", "uts"),
        "network": (k.CLONE_NEWNET, "net", "net"),
        "pid": (k.CLONE_NEWPID, "pid", "pid_for_children"),
        "time": (k.CLONE_NEWTIME, "time", "time_for_children"),
        "mount": (k.CLONE_NEWNS, "mnt", "mnt"),
    }
    assert expected == {kind.value: (kind.flag, kind.file, kind.file_for_children) for kind in Kind}


def test_kind_of_takes_names_and_kinds():
    assert Kind.NETWORK is Kind.of("network") is Kind.of(Kind.NETWORK)


@pytest.mark.parametrize("name", ["net", "", "MOUNT", None, 3, []])
def test_kind_of_names_the_known_ones(name):
    with pytest.raises(SpecError, match="cgroup, ipc, mount, network, pid, time, user, uts"):
        Kind.of(name)


def test_namespaces_are_all_new_by_default():
    description = Namespaces()
    assert (tuple(Kind), (), ()) == (description.new(), description.inherited(), description.joined())
    assert sum(kind.flag for kind in Kind) == description.flags()


def test_namespaces_have_one_field_for_each_kind():
    assert sorted(KINDS) == sorted(field.name for field in attrs.fields(Namespaces))


def test_namespaces_distinguish_new_host_and_joined():
    description = Namespaces(network="host", pid=1, user="host", ipc="/run/kept/ipc")
    assert (Kind.USER, Kind.NETWORK) == description.inherited()
    assert (Kind.IPC, Kind.PID) == description.joined()
    assert (Kind.CGROUP, Kind.UTS, Kind.TIME, Kind.MOUNT) == description.new()
    assert ("host", 1) == (description["network"], description[Kind.PID])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", ["hots", "", "NEW", "net", 0, -1, True, None, 1.0, b"/x", "/a\0b", [], object()])
def test_namespaces_refuse_invalid_choices(kind, value):
    with pytest.raises(SpecError, match=f"^{kind} namespace: .* is not 'new', 'host', or one to join"):
        Namespaces(**{kind: value})


def test_namespaces_refuse_a_handle_of_another_kind():
    with Namespace.current("uts") as uts:
        assert (Kind.UTS,) == Namespaces(uts=uts).joined()
        with pytest.raises(SpecError, match="network namespace: can't join <Namespace uts"):
            Namespaces(network=uts)


def test_namespaces_refuse_positions_and_unknown_names():
    with pytest.raises(TypeError):
        Namespaces("new")
    with pytest.raises(TypeError):
        Namespaces(net="new")


choices = st.one_of(
    st.sampled_from(["new", "host"]),
    st.integers(1, 2**22),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).map(
        lambda text: "/" + text
    ),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(KINDS, choices)))
def test_namespaces_compare_hash_and_pickle_by_value(values):
    one, other = Namespaces(**values), Namespaces(**values)
    assert (one, hash(one)) == (other, hash(other))
    assert one == pickle.loads(pickle.dumps(one))
    assert sorted(Kind, key=repr) == sorted((*one.new(), *one.inherited(), *one.joined()), key=repr)


def test_namespaces_take_path_objects_by_value():
    assert Namespaces(network="/run/net") == Namespaces(network=pathlib.Path("/run/net"))


def test_namespaces_are_frozen():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Namespaces().pid = "host"


def test_namespaces_open_gives_a_handle_for_each_to_join():
    with Namespace.current("uts") as uts:
        opened = Namespaces(uts=uts, network=os.getpid(), ipc="/proc/self/ns/ipc").open()
        try:
            assert [Kind.IPC, Kind.UTS, Kind.NETWORK] == list(opened)
            assert uts == opened[Kind.UTS]
            assert uts.fileno() != opened[Kind.UTS].fileno()
        finally:
            for namespace in opened.values():
                namespace.close()
        assert not uts.closed


def test_namespaces_open_closes_what_it_opened_when_one_fails():
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(SetupError):
        Namespaces(ipc="/proc/self/ns/ipc", network="/nowhere/at/all").open()
    with pytest.raises(SpecError, match="kind uts, not network"):
        Namespaces(ipc="/proc/self/ns/ipc", network="/proc/self/ns/uts").open()
    assert before == sorted(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0, "0 0"),
        (5, "5 0"),
        (1.5, "1 500000000"),
        (-1.5, "-2 500000000"),
        (-0.25, "-1 750000000"),
        (-3, "-3 0"),
        (-1e-12, "0 0"),
        (4_611_686_018, "4611686018 0"),
    ],
)
def test_time_offsets_never_have_negative_nanoseconds(offset, expected):
    assert f"monotonic {expected}\nboottime 7 0\n".encode() == TimeOffsets(monotonic_s=offset, boottime_s=7).encode()


@given(st.floats(-1e6, 1e6))
def test_time_offsets_keep_the_value(offset):
    _, seconds, nanoseconds = TimeOffsets(monotonic_s=offset).encode().split()[:3]
    assert 0 <= int(nanoseconds) < 10**9
    assert abs(int(seconds) + int(nanoseconds) / 1e9 - offset) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 5e9, "1", None, True, 1j])
def test_time_offsets_refuse_invalid_numbers(value):
    with pytest.raises(SpecError, match="time offsets: boottime_s"):
        TimeOffsets(boottime_s=value)


def test_time_offsets_are_true_when_there_is_something_to_set():
    assert (False, True, True) == (
        bool(TimeOffsets()),
        bool(TimeOffsets(monotonic_s=1)),
        bool(TimeOffsets(boottime_s=-0.5)),
    )
