"""The arithmetic of the benchmarks, and the agreement of SPECIFICATION.md with their promises."""

import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

from benchmarks import __main__ as everything  # noqa: E402 - after the path is set
from benchmarks import density, growth, imports, latency, machine, measure, peers, plot, promises  # noqa: E402 - after the path is set
from benchmarks.measure import Ratio, Report, Rung, Series  # noqa: E402 - after the path is set

times = st.lists(st.floats(min_value=0.1, max_value=1e6), min_size=1, max_size=40)


@given(times)
def test_quantile_lies_between_the_extremes(values):
    ordered = sorted(values)
    assert ordered[0] == measure.quantile(ordered, 0)
    assert ordered[-1] == measure.quantile(ordered, 1)
    assert ordered[0] <= measure.quantile(ordered, 0.5) <= ordered[-1]


def test_quantile_divides_the_way_between_neighbours():
    assert 2.5 == measure.quantile([1, 2, 3, 4], 0.5)
    assert 3.97 == pytest.approx(measure.quantile([1, 2, 3, 4], 0.99))


@given(times)
def test_ratio_of_a_series_to_itself_is_one(values):
    found = measure.ratio(values[:5], values[:5])
    assert (1, 1, 1) == (found.value, found.low, found.high)


def test_ratio_interval_holds_the_true_ratio():
    source = random.Random(7)
    one = [source.gauss(200, 10) for _ in range(100)]
    two = [source.gauss(100, 10) for _ in range(100)]
    found = measure.ratio(one, two)
    assert found.low < 2 < found.high
    assert found.high - found.low < 0.2


def test_ratio_takes_series_of_different_lengths():
    assert 2 == measure.ratio([2.0] * 10, [1.0] * 3).value


def test_interleave_takes_each_rung_once_a_round_in_changing_order():
    order = []
    rungs = [Rung(name, lambda name=name: order.append(name) or 1.0) for name in "abc"]
    taken = measure.interleave(rungs, 20, seed=1)
    rounds = [tuple(order[at : at + 3]) for at in range(3 * measure.WARM_UP, len(order), 3)]
    assert {"a": 20, "b": 20, "c": 20} == {name: len(series.samples) for name, series in taken.items()}
    assert all({"a", "b", "c"} == set(one) for one in rounds)
    assert len(set(rounds)) > 1


def test_interleave_takes_a_slow_rung_less_often():
    taken = measure.interleave([Rung("slow", lambda: 1.0, 0.2), Rung("quick", lambda: 1.0)], 20)
    assert (4, 20) == (len(taken["slow"].samples), len(taken["quick"].samples))


def test_interleave_leaves_out_failing_rungs_and_reports_them():
    lines = []

    def fail():
        raise RuntimeError("no such thing")

    taken = measure.interleave([Rung("bad", fail), Rung("good", lambda: 1.0)], 2, tell=lines.append)
    assert ["good"] == list(taken)
    assert ["bad: left out: no such thing"] == lines


def test_table_is_aligned():
    text = measure.table([("a", "1"), ("bcd", "200")], ("", "us"))
    assert ["      us", "---  ---", "a      1", "bcd  200"] == text.splitlines()


def test_report_writes_its_samples_machine_and_ratios(tmp_path):
    report = Report("x", "title", ("", "us"), (("a", "1"),), {"rungs": 1}, {"a / b": Ratio(1.0, 0.9, 1.1)})
    written = json.loads(pathlib.Path(report.write(str(tmp_path / "new"), {"kernel": "6"})).read_text())
    assert {"kernel": "6"} == written["machine"]
    assert {"value": 1.0, "low": 0.9, "high": 1.1} == written["ratios"]["a / b"]
    assert 1 == written["rungs"]


def test_series_summary_has_the_three_quantiles():
    summary = Series("a", tuple(float(value) for value in range(1, 102))).summary()
    assert (51.0, 96.0, 100.0, 101) == tuple(summary[key] for key in ("p50_us", "p95_us", "p99_us", "samples"))


def test_machine_facts_name_kernel_processor_and_versions():
    facts = machine.describe()
    assert os.uname().release == facts["kernel"]
    assert sys.version.split()[0] == facts["python"]
    assert facts["cpu"]
    assert os.uname().release in machine.one_line(facts)


def test_promise_is_broken_only_beyond_the_noise():
    promise = promises.Promise("latency", "a / b", 1.5, 1.0)
    assert [] == promises.broken({"a / b": Ratio(1.6, 1.4, 1.8)}, [promise])
    assert ["a / b: 1.70 (1.60 to 1.80), promised is at most 1.5"] == promises.broken(
        {"a / b": Ratio(1.7, 1.6, 1.8)}, [promise]
    )
    assert [] == promises.broken({}, [promise])


def test_promise_verdict_lists_unmeasured_ratios():
    promise = promises.Promise("latency", "a / b", 1.5, 1.5)
    assert [("a / b", "", "1.5", "1.5", "not measured")] == promises.verdicts({}, [promise])
    assert promise.reached


def test_promises_are_of_ratios_that_the_benchmarks_make():
    told = {f"{one} / {two}" for one, two in latency.COMPARISONS}
    told |= {f"{ours} / {peer.name}" for peer in peers.PEERS for ours in ("run(), directory", "template, ready")}
    for kind, (few, full) in growth.SIZES.items():
        told |= {f"{kind}: {size} / {sizes[0]}" for sizes in (few, full) for size in sizes[1:]}
    told |= {density.MEMORY, density.MEMORY_WITHOUT_NET, density.DESCRIPTORS, density.THREADS}
    told |= {f"{name} / {imports.BARE}" for name in imports.BUDGET_MS}
    assert set() == {promise.ratio for promise in promises.PROMISES} - told


def test_specification_states_each_promise_as_it_is_checked():
    with open(os.path.join(ROOT, "SPECIFICATION.md"), encoding="utf-8") as file:
        rows = [[cell.strip() for cell in line.strip("|\n ").split("|")] for line in file if line.startswith("|")]
    stated = {row[0].strip("`"): (row[1], row[2]) for row in rows if row[0].startswith("`")}
    assert {promise.ratio: (f"{promise.held:g}", f"{promise.goal:g}") for promise in promises.PROMISES} == stated


def test_specification_names_benchmarks_that_exist():
    with open(os.path.join(ROOT, "SPECIFICATION.md"), encoding="utf-8") as file:
        named = set(re.findall(r"benchmarks/(\w+)\.(?:py|c)", file.read()))
    assert {promise.benchmark for promise in promises.PROMISES} <= named
    for name in named:
        assert any(os.path.exists(os.path.join(ROOT, "benchmarks", f"{name}.{kind}")) for kind in ("py", "c"))


@pytest.mark.parametrize("name", everything.NAMES)
def test_benchmark_tells_its_options(name):
    words = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--samples" in done.stdout


def test_plot_draws_bars_and_lines(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install containerkit[bench]")
    bars = [{"name": "a", "group": "floor", "p50_us": 10.0, "p95_us": 12.0}]
    lines = [{"name": "a", "x": [1, 2], "y": [3, 4]}]
    for name, data in (("bars", {"bars": bars}), ("lines", {"lines": lines})):
        paths = plot.draw(Report(name, "title", (), (), data), str(tmp_path))
        assert [".svg", ".png"] == [os.path.splitext(path)[1] for path in paths]
        assert all(os.path.getsize(path) > 1000 for path in paths)
    assert [] == plot.draw(Report("none", "title", (), (), {}), str(tmp_path))


def test_peers_bundle_is_the_same_isolation_for_every_runtime(tmp_path):
    path = peers.bundle("/root-filesystem", str(tmp_path))
    config = json.loads(pathlib.Path(path, "config.json").read_text())
    kinds = {entry["type"] for entry in config["linux"]["namespaces"]}
    assert {"pid", "network", "ipc", "uts", "mount", "cgroup", "user"} == kinds
    assert {"path": "/root-filesystem", "readonly": True} == config["root"]
    assert config["process"]["noNewPrivileges"]


@pytest.fixture(scope="module")
def floor():
    from benchmarks.floor import Floor

    if os.geteuid() != 0:
        pytest.skip("the floor makes mounts: it needs root")
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        pytest.skip("the floor is written in C: install gcc")
    with Floor() as started:
        yield started


def test_floor_times_programs(floor):
    assert 0 < floor.spawn(floor.true) < 1e6
    assert 0 < floor.spawn(floor.static_true) < 1e6


@pytest.mark.parametrize(
    "wishes",
    [
        ("net",),
        ("init", "net", "time", "security"),
        ("host", "init", "pooled", "time", "security"),
        ("init", "pooled", "static"),
    ],
)
def test_floor_walks_the_twin(floor, wishes):
    floor.load_filter()
    assert 0 < floor.twin(*wishes) < 5e6


def test_floor_refuses_unknown_requests(floor):
    with pytest.raises(RuntimeError, match="twin nonsense"):
        floor.twin("nonsense")
    with pytest.raises(RuntimeError, match="failed spawn"):
        floor.spawn("/nowhere/at/all")
    assert floor.spawn(floor.true) > 0


def test_floor_leaves_the_null_device_to_its_owner(floor):
    before = os.stat("/dev/null")
    floor.spawn("chown", "1:1", "/proc/self/fd/0")
    assert (before.st_uid, before.st_gid) == (os.stat("/dev/null").st_uid, os.stat("/dev/null").st_gid)


def test_floor_leaves_nothing_behind():
    from benchmarks.floor import Floor

    if os.geteuid() != 0 or shutil.which("gcc") is None:
        pytest.skip("the floor needs root and gcc")
    descriptors = len(os.listdir("/proc/self/fd"))
    with Floor() as started:
        started.twin("init", "net")
        place = started.directory
    with open("/proc/self/mounts", encoding="utf-8") as file:
        assert place not in file.read()
    assert descriptors == len(os.listdir("/proc/self/fd"))
    assert not os.path.exists(place)
