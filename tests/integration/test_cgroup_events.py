"""Events of a group, for synchronous and asynchronous loops, and pressure."""

from __future__ import annotations

import asyncio
import os
import threading
import time

import pytest
from cgroup_workloads import READY, SLEEP, SPIN, own_groups, python, version

from containerkit.cgroup import CGroup, Event, Limits, PressureTrigger
from containerkit.errors import SpecError, UnsupportedError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")]


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert own_groups() == []


@pytest.fixture
def group():
    with CGroup.create(limits=Limits(memory="24M", pids=4)) as made:
        yield made


def needs_version_2(group):
    if group.unified is None:
        pytest.skip("no version 2 hierarchy")


def kinds(events, timeout_s=30.0):
    """Return the kinds of the events up to a silence of 0.3 s, the first within the timeout."""
    found = []
    event = events.wait(timeout_s)
    while event is not None:
        found.append(event.kind)
        event = events.wait(0.3)
    return found


def test_events_report_an_out_of_memory_kill(group):
    with group.events(["oom", "oom_kill"]) as events:
        assert events.wait(0) is None
        with python(group, READY + "x = bytearray(100 << 20)") as process:
            process.wait(30)
        assert sorted(kinds(events)) == ["oom", "oom_kill"]


def test_events_count_occurrences_that_came_together(group):
    with group.events(["oom_kill"]) as events:
        for _ in range(2):
            with python(group, READY + "x = bytearray(100 << 20)") as process:
                process.wait(30)
        counts = 0
        while (event := events.wait(0.5)) is not None:
            counts += event.count
        assert counts == 2


def test_events_report_populated_and_empty(group):
    needs_version_2(group)
    with group.events(["populated", "empty"]) as events:
        with python(group, SLEEP):
            assert events.wait(3) == Event(kind="populated")
        assert events.wait(3) == Event(kind="empty")


def test_events_report_frozen_and_thawed(group):
    needs_version_2(group)
    with python(group, SPIN), group.events(["frozen", "thawed"]) as events:
        group.freeze()
        assert events.wait(3) == Event(kind="frozen")
        group.thaw()
        assert events.wait(3) == Event(kind="thawed")


@pytest.mark.skipif(version("pids") != 2, reason="the pids controller is on version 1, whose kernel tells nobody")
def test_events_report_a_refused_fork(group):
    script = (
        READY
        + "import os, time\nfor _ in range(6):\n try:\n  if os.fork() == 0: time.sleep(60)\n except OSError: pass\ntime.sleep(60)"
    )
    with group.events(["pids_max"]) as events, python(group, script):
        assert events.wait(5).kind == "pids_max"


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1")
def test_events_report_memory_high():
    with (
        CGroup.create(limits=Limits(memory_high="16M", memory="256M")) as group,
        group.events(["memory_high"]) as events,
        python(group, READY + "x = [bytearray(1 << 20) for _ in range(30)]"),
    ):
        assert events.wait(10).kind == "memory_high"


@pytest.mark.skipif(version("pids") != 1, reason="the pids controller is on version 2")
def test_events_refuse_kinds_that_no_file_reports(group):
    with pytest.raises(UnsupportedError, match="pids_max"):
        group.events(["pids_max"])


def test_events_refuse_an_unknown_kind(group):
    with pytest.raises(SpecError, match="flood"):
        group.events(["flood"])


def test_events_wait_no_longer_than_asked(group):
    with group.events() as events:
        began = time.monotonic()
        assert events.wait(0.2) is None
        assert 0.15 < time.monotonic() - began < 20


def test_events_end_with_their_group():
    group = CGroup.create(limits=Limits(memory="64M"))
    with group.events(["oom"]) as events:
        timer = threading.Timer(0.2, group.remove)
        timer.start()
        assert list(events) == []
        timer.join()


def test_events_cost_no_processor_time_while_nothing_happens(group):
    with group.events() as events:
        before = time.thread_time()
        events.wait(0.5)
        assert time.thread_time() - before < 0.05


def test_events_come_to_an_asynchronous_loop(group):
    async def first():
        with group.events(["oom_kill"]) as events, python(group, READY + "x = bytearray(100 << 20)") as process:
            async with asyncio.timeout(20):
                async for event in events:
                    process.wait()
                    return event
        return None

    assert asyncio.run(first()) == Event(kind="oom_kill")


def test_asynchronous_loop_is_free_while_it_waits(group):
    async def work():
        """Return the share of processor time that was used while nothing happened."""
        with group.events(["oom"]) as events:
            waiting = asyncio.ensure_future(anext(events))
            await asyncio.sleep(0)  # it waits from here on, and must not block the loop
            began, used = time.monotonic(), time.process_time()
            for _ in range(10):
                await asyncio.sleep(0.1)
            share = (time.process_time() - used) / (time.monotonic() - began)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return share

    assert asyncio.run(work()) < 0.5


def _pressure(group):
    needs_version_2(group)
    try:
        return group.pressure.cpu
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_pressure_grows_when_processes_wait_for_a_processor():
    processor = min(os.sched_getaffinity(0))
    with CGroup.create() as group:
        before = _pressure(group).some.total_us
        with python(group, SPIN) as one, python(group, SPIN) as two:
            for process in (one, two):
                os.sched_setaffinity(process.pid, {processor})
            with group.pressure.trigger(PressureTrigger(resource="cpu", stall_us=100_000)) as watch:
                assert watch.wait(10)
            assert group.pressure.cpu.some.total_us > before
        assert group.pressure.memory.some.avg10 >= 0
        assert group.pressure.io.full is not None


def test_pressure_comes_among_the_events():
    processor = min(os.sched_getaffinity(0))
    with CGroup.create() as group:
        _pressure(group)
        trigger = PressureTrigger(resource="cpu", stall_us=100_000)
        with group.events([], triggers=[trigger]) as events, python(group, SPIN) as one, python(group, SPIN) as two:
            for process in (one, two):
                os.sched_setaffinity(process.pid, {processor})
            assert events.wait(10) == Event(kind="pressure", resource="cpu")


@pytest.mark.parametrize(
    "wish",
    [
        {"resource": "net"},
        {"resource": "io", "share": "most"},
        {"resource": "io", "window_us": 1},
        {"resource": "io", "stall_us": 3_000_000},
    ],
)
def test_pressure_trigger_refuses_invalid_values(wish):
    with pytest.raises(SpecError):
        PressureTrigger(**wish)
