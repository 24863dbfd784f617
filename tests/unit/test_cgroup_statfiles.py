"""The parsers of the kernel's cgroup files: documented formats are parsed, garbage is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.cgroup import statfiles
from containerkit.cgroup.controllers import CONTROLLERS, controller
from containerkit.cgroup.pressure import parse_pressure

COUNT = st.integers(0, (1 << 64) - 1)
KEY = st.text(st.characters(codec="ascii", categories=["Ll", "Nd"], include_characters="_-."), min_size=1, max_size=20)
DEVICE = st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 1 << 20))
GARBAGE = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.sampled_from(["max", "0", "-1", " ", "\n", "=", ":", "some", "avg10=", "8:0", "Read", "oom_kill", "٣"])
    ).map("".join),
)


@given(st.dictionaries(KEY, COUNT))
def test_flat_reads_back_what_the_kernel_writes(values):
    text = "".join(f"{key} {value}\n" for key, value in values.items())
    assert values == statfiles.flat(text)


@given(st.dictionaries(DEVICE, st.dictionaries(KEY, st.one_of(st.none(), COUNT), min_size=1)))
def test_nested_reads_back_what_the_kernel_writes(values):
    text = "".join(
        f"{name} {' '.join(f'{key}={chr(109) + chr(97) + chr(120) if n is None else n}' for key, n in inner.items())}\n"
        for name, inner in values.items()
    )
    assert values == statfiles.nested(text)


@given(
    st.dictionaries(DEVICE, st.dictionaries(st.sampled_from(["Read", "Write", "Sync", "Discard"]), COUNT, min_size=1))
)
def test_operations_read_back_what_the_kernel_writes(values):
    lines = [f"{name} {kind} {count}" for name, inner in values.items() for kind, count in inner.items()]
    assert values == statfiles.operations("\n".join([*lines, "Total 12345"]))


@given(COUNT)
def test_integer_reads_back_what_the_kernel_writes(value):
    assert value == statfiles.integer(f"{value}\n")


@pytest.mark.parametrize("text", ["max\n", "-1\n", "", None, "1_0", "1 2", "0x1", "٣", "1.5", "9" * 21])
def test_integer_is_none_for_other_content(text):
    assert statfiles.integer(text) is None


@given(st.lists(COUNT))
def test_integers_read_back_what_the_kernel_writes(values):
    assert tuple(values) == statfiles.integers(" ".join(map(str, values)) + " \n")


SHARE = st.integers(0, 10000).map(lambda hundredths: hundredths / 100)


@given(st.lists(SHARE, min_size=6, max_size=6), st.integers(0, 1 << 50), st.integers(0, 1 << 50))
def test_pressure_reads_back_what_the_kernel_writes(shares, some, full):
    text = "some avg10={:.2f} avg60={:.2f} avg300={:.2f} total={}\n".format(
        *shares[:3], some
    ) + "full avg10={:.2f} avg60={:.2f} avg300={:.2f} total={}\n".format(*shares[3:], full)
    found = parse_pressure(text)
    assert (shares[0], shares[1], shares[2], some) == (
        found.some.avg10,
        found.some.avg60,
        found.some.avg300,
        found.some.total_us,
    )
    assert (shares[3], full) == (found.full.avg10, found.full.total_us)


def test_pressure_without_a_full_line_has_none():
    found = parse_pressure("some avg10=1.00 avg60=0.00 avg300=0.00 total=7\n")
    assert found.full is None


@given(GARBAGE)
def test_no_parser_fails_on_garbage(text):
    for values in (statfiles.flat(text).values(), statfiles.integers(text)):
        assert all(value >= 0 for value in values)
    statfiles.integer(text)
    statfiles.nested(text)
    statfiles.operations(text)
    statfiles.device(text)
    statfiles.freezer_frozen(text)
    parse_pressure(text)


@given(GARBAGE, st.sampled_from(CONTROLLERS), st.sampled_from([1, 2]))
def test_no_report_fails_on_garbage(text, name, version):
    controller(name).report(lambda _file: text, version)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", CONTROLLERS)
def test_every_report_works_without_files(name, version):
    controller(name).report(lambda _file: None, version)


def reader(files):
    return files.get


def test_memory_report_is_the_same_from_both_versions():
    old = controller("memory").report(
        reader(
            {
                "memory.usage_in_bytes": "4096\n",
                "memory.max_usage_in_bytes": "8192\n",
                "memory.limit_in_bytes": "16384\n",
                "memory.memsw.limit_in_bytes": "20480\n",
                "memory.kmem.usage_in_bytes": "100\n",
                "memory.failcnt": "3\n",
                "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
                "memory.stat": "cache 1\ntotal_cache 5\ntotal_rss 6\ntotal_swap 7\ntotal_pgfault 8\ntotal_pgmajfault 9\n",
            }
        ),
        1,
    )
    new = controller("memory").report(
        reader(
            {
                "memory.current": "4096\n",
                "memory.peak": "8192\n",
                "memory.max": "16384\n",
                "memory.swap.current": "7\n",
                "memory.swap.max": "4096\n",
                "memory.events": "low 0\nhigh 0\nmax 3\noom 2\noom_kill 2\n",
                "memory.stat": "anon 6\nfile 5\nkernel 100\npgfault 8\npgmajfault 9\n",
            }
        ),
        2,
    )
    same = [field for field in type(old).__attrs_attrs__ if field.name not in {"detail", "ooms", "high_hits"}]
    assert {f.name: getattr(old, f.name) for f in same} == {f.name: getattr(new, f.name) for f in same}
    assert (old.limit_bytes, old.oom_kills) == (16384, 2)


def test_memory_without_a_limit_has_none_in_both_versions():
    old = controller("memory").report(reader({"memory.limit_in_bytes": "9223372036854771712\n"}), 1)
    new = controller("memory").report(reader({"memory.max": "max\n"}), 2)
    assert old.limit_bytes is new.limit_bytes is None


def test_cpu_report_is_the_same_from_both_versions():
    old = controller("cpu").report(
        reader(
            {
                "cpu.stat": "nr_periods 5\nnr_throttled 2\nthrottled_time 3000\nnr_bursts 1\nburst_time 4000\n",
                "cpuacct.usage": "9000\n",
                "cpuacct.usage_user": "5000\n",
                "cpuacct.usage_sys": "4000\n",
                "cpuacct.usage_percpu": "6000 3000 \n",
            }
        ),
        1,
    )
    new = controller("cpu").report(
        reader(
            {
                "cpu.stat": "usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 5\nnr_throttled 2\nthrottled_usec 3\n"
                "nr_bursts 1\nburst_usec 4\n"
            }
        ),
        2,
    )
    assert old.per_cpu_us == (6, 3)
    assert [getattr(old, name) for name in type(old).__match_args__ if name != "per_cpu_us"] == [
        getattr(new, name) for name in type(new).__match_args__ if name != "per_cpu_us"
    ]
    assert (new.usage_us, new.throttled_us) == (9, 3)


def test_io_report_is_the_same_from_both_versions():
    old = controller("io").report(
        reader(
            {
                "blkio.throttle.io_service_bytes_recursive": "8:0 Read 10\n8:0 Write 20\n8:0 Discard 5\n8:0 Total 35\nTotal 35\n",
                "blkio.throttle.io_serviced_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Discard 3\n8:0 Total 6\nTotal 6\n",
            }
        ),
        1,
    )
    new = controller("io").report(reader({"io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=3\n"}), 2)
    assert old == new
    assert (new.read_bytes, new.write_bytes) == (10, 20)
