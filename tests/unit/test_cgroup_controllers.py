"""The files that each limit writes on each version, and the program for device rules."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.cgroup import DeviceRule, IOLimit, Limits
from containerkit.cgroup.controllers import controller
from containerkit.cgroup.controllers.cpu import shares_of, weight_of
from containerkit.cgroup.controllers.hugetlb import page_name
from containerkit.cgroup.controllers.io import bfq_weight
from containerkit.cgroup.device_program import device_program
from containerkit.errors import UnsupportedError


def written(name, version, read=lambda _file: None, **wish):
    """Return what a controller would write, as text by file in order."""
    settings = controller(name).settings(Limits(**wish), version)
    return [(one.file, (one.value if isinstance(one.value, bytes) else one.value(read)).decode()) for one in settings]


@pytest.mark.parametrize(
    ("wish", "first", "second"),
    [
        (
            {"memory": "1M"},
            [("memory.limit_in_bytes", "1048576"), ("memory.memsw.limit_in_bytes", "1048576")],
            [("memory.max", "1048576"), ("memory.swap.max", "0")],
        ),
        (
            {"memory": "1M", "swap": "2M"},
            [("memory.limit_in_bytes", "1048576"), ("memory.memsw.limit_in_bytes", "3145728")],
            [("memory.max", "1048576"), ("memory.swap.max", "2097152")],
        ),
        (
            {"memory": "1M", "swap": "max"},
            [("memory.limit_in_bytes", "1048576"), ("memory.memsw.limit_in_bytes", "-1")],
            [("memory.max", "1048576"), ("memory.swap.max", "max")],
        ),
        (
            {"memory": "max"},
            [("memory.limit_in_bytes", "-1"), ("memory.memsw.limit_in_bytes", "-1")],
            [("memory.max", "max"), ("memory.swap.max", "max")],
        ),
        ({"memory_reservation": 4096}, [("memory.soft_limit_in_bytes", "4096")], [("memory.low", "4096")]),
    ],
)
def test_memory_limits_are_written_for_both_versions(wish, first, second):
    assert (first, second) == (written("memory", 1, **wish), written("memory", 2, **wish))


def test_swap_alone_is_added_to_the_memory_limit_that_is_there_on_version_1():
    there = {"memory.limit_in_bytes": "1000\n"}
    assert [("memory.memsw.limit_in_bytes", "1500")] == written("memory", 1, there.get, swap=500)


@pytest.mark.parametrize(
    ("wish", "first", "second"),
    [
        ({"cpus": 1.5}, [("cpu.cfs_quota_us", "150000")], [("cpu.max", "150000 100000")]),
        (
            {"cpus": 0.001},
            [("cpu.cfs_period_us", "1000000"), ("cpu.cfs_quota_us", "1000")],
            [("cpu.max", "1000 1000000")],
        ),
        (
            {"cpus": 2, "cpu_period_us": 50000},
            [("cpu.cfs_period_us", "50000"), ("cpu.cfs_quota_us", "100000")],
            [("cpu.max", "100000 50000")],
        ),
        ({"cpu_quota_us": "max"}, [("cpu.cfs_quota_us", "-1")], [("cpu.max", "max")]),
        ({"cpu_quota_us": 5000}, [("cpu.cfs_quota_us", "5000")], [("cpu.max", "5000")]),
        ({"cpu_weight": 100}, [("cpu.shares", "1024")], [("cpu.weight", "100")]),
        ({"cpu_shares": 512}, [("cpu.shares", "512")], [("cpu.weight", "50")]),
        ({"cpu_burst_us": 7}, [("cpu.cfs_burst_us", "7")], [("cpu.max.burst", "7")]),
        ({"cpu_idle": True}, [("cpu.idle", "1")], [("cpu.idle", "1")]),
    ],
)
def test_cpu_limits_are_written_for_both_versions(wish, first, second):
    assert (first, second) == (written("cpu", 1, **wish), written("cpu", 2, **wish))


def test_period_alone_keeps_the_quota_on_version_2():
    assert [("cpu.max", "30000 50000")] == written("cpu", 2, {"cpu.max": "30000 100000\n"}.get, cpu_period_us=50000)


@given(st.integers(1, 10000))
def test_weight_survives_the_kernels_conversion_to_shares(weight):
    assert weight == weight_of(shares_of(weight))


@given(st.integers(2, 262144))
def test_shares_become_a_weight_in_range(shares):
    assert 1 <= weight_of(shares) <= 10000


@given(st.integers(1, 10000), st.integers(1, 10000))
def test_weight_of_the_disk_keeps_its_order_and_its_default(one, two):
    assert bfq_weight(100) == 100
    assert 1 <= bfq_weight(one) <= 1000
    assert one > two or bfq_weight(one) <= bfq_weight(two)


def test_io_limits_are_written_for_both_versions():
    limit = IOLimit(device="8:0", read_bps="1M", write_iops=5, write_bps="max")
    assert [("io.max", "8:0 rbps=1048576 wbps=max wiops=5")] == written("io", 2, io=[limit])
    assert [
        ("blkio.throttle.read_bps_device", "8:0 1048576"),
        ("blkio.throttle.write_bps_device", "8:0 0"),
        ("blkio.throttle.write_iops_device", "8:0 5"),
    ] == written("io", 1, io=[limit])


def test_io_weights_are_written_for_each_scheduler():
    wish = {"io_weight": 100, "io_device_weights": {"8:0": 10000}}
    assert [
        ("io.bfq.weight", "100"),
        ("io.weight", "default 100"),
        ("io.bfq.weight", "8:0 1000"),
        ("io.weight", "8:0 10000"),
    ] == written("io", 2, **wish)
    assert [("blkio.bfq.weight", "100"), ("blkio.bfq.weight_device", "8:0 1000")] == written("io", 1, **wish)


def test_io_latency_is_for_version_2_alone():
    wish = {"io": [IOLimit(device="8:0", latency_us=75)]}
    assert [("io.latency", "8:0 target=75")] == written("io", 2, **wish)
    with pytest.raises(UnsupportedError, match="version 2"):
        written("io", 1, **wish)


@pytest.mark.parametrize(("size", "expected"), [("2M", "2MB"), ("1G", "1GB"), ("64K", "64KB"), (2 << 20, "2MB")])
def test_huge_page_size_is_spelled_as_the_kernel_does(size, expected):
    assert expected == page_name(size)


def test_device_rules_of_version_1_deny_all_first():
    wish = {"devices": ["c 1:3 rwm", DeviceRule.parse("b *:* r", allow=False), "a"]}
    assert [
        ("devices.deny", "a"),
        ("devices.allow", "c 1:3 rwm"),
        ("devices.deny", "b *:* r"),
        ("devices.allow", "a"),
    ] == written("devices", 1, **wish)


def test_device_rule_of_both_kinds_is_written_for_each_on_version_1():
    assert [("devices.deny", "a"), ("devices.allow", "b 1:* r"), ("devices.allow", "c 1:* r")] == written(
        "devices", 1, devices=["a 1:* r"]
    )


def verdict(program, kind, major, minor, access):
    """Run a device program with a simulator of the few instructions that it uses."""
    registers = [0] * 11
    context = struct.pack("=III", access << 16 | kind, major, minor)
    position = 0
    for _ in range(10_000):
        code, registers_named, offset, value = struct.unpack_from("=BBhi", program, position * 8)
        target, source = registers_named & 15, registers_named >> 4
        position += 1
        if code == 0x61:
            registers[target] = struct.unpack_from("=I", context, offset)[0]
        elif code == 0xBC:
            registers[target] = registers[source]
        elif code == 0xB7:
            registers[target] = value
        elif code == 0x54:
            registers[target] &= value & 0xFFFFFFFF
        elif code == 0x74:
            registers[target] >>= value
        elif (code == 0x56 and registers[target] != value) or (code == 0x16 and registers[target] == value):
            position += offset
        elif code == 0x95:
            return registers[0]
        else:
            assert code in {0x56, 0x16}
    raise AssertionError("the program does not end")


RULES = st.lists(
    st.builds(
        DeviceRule,
        kind=st.sampled_from("abc"),
        major=st.one_of(st.none(), st.integers(0, 3)),
        minor=st.one_of(st.none(), st.integers(0, 3)),
        access=st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"]),
        allow=st.booleans(),
    ),
    max_size=8,
)


@given(RULES, st.sampled_from("bc"), st.integers(0, 3), st.integers(0, 3), st.integers(1, 7))
def test_device_program_decides_as_the_last_rule_that_matches(rules, kind, major, minor, access):
    wanted = {letter for letter, bit in (("m", 1), ("r", 2), ("w", 4)) if access & bit}
    expected = 0
    for rule in rules:
        same = rule.kind in {"a", kind} and rule.major in {None, major} and rule.minor in {None, minor}
        covers = wanted <= set(rule.access) if rule.allow else bool(wanted & set(rule.access))
        if same and covers:
            expected = int(rule.allow)
    assert expected == verdict(device_program(rules).encode(), {"b": 1, "c": 2}[kind], major, minor, access)
