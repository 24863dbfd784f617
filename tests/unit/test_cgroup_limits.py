"""Limits: which values are accepted, which are refused, and what they mean for the controllers."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.cgroup import DeviceRule, IOLimit, Limits, parse_size
from containerkit.cgroup.quantities import group_name, number_list, numbers
from containerkit.errors import SpecError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256M", 256 << 20),
        ("1.5GiB", 3 << 29),
        ("4k", 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("2T", 2 << 40),
        (77, 77),
        ("0", 0),
    ],
)
def test_size_is_read_in_binary_units(text, expected):
    assert expected == parse_size(text)


@pytest.mark.parametrize(
    "text", ["256X", "", "M", "-1", -1, "1e3", "0x10", "1.M", ".5M", "1 000", "٣", True, 1.5, None, 1 << 63, "9" * 50]
)
def test_size_refuses_invalid_text(text):
    with pytest.raises(SpecError, match="size"):
        parse_size(text)


@given(st.integers(0, (1 << 63) - 1))
def test_size_of_plain_bytes_is_itself(number):
    assert number == parse_size(str(number)) == parse_size(number)


@given(st.text(max_size=20))
def test_size_of_any_text_is_a_number_in_range_or_refused(text):
    try:
        size = parse_size(text)
    except SpecError:
        return
    assert 0 <= size < 1 << 63


@given(st.sets(st.integers(0, 65535), min_size=1, max_size=60))
def test_number_list_reads_back_what_it_wrote(chosen):
    assert chosen == numbers(number_list(chosen, "list"))


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-", "65536", "0-99999999999", "1;2"])
def test_number_list_refuses_garbage(text):
    with pytest.raises(SpecError):
        numbers(text)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "a\0b", "-a", ".hidden", "a b", "ü", "x" * 129, "a\n"])
def test_group_name_refuses_all_but_plain_components(name):
    with pytest.raises(SpecError):
        group_name(name)


@pytest.mark.parametrize("name", ["job", "a.b-c_d:1@x+y", "x" * 128])
def test_group_name_takes_plain_ones(name):
    assert name == group_name(name)


@pytest.mark.parametrize(
    "wish",
    [
        {"memory": "256X"},
        {"memory": -1},
        {"memory": 0},
        {"memory": True},
        {"memory": "1M", "memory_low": "2M"},
        {"pids": 0},
        {"pids": -5},
        {"pids": 1.5},
        {"cpus": 0},
        {"cpus": -1},
        {"cpus": float("nan")},
        {"cpus": float("inf")},
        {"cpus": "1"},
        {"cpus": 1, "cpu_quota_us": 5000},
        {"cpu_weight": 0},
        {"cpu_weight": 10001},
        {"cpu_weight": 100, "cpu_shares": 1024},
        {"cpu_idle": 1},
        {"cpu_idle": True, "cpu_weight": 5},
        {"cpu_period_us": 999},
        {"cpu_rt_runtime_us": 6, "cpu_rt_period_us": 5},
        {"cpuset_cpus": "0-"},
        {"cpuset_cpus": []},
        {"cpuset_partition": "mine"},
        {"io_weight": 0},
        {"io": [1]},
        {"io_device_weights": {"sda": 5}},
        {"devices": "c 1:3 rwm"},
        {"devices": ["c 1:3 x"]},
        {"devices": ["d 1:3 r"]},
        {"devices": ["c 1 r"]},
        {"devices": ["c 1:3:5 r"]},
        {"devices": ["/dev/null rx"]},
        {"devices": [3]},
        {"hugetlb": {"2X": 1}},
        {"hugetlb": "2M"},
        {"rdma": {"mlx5_0": {"handles": 1}}},
        {"misc": {"res_a": -1}},
        {"net_cls_classid": "10:zz"},
        {"net_cls_classid": 1 << 32},
        {"net_prio": {"eth0": -1}},
        {"unified": {"memory": "1"}},
        {"unified": {"memory/high": "1"}},
        {"unified": {"../memory.high": "1"}},
        {"unified": {"memory.hi/gh": "1"}},
        {"unified": {"cgroup.procs": "1"}},
        {"unified": {"nonsense.max": "1"}},
        {"unified": {"memory.high": None}},
    ],
    ids=str,
)
def test_limits_refuse_invalid_values(wish):
    with pytest.raises(SpecError):
        Limits(**wish)


def test_limits_refuse_an_unknown_name():
    with pytest.raises(TypeError):
        Limits(memori="1M")


def test_limits_name_the_argument_that_is_wrong():
    with pytest.raises(SpecError, match="memory_high: '1Q'"):
        Limits(memory_high="1Q")


def test_limits_are_equal_hashable_and_survive_pickling():
    wish = {"memory": "256M", "unified": {"memory.high": "max"}, "devices": ["c 1:3 rw"], "cpuset_cpus": [1, 0]}
    limits = Limits(**wish)
    assert limits == Limits(**wish) == pickle.loads(pickle.dumps(limits))
    assert hash(limits) == hash(Limits(**wish))
    assert limits.cpuset_cpus == "0-1"


def test_limits_show_only_what_is_set():
    limits = Limits(memory="1K", cpus=1.5, hugetlb={"2M": "max"})
    assert repr(limits) == "Limits(memory=1024, cpus=1.5, hugetlb=(('2M', 'max'),))"
    assert eval(repr(limits)) == limits


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({}, set()),
        ({"memory": 4096, "pids": 1, "cpus": 1.5}, {"memory", "pids", "cpu"}),
        ({"devices": []}, {"devices"}),
        ({"io": [IOLimit(device="8:0", read_bps="1M")]}, {"io"}),
        ({"unified": {"hugetlb.2MB.max": "0", "cgroup.max.depth": "3"}}, {"hugetlb"}),
        ({"net_cls_classid": "1:2"}, {"net_cls"}),
    ],
)
def test_limits_name_the_controllers_they_need(wish, expected):
    assert expected == Limits(**wish).controllers()


def test_class_id_is_read_in_hexadecimal():
    assert Limits(net_cls_classid="10:1").net_cls_classid == 0x00100001


@pytest.mark.parametrize("text", ["c 1:3 rwm", "b 8:* r", "c *:* m", "a *:* rw"])
def test_device_rule_prints_what_it_read(text):
    assert text == str(DeviceRule.parse(text))


def test_io_limit_needs_a_limit():
    with pytest.raises(SpecError, match="no limit"):
        IOLimit(device="8:0")


@pytest.mark.parametrize("device", ["sda", "8", "8:x", "8:-1", "4096:0", ":", ""])
def test_io_limit_refuses_an_invalid_device(device):
    with pytest.raises(SpecError):
        IOLimit(device=device, read_bps=1)
