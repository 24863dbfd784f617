"""Containers with limits. Each test observes the effect of a limit, on the version of control groups that is here."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cgroup_workloads import MAPS_IDS, container, eventually, groups, own_groups, run, version
from examples import examples

from containerkit import (
    PIPE,
    ContainerTimeout,
    Limits,
    Mount,
    Namespaces,
    OutOfMemory,
    SetupError,
    SpecError,
    StateError,
    UnsupportedError,
)
from containerkit.cgroup import CGroup, IOLimit
from containerkit.gc import gc as collect_garbage
from containerkit.start.cgroup import joining

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root"),
    pytest.mark.usefixtures("nothing_left"),
]

PYTHON = ["python3", "-SEc"]
EAT = "x = bytearray({} << 20)"
HAVE_UNIFIED = version("freezer") == 2 or os.path.exists("/sys/fs/cgroup/unified/cgroup.procs")


@pytest.fixture(scope="module", autouse=True)
def _known_places():
    """Open the directories of groups, which a process does once, before descriptors are counted."""
    run(["true"], limits=Limits(pids=50))


def needs(*controllers):
    lacking = [name for name in controllers if not version(name)]
    return pytest.mark.skipif(bool(lacking), reason=f"no hierarchy serves {', '.join(lacking)}")


def one_shot(argv, limits, **more):
    return run(argv, limits=limits, **more)


def in_container(argv, limits, **more):
    mounts = more.pop("mounts", ())
    with container(limits=limits, mounts=mounts) as c:
        return c.run(argv, **more)


BOTH = pytest.mark.parametrize("start", [one_shot, in_container])


# --- Memory


@needs("memory")
@BOTH
def test_memory_over_the_limit_ends_with_cause_oom(start):
    done = start([*PYTHON, EAT.format(200)], Limits(memory="40M"))
    assert (-signal.SIGKILL, "oom") == (done.returncode, done.cause)
    assert 35 << 20 < done.usage.memory_peak_bytes <= 40 << 20
    assert 1 == done.usage.group.oom_kills


@needs("memory")
@BOTH
def test_child_that_is_killed_for_memory_is_reported_with_the_cause(start):
    script = (
        f"import subprocess, sys\nsys.exit(subprocess.run(['python3', '-SEc', '{EAT.format(200)}']).returncode != 0)"
    )
    done = start([*PYTHON, script], Limits(memory="60M"))
    assert (1, "oom") == (done.returncode, done.cause)


@needs("memory")
@BOTH
def test_check_raises_out_of_memory(start):
    with pytest.raises(OutOfMemory) as caught:
        start([*PYTHON, EAT.format(200)], Limits(memory="40M"), check=True)
    error = caught.value
    usage = error.result.usage
    assert "oom" == error.cause == error.result.cause
    assert 40 << 20 == usage.memory_limit_bytes
    peak = f"{usage.memory_peak_bytes / (1 << 20):.1f}"
    assert f"out of memory (limit 40.0 MiB, peak {peak} MiB) (hint: raise Limits(memory=...))" in str(error)


@needs("memory")
@BOTH
def test_memory_limit_is_reported_with_the_usage(start):
    assert 80 << 20 == start(["true"], Limits(memory="80M")).usage.memory_limit_bytes
    assert start(["true"], Limits(cpus=1)).usage.memory_limit_bytes is None


@needs("memory")
def test_memory_limit_that_was_changed_is_the_one_that_is_reported():
    with container(limits=Limits(memory="80M")) as c:
        c.update(Limits(memory="90M"))
        assert 90 << 20 == c.run(["true"]).usage.memory_limit_bytes


@needs("memory")
@BOTH
def test_memory_under_the_limit_ends_well_and_is_reported(start):
    done = start([*PYTHON, EAT.format(60)], Limits(memory="128M"))
    assert (0, "exit") == (done.returncode, done.cause)
    assert 60 << 20 < done.usage.memory_peak_bytes < 90 << 20


@needs("memory")
def test_sigkill_of_the_command_itself_is_no_oom():
    done = run([*PYTHON, "import os; os.kill(os.getpid(), 9)"], limits=Limits(memory="64M"))
    assert (-signal.SIGKILL, "signal") == (done.returncode, done.cause)


@needs("memory")
@BOTH
def test_memory_limit_counts_what_is_written_to_tmpfs(start):
    done = start(
        ["sh", "-c", "head -c 100M /dev/zero >/data/x"],
        Limits(memory="32M"),
        mounts=[Mount.tmpfs("/data", size="200M")],
    )
    assert "oom" == done.cause
    assert 0 != done.returncode


@needs("memory")
def test_pid_1_is_too_small_to_be_killed_for_memory():
    """Its tape contained all files of the root, and made PID 1 larger than a small command."""
    with container(limits=Limits(memory="64M")) as c:

        def resident_kb():
            lines = Path(f"/proc/{c.pid}/status").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))

        assert eventually(lambda: "tape" not in Path(f"/proc/{c.pid}/maps").read_text(), 20)
        assert eventually(lambda: resident_kb() < 200, 20)
        assert b"here\n" == c.run(["echo", "here"]).stdout


@needs("memory")
def test_memory_limit_leaves_no_swap():
    with container(limits=Limits(memory="64M")) as c, container(limits=Limits(memory="64M", swap="32M")) as other:
        found = [one.stats().memory.swap_limit_bytes for one in (c, other)]
    assert found in ([0, 32 << 20], [None, None])  # None if the kernel does not account swap


@needs("memory")
def test_memory_is_shared_by_all_runs_of_a_container():
    with container(limits=Limits(memory="80M")) as c:
        hog = c.popen([*PYTHON, EAT.format(50) + "\nprint(1, flush=True)\nimport time; time.sleep(60)"], stdout=PIPE)
        assert b"1\n" == hog.stdout.readline()
        done = c.run([*PYTHON, EAT.format(45)])
        causes = {done.cause} if hog.poll() is None else {done.cause, hog.cause}
        assert "oom" in causes
        hog.close()


@needs("memory")
def test_usage_of_one_run_is_apart_from_the_others():
    with container(limits=Limits(memory="256M", cpus=2, pids=64)) as c:
        hog = c.popen([*PYTHON, EAT.format(80) + "\nprint(1, flush=True)\nimport time; time.sleep(60)"], stdout=PIPE)
        hog.stdout.readline()
        small = c.run(["true"])
        assert small.usage.memory_peak_bytes < 20 << 20
        assert small.usage.group.cpu_us < 500_000
        hog.close()
        assert hog.usage.memory_peak_bytes > 80 << 20
        assert c.stats().memory.peak_bytes > 80 << 20


@needs("memory")
def test_oom_of_one_run_is_not_the_others_cause():
    with container(limits=Limits(memory="80M")) as c:
        with c.popen(["sleep", "60"]) as other:
            assert "oom" == c.run([*PYTHON, EAT.format(200)]).cause
            assert other.poll() is None
            other.kill()
        assert "signal" == other.cause
        assert "exit" == c.run(["true"]).cause


# --- Processor


@needs("cpu")
@BOTH
def test_half_a_processor_is_half_a_processor(start):
    script = "from time import *\na, b = monotonic(), process_time()\nwhile monotonic() < a + 2: pass\nprint(process_time() - b)"
    limits = Limits(cpus=0.5, cpu_weight=10000)  # the weight keeps other load of the host from taking the time
    for _ in range(3):
        done = start([*PYTHON, script], limits, text=True)
        share = float(done.stdout) / 2
        assert share < 0.55
        assert done.usage.group.cpu_us / 1e6 < 0.6 * done.duration_s
        if share > 0.45:
            break
    assert share == pytest.approx(0.5, rel=0.1)


SPIN = "import time\nwhile time.process_time() < 0.2: pass"
TENTH = Limits(cpus=0.1, cpu_weight=10000)  # the weight keeps other load of the host from taking the time


@needs("cpu")
@BOTH
def test_time_that_was_held_back_is_reported(start):
    usage = start([*PYTHON, SPIN], TENTH).usage
    assert 300_000 < usage.throttled_us < 20_000_000
    assert usage.throttled_us == usage.group.throttled_us


@needs("cpu")
def test_time_that_was_held_back_before_is_no_later_commands():
    with container(limits=TENTH) as c:
        assert c.run([*PYTHON, SPIN]).usage.throttled_us > 300_000
        time.sleep(0.2)
        done = c.run(["true"])
        assert (
            done.usage.throttled_us < done.duration_s * 1e6 * os.cpu_count()
        )  # each processor is throttled separately


@needs("cpu")
def test_throttling_by_a_later_limit_is_not_reported():
    with container(limits=Limits(cpu_weight=100)) as c:
        assert 0 == c.run(["true"]).usage.throttled_us
        with c.popen(["sleep", "0.3"]) as process:
            c.update(Limits(cpus=0.5))
            process.wait()
        assert process.usage.throttled_us is None
        assert 0 == process.returncode


@needs("cpuset")
@BOTH
def test_cpuset_shows_in_the_affinity_inside(start):
    chosen = max(os.sched_getaffinity(0))
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    done = start([*PYTHON, script], Limits(cpuset_cpus=str(chosen)), text=True)
    assert f"[{chosen}]\n" == done.stdout


# --- Processes

BOMB = """
import os, time
refused = 0
for _ in range(60):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except BlockingIOError:
        refused += 1
print(refused)
"""


@needs("pids")
@BOTH
def test_pids_stop_a_fork_bomb(start):
    began = time.monotonic()
    with pytest.raises(ContainerTimeout) as caught:  # the children remain until the timeout, and are gone afterwards
        start([*PYTHON, BOMB + "time.sleep(60)"], Limits(pids=16), text=True, timeout=3)
    assert time.monotonic() - began < 30
    assert caught.value.stdout in ("", None) or int(caught.value.stdout) >= 60 - 16


@needs("pids")
def test_pids_are_counted_and_refused():
    with container(limits=Limits(pids=16)) as c:
        done = c.run([*PYTHON, BOMB], text=True)
        assert 60 - 16 <= int(done.stdout) <= 60 - 12
        assert c.stats().pids.current >= 14
        assert len(c.members()) >= 14
        with pytest.raises(SetupError):  # clone: EAGAIN
            for _ in range(10):
                c.popen(["sleep", "60"])


@needs("pids")
def test_timeout_reaches_a_daemon_of_the_run_and_nothing_else():
    daemon = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(60)\n    os._exit(0)\nos.wait()\n"
    with container(limits=Limits(pids=30)) as c, c.popen(["sleep", "60"]) as other:
        with pytest.raises(ContainerTimeout):
            c.run([*PYTHON, daemon + "time.sleep(60)"], timeout=1)
        assert eventually(lambda: {c.pid, other.pid} == set(c.members()))
        other.kill()


def test_leaf_of_a_run_that_nobody_waits_for_goes_as_others_are_started():
    with container(limits=Limits()) as c:
        for _ in range(20):
            c.popen(["true"])
            time.sleep(0.005)
        for _ in range(5):
            time.sleep(0.02)
            c.run(["true"])
        left = {name for path in c.cgroup.paths.values() for name in os.listdir(path) if name.startswith("leaf-")}
        assert len(left) <= 4


# --- Devices


@needs("devices")
@BOTH
def test_denied_device_cannot_be_opened(start):
    script = """
    for path in ("/dev/null", "/dev/zero", "/dev/urandom"):
        try:
            open(path, "rb", buffering=0).close()
            print(path, "opened")
        except PermissionError:
            print(path, "denied")
    """
    wish = Limits(devices=["/dev/null rw", "c 1:5 r"])
    done = start([*PYTHON, textwrap.dedent(script)], wish, text=True)
    assert "/dev/null opened\n/dev/zero opened\n/dev/urandom denied\n" == done.stdout


# --- Groups of a container


@needs("pids")
def test_own_group_is_the_root_of_the_cgroup_namespace():
    limits = Limits(pids=30)
    one_shot_lines = run(["cat", "/proc/self/cgroup"], limits=limits, text=True).stdout.splitlines()
    with container(limits=limits) as c:
        lines = c.run(["cat", "/proc/self/cgroup"], text=True).stdout.splitlines()
        shared = c.run(["cat", "/proc/self/cgroup"], text=True, own_group=False).stdout.splitlines()
        first = c.run(["cat", "/proc/1/cgroup"], text=True).stdout.splitlines()
    assert {line.rpartition(":")[2] for line in one_shot_lines} == {"/"}
    assert all(line.rpartition(":")[2].startswith(("/leaf-", "/")) for line in lines)
    assert any(line.rpartition(":")[2].startswith("/leaf-") for line in lines)
    assert {line.rpartition(":")[2] for line in shared} <= {"/", "/init"}
    assert {line.rpartition(":")[2] for line in first} <= {"/", "/init"}


@needs("memory")
def test_run_without_a_group_of_its_own_is_counted_with_the_container():
    with container(limits=Limits(memory="128M")) as c:
        done = c.run([*PYTHON, EAT.format(50)], own_group=False)
        assert 0 == done.returncode
        assert done.usage.group is None
        assert done.usage.memory_peak_bytes is None
        assert c.run(["true"]).usage.group is not None
        assert c.run(["true"], own_group=False).returncode == 0
        assert c.stats().memory.peak_bytes > 50 << 20


def test_without_limits_there_is_no_group():
    with container() as c:
        assert c.cgroup is None
        assert c.run(["true"]).usage.group is None
        for ask in (c.stats, lambda: c.update(Limits(pids=5))):
            with pytest.raises(StateError, match="limits"):
                ask()


@needs("pids")
def test_empty_limits_give_a_group_that_counts():
    with container(limits=Limits()) as c:
        done = c.run([*PYTHON, "for i in range(10**6): pass"])
        assert done.usage.group.cpu_us > 0
        c.stats()


@needs("pids", "memory")
def test_stats_and_members_of_a_container():
    with container(limits=Limits(memory="64M", pids=20)) as c, c.popen(["sleep", "60"]) as process:
        stats = c.stats()
        assert (64 << 20, 20) == (stats.memory.limit_bytes, stats.pids.limit)
        assert stats.pids.current >= 2
        assert {c.pid, process.pid} == set(c.members())
        assert {c.pid, process.pid} == set(c.cgroup.processes())
        process.kill()


@needs("pids")
def test_daemon_that_a_run_leaves_stays_in_its_leaf_and_goes_with_the_container():
    with container(limits=Limits(pids=30)) as c:
        c.run(["sh", "-c", "sleep 60 &"])
        assert 2 == len(c.members())
        for _ in range(5):
            c.run(["true"])
        leaves = [name for name in os.listdir(c.cgroup.path) if name.startswith("leaf-")]
        assert 1 <= len(leaves) <= 2
    assert [] == own_groups()


@needs("pids")
def test_leaf_is_gone_after_its_daemon():
    with container(limits=Limits(pids=30)) as c:
        c.run(["sh", "-c", "sleep 0.2 &"])
        assert eventually(lambda: [c.pid] == c.members())
        time.sleep(0.05)
        for _ in range(3):
            c.run(["true"])
        path = next(iter(c.cgroup.paths.values()))
        assert len([name for name in os.listdir(path) if name.startswith("leaf-")]) <= 1


@needs("memory")
def test_events_of_a_container():
    with container(limits=Limits(memory="40M")) as c, c.cgroup.events(["oom_kill"]) as events:
        for number in (1, 2):
            assert "oom" == c.run([*PYTHON, EAT.format(200)]).cause
            assert "oom_kill" == events.wait(10).kind
            assert number == c.stats().memory.oom_kills
            assert number == c.cgroup.usage().oom_kills


@pytest.mark.skipif(not HAVE_UNIFIED, reason="populated is told of by version 2 only")
def test_end_of_a_container_ends_its_events():
    with container(limits=Limits(pids=20)) as c:
        events = c.cgroup.events(["populated", "empty"])
        threading.Timer(0.2, c.stop).start()
        kinds = [event.kind for event in events]
        events.close()
    assert set(kinds) <= {"populated", "empty"}


@needs("pids")
def test_shared_pid_namespace_is_emptied_by_its_group():
    with container(limits=Limits(pids=30), namespaces=Namespaces(pid="host")) as c:
        c.run(["sh", "-c", "setsid sleep 60 & "])
        (left,) = [pid for pid in c.members() if pid != c.pid]
    assert not os.path.exists(f"/proc/{left}") or "Z" in Path(f"/proc/{left}/stat").read_text().rpartition(")")[2]
    assert [] == own_groups()


@needs("pids")
def test_one_shot_in_a_shared_pid_namespace_leaves_nothing():
    done = run(["sh", "-c", "setsid sleep 60 & echo ok"], limits=Limits(pids=30), namespaces=Namespaces(pid="host"))
    assert b"ok\n" == done.stdout
    assert [] == own_groups()


# --- Changing limits


@needs("memory")
def test_update_of_the_memory_limit_holds_at_once():
    with container(limits=Limits(memory="256M")) as c:
        assert 0 == c.run([*PYTHON, EAT.format(80)]).returncode
        c.update(Limits(memory="48M"))
        assert "oom" == c.run([*PYTHON, EAT.format(80)]).cause
        c.update(Limits(memory="256M"))
        assert 0 == c.run([*PYTHON, EAT.format(80)]).returncode


@needs("pids", "cpu")
@pytest.mark.parametrize("verb", ["update", "pause"])
def test_change_waits_for_a_command_that_is_being_started(verb):
    with container(limits=Limits(pids=50)) as c:
        change = {"update": lambda: c.update(Limits(pids=40)), "pause": c.pause}[verb]
        thread = threading.Thread(target=change)
        with c._entering():
            thread.start()
            thread.join(0.3)
            assert thread.is_alive()
            assert 50 == c.stats().pids.limit
            assert "running" == c.state
            with pytest.raises(StateError, match="signal handler"):  # otherwise it would wait for itself
                change()
        thread.join(20)
        assert not thread.is_alive()
        afterwards = {"update": (40, "running"), "pause": (50, "paused")}[verb]
        assert afterwards == (c.stats().pids.limit, c.state)


@needs("pids", "memory")
def test_group_that_may_limit_memory_is_joined_by_who_is_alone():
    """Until its exec a command shares the caller's memory, so the kernel would kill both."""
    limits = [Limits(pids=50), Limits(pids=50, memory="64M")]
    for wish, owned, late in [(limits[0], True, False), (limits[1], True, True), (limits[0], False, True)]:
        group = CGroup.create(f"ck-late-{os.getpid()}", wish, owned=owned)
        try:
            assert late == joining(group, group).late
        finally:
            group.remove()


def test_update_changes_what_it_names_and_leaves_the_rest():
    with container(limits=Limits(pids=40, cpus=1.5)) as c:
        c.update(Limits(pids=10))
        assert 10 == c.stats().pids.limit
        assert Limits(pids=10, cpus=1.5) == c.cgroup.limits


@needs("cpuset")
def test_update_of_the_cpuset_reaches_what_runs():
    all_of_them = sorted(os.sched_getaffinity(0))
    if len(all_of_them) < 2:
        pytest.skip("one processor can't be told from another")
    with container(limits=Limits(cpuset_cpus=all_of_them)) as c, c.popen(["sleep", "60"]) as process:
        c.update(Limits(cpuset_cpus=[all_of_them[0]]))
        assert {all_of_them[0]} == os.sched_getaffinity(process.pid)
        c.update(Limits(cpuset_cpus=all_of_them))
        assert set(all_of_them) == os.sched_getaffinity(process.pid)
        process.kill()


@needs("pids")
def test_update_that_is_refused_changes_nothing():
    with container(limits=Limits(pids=40)) as c:
        with pytest.raises(UnsupportedError):
            c.update(Limits(pids=10, rdma={"mlx4_0": {"hca_handle": 1}}))
        with pytest.raises(SpecError):
            c.update(Limits(pids=-1))
        assert 40 == c.stats().pids.limit
    with pytest.raises(StateError):
        c.update(Limits(pids=10))


# --- The control groups inside


def unified_inside(script, **more):
    with container(limits=Limits(pids=30), mounts=[Mount.cgroup(**more)]) as c:
        done = c.run(["sh", "-c", script], text=True)
        return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not HAVE_UNIFIED, reason="no version 2 hierarchy")
def test_cgroup_mount_shows_the_own_group_and_cannot_be_written():
    status, out, err = unified_inside("cd /sys/fs/cgroup; cat cgroup.procs init/cgroup.procs; mkdir x")
    assert 0 != status
    assert "1\n" in out
    assert "Read-only file system" in err


@pytest.mark.skipif(not HAVE_UNIFIED, reason="no version 2 hierarchy")
def test_writable_cgroup_mount_hands_the_group_over():
    script = """
    cd /sys/fs/cgroup
    mkdir -p own/inner && echo $$ >own/inner/cgroup.procs && grep 0:: /proc/self/cgroup
    for file in cgroup.max.descendants cgroup.freeze pids.max; do
        (echo 1 >$file) 2>/dev/null && echo $file can be written
    done
    echo done
    """
    assert (0, "0::/own/inner\ndone\n") == unified_inside(script, readonly=False)[:2]


@pytest.mark.skipif(not HAVE_UNIFIED, reason="no version 2 hierarchy")
def test_groups_that_a_container_has_made_go_with_it():
    script = "cd /sys/fs/cgroup; mkdir -p a/b/c; sleep 60 & echo $! >a/b/c/cgroup.procs; sleep 0.1"
    with container(limits=Limits(pids=30), mounts=[Mount.cgroup(readonly=False)]) as c:
        assert 0 == c.run(["sh", "-c", script]).returncode
        path = c.cgroup.path
        assert os.path.isdir(f"{path}/a/b/c")
    assert not os.path.exists(path)
    assert 0 == run(["sh", "-c", script], limits=Limits(pids=30), mounts=[Mount.cgroup(readonly=False)]).returncode
    assert [] == own_groups()


@pytest.mark.skipif(not HAVE_UNIFIED, reason="no version 2 hierarchy")
def test_groups_cannot_be_nested_without_end():
    script = "cd /sys/fs/cgroup; i=0; while mkdir d 2>/dev/null && cd d; do i=$((i+1)); done; echo $i"
    status, out, _ = unified_inside(script, readonly=False)
    assert (0, True) == (status, 4 <= int(out) <= 64)


@pytest.mark.skipif(not HAVE_UNIFIED, reason="no version 2 hierarchy")
def test_writable_cgroup_mount_belongs_to_root_inside_alone():
    with container(limits=Limits(pids=30), mounts=[Mount.cgroup(readonly=False)]) as c:
        assert b"" != c.run(["mkdir", "/sys/fs/cgroup/x"], user="1000:1000").stderr


def test_writable_cgroup_mount_takes_limits():
    with pytest.raises(SpecError, match="limits"):
        container(mounts=[Mount.cgroup(readonly=False)])


@pytest.mark.skipif(version("memory") != 1, reason="memory is not on version 1")
def test_version_1_hierarchies_can_be_shown_and_handed_over():
    mounts = [
        Mount.cgroup("/cg/memory", controllers=["memory"], readonly=False),
        Mount.cgroup("/cg/pids", controllers=["pids"]),
    ]
    script = """
    cd /cg/memory
    mkdir -p own/inner && echo $$ >own/inner/cgroup.procs && grep -c :memory:/own/inner /proc/self/cgroup
    (echo 200M >memory.limit_in_bytes) 2>/dev/null || echo held
    mkdir /cg/pids/x 2>/dev/null || echo shown only
    """
    with container(limits=Limits(memory="64M", pids=30), mounts=mounts) as c:
        assert "1\nheld\nshown only\n" == c.run(["sh", "-c", script], text=True).stdout
    assert [] == own_groups()


# --- What is refused


@pytest.mark.parametrize(
    "wish",
    [
        {"memory": -1},
        {"memory": "256X"},
        {"memory": 0},
        {"cpus": 0},
        {"cpus": -1},
        {"pids": 0},
        {"pids": "many"},
        {"cpuset_cpus": "9-3"},
        {"unified": {"memory/max": 1}},
        {"unified": {"../memory.max": 1}},
        {"devices": ["c 1:3 x"]},
    ],
    ids=str,
)
def test_bad_limits_are_refused_before_anything_is_made(wish):
    before = own_groups()
    with pytest.raises(SpecError):
        run(["true"], limits=Limits(**wish))
    assert before == own_groups()


@needs("cpuset")
def test_processor_that_is_not_there_is_refused():
    with pytest.raises((SpecError, SetupError)):
        run(["true"], limits=Limits(cpuset_cpus="4000"))
    assert [] == own_groups()


@pytest.mark.parametrize("limits", [{"memory": "64M"}, "64M", 5], ids=str)
def test_limits_of_another_type_are_refused(limits):
    with pytest.raises(SpecError, match="Limits"):
        run(["true"], limits=limits)


def test_limit_that_nothing_enforces_is_refused_with_a_remedy():
    missing = next((name for name in ("rdma", "misc") if not version(name)), None)
    if missing is None:
        pytest.skip("every controller is here")
    wish = {"rdma": {"rdma": {"mlx4_0": {"hca_handle": 1}}}, "misc": {"misc": {"sev": 1}}}[missing]
    with pytest.raises(UnsupportedError) as caught:
        run(["true"], limits=Limits(**wish))
    assert missing in str(caught.value)
    assert "" != caught.value.hint
    assert [] == own_groups()


@needs("pids")
def test_limit_that_the_kernel_refuses_leaves_nothing():
    with pytest.raises((SetupError, UnsupportedError, SpecError)):
        run(["true"], limits=Limits(pids=5, io=[IOLimit(device="4000:77", read_bps=1000)]))
    assert [] == own_groups()


@needs("pids")
@BOTH
def test_start_that_fails_in_the_middle_removes_the_groups(start):
    with pytest.raises(SetupError):
        start(["/not/there"], Limits(pids=20))
    with pytest.raises(SetupError):
        start(["true"], Limits(pids=20), mounts=[Mount(target="/x", type="nosuchfs", source="x")])
    assert [] == own_groups()


@needs("pids")
def test_run_that_fails_leaves_its_container_usable():
    with container(limits=Limits(pids=20)) as c:
        for _ in range(5):
            with pytest.raises(SetupError):
                c.run(["/not/there"])
        path = next(iter(c.cgroup.paths.values()))
        assert 0 == c.run(["true"]).returncode
        assert len([name for name in os.listdir(path) if name.startswith("leaf-")]) <= 1


UNPRIVILEGED = """
import ctypes, importlib, os, pkgutil, socket, sys
import containerkit, containerkit._linux, containerkit._native, containerkit.cgroup, containerkit.namespace
import containerkit.security
from containerkit import Limits, RootFS, UnsupportedError, run
for package in (containerkit._native, containerkit._linux, containerkit.cgroup, containerkit.namespace,
                containerkit.security):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        try:
            importlib.import_module(found.name)
        except ImportError:
            continue
run(["true"], limits=Limits(pids=30), rootfs=RootFS.host(idmap=sys.argv[1] == "True"))  # the rest of what is imported late
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
pid = os.fork()  # a fresh process: what root has found out does not count any more
if pid:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE, which the change of user has cleared
from containerkit.cgroup import hierarchy
hierarchy._current = None
"""


@needs("memory")
def test_limits_without_permission_are_refused_with_a_remedy():
    script = """
    try:
        run(["true"], limits=Limits(memory="64M"))
    except UnsupportedError as error:
        print("memory" in str(error), "root" in error.hint)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED + textwrap.dedent(script), str(MAPS_IDS)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=60,
    )
    assert "True True\n" == done.stdout, done.stderr
    assert [] == [path for path in groups() if ".65534." in path]


# --- Many


@needs("pids", "memory")
def test_sixteen_threads_side_by_side():
    def work(number):
        with container(limits=Limits(memory=f"{32 + number}M", pids=20)) as c:
            peak = c.run([*PYTHON, EAT.format(number)]).usage.memory_peak_bytes
            assert (32 + number) << 20 == c.stats().memory.limit_bytes
            one = run([*PYTHON, EAT.format(number)], limits=Limits(memory="64M", pids=20))
        return number << 20 < peak < (number + 16) << 20 and 0 == one.returncode

    with ThreadPoolExecutor(16) as pool:
        assert [True] * 16 == list(pool.map(work, range(1, 17)))
    assert [] == own_groups()


@needs("pids")
def test_many_runs_at_a_time_in_one_container():
    with container(limits=Limits(pids=100)) as c, ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda number: c.run(["sh", "-c", f"exit {number}"]).returncode, range(48)))
    assert list(range(48)) == results
    assert [] == own_groups()


@pytest.mark.timeout(300)
@needs("memory", "cpu", "pids")
def test_hundreds_of_containers_leave_no_group():
    limits = Limits(memory="64M", cpus=1, pids=20)
    for _ in range(examples(ci=30, nightly=100)):
        with container(limits=limits) as c:
            assert 0 == c.run(["true"]).returncode
    for _ in range(examples(ci=120, nightly=400)):
        assert 0 == run(["true"], limits=limits).returncode
    assert [] == own_groups()
    gc.collect()


OWNER = """
import sys, time
from containerkit import Container, Limits, RootFS
held = [Container(limits=Limits(memory="64M", pids=20, cpus=1), rootfs=RootFS.host(idmap=sys.argv[1] == "True")).start() for _ in range(5)]
for c in held:
    c.popen(["sleep", "60"])
print("ready", flush=True)
time.sleep(60)
"""
NEXT = """
import sys
from containerkit import Limits, RootFS, run
print(run(["true"], limits=Limits(pids=20), rootfs=RootFS.host(idmap=sys.argv[1] == "True")).returncode)
"""


def killed_owner():
    with subprocess.Popen([sys.executable, "-c", OWNER, str(MAPS_IDS)], stdout=subprocess.PIPE, text=True) as owner:
        assert "ready\n" == owner.stdout.readline()
        owner.kill()
    return owner.pid


def groups_of(pid):
    return [path for path in groups() if f"/containerkit.{pid}." in path]


@needs("memory", "cpu", "pids")
def test_next_start_sweeps_what_a_killed_owner_left():
    pid = killed_owner()
    assert [] != groups_of(pid)
    done = subprocess.run(
        [sys.executable, "-c", NEXT, str(MAPS_IDS)], capture_output=True, text=True, check=False, timeout=60
    )
    assert "0\n" == done.stdout, done.stderr
    assert [] == groups_of(pid)


@needs("memory", "cpu", "pids")
def test_gc_sweeps_what_a_killed_owner_left():
    pid = killed_owner()
    swept = collect_garbage()
    assert any(f"containerkit.{pid}." in name for name in swept.removed)
    assert [] == groups_of(pid)


@needs("pids")
def test_forked_child_starts_containers_of_its_own():
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with container(limits=Limits(pids=20)) as c:
                status = c.run(["true"]).returncode
            status += len(own_groups())
        finally:
            os._exit(status)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@needs("memory")
@pytest.mark.parametrize("clock", ["new", "host"])
def test_what_uses_up_its_memory_ends_nobody_who_starts_a_command_there(clock):
    """A process that joins shares the caller's memory at first, so it counts as the largest one in its group."""
    creep = """
        import os, time
        while True:
            fd = os.open("/dev/shm/all", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
            os.write(fd, bytes(9 << 20))
            at = 9 << 20
            for _ in range(2000):
                try:
                    at += os.pwrite(fd, bytes(4096), at)
                except OSError:
                    break
                time.sleep(0.001)
    """
    program = f"""
        import time
        from containerkit import Container, ContainerError, Limits, Namespaces
        heap = bytearray(b"x") * (200 << 20)
        with Container(limits=Limits(memory="16M"), namespaces=Namespaces(time={clock!r})) as c:
            end = time.monotonic() + {examples(ci=3, nightly=10)}
            hog = None
            while time.monotonic() < end:
                try:
                    if hog is None or hog.poll() is not None:
                        hog = c.popen(["python3", "-SEc", {textwrap.dedent(creep)!r}], stderr=-3)
                    c.run(["true"], timeout=5)
                except ContainerError:
                    continue
            hog.kill()
        print("alive")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, timeout=100, check=False
    )
    assert (0, b"alive\n") == (done.returncode, done.stdout), done.stderr
