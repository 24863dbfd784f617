"""Ready containers, which wait for their command: they behave like any other, and are cleaned up like any other."""

import contextlib
import ctypes
import gc
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import pytest
from waiting import wait_for

from containerkit import (
    Capabilities,
    Container,
    ContainerTimeout,
    ExitError,
    Limits,
    Mount,
    Namespaces,
    RootFS,
    Seccomp,
    SetupError,
    SpecError,
    _native,
    run,
)
from containerkit.container.captured import Captured

pytestmark = pytest.mark.usefixtures("nothing_left")

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root: what it makes belongs to the machine")
ENOUGH_S = 20.0


@pytest.fixture(autouse=True)
def _compiled():
    if _native.interpreter().Run is None:
        pytest.skip("only the compiled module can hold a start")


def prepared(ready=2, **fields):
    template = Container.prepare(ready=ready, **fields)
    assert template.wait_full(ENOUGH_S)
    assert ready == template.ready
    return template


def test_a_command_runs_in_one_that_is_ready():
    with prepared(hostname="ready") as template:
        done = template.run(["sh", "-c", "hostname; echo err >&2; exit 3"], text=True)
        assert (3, "ready\n", "err\n", "exit") == (done.returncode, done.stdout, done.stderr, done.cause)
        assert done.usage.user_us + done.usage.system_us > 0
        assert done.duration_s > 0
        assert template.wait_full(ENOUGH_S)
        assert "A=b\n" == template.run(["env"], env={"A": "b", "PATH": "/bin:/usr/bin"}, text=True).stdout.replace(
            "PATH=/bin:/usr/bin\n", ""
        )
        assert template.wait_full(ENOUGH_S)
        with pytest.raises(ExitError):
            template.run(["false"], check=True)


@pytest.mark.parametrize("words", [["true"], ["false"], ["/nowhere"]])
def test_one_that_was_used_needs_no_collector(words):
    """References to a ready container keep its start alive, and a handler's leftovers are released late."""
    with prepared() as template:
        gc.collect()
        gc.disable()
        try:
            with contextlib.suppress(ExitError, SetupError):
                template.run(words, check=True)
            assert template.wait_full(ENOUGH_S)
            assert [] == [one for one in gc.get_objects() if isinstance(one, Captured) and not one.is_held]
        finally:
            gc.enable()


def test_ready_containers_are_taken_by_the_commands_that_they_fit():
    with prepared(4) as template:
        assert b"in\n" == template.run(["cat"], input=b"in\n").stdout  # it has another stdin
        assert b"/tmp\n" == template.run(["pwd"], cwd="/tmp").stdout
        assert 0 == template.run(["true"], init=False).returncode
        assert 4 == template.ready
        running = threading.Thread(target=template.run, args=(["sleep", "1"],))
        running.start()
        wait_for(lambda: template.ready == 3)  # the next one is created when it has ended, or when few are left
        time.sleep(0.2)
        assert 3 == template.ready
        running.join()
        assert template.wait_full(ENOUGH_S)
        assert 4 == template.ready


def test_each_has_namespaces_and_files_of_its_own():
    kinds = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
    script = "test ! -e /tmp/mine; echo $?; echo x > /tmp/mine; readlink " + " ".join(
        f"/proc/self/ns/{kind}" for kind in kinds
    )
    with prepared(3) as template:
        seen = []
        for _ in range(3):
            missing, *links = template.run(["sh", "-c", script], text=True).stdout.split()
            assert "0" == missing
            seen.append(links)
        own = [os.readlink(f"/proc/self/ns/{kind}") for kind in kinds]
        for ours, *theirs in zip(own, *seen, strict=True):
            assert ours not in theirs
            # The number of a removed namespace may be reused.
            assert all(theirs)


def test_what_holds_a_command_holds_it_here_too():
    with prepared(1) as template:
        status = template.run(["cat", "/proc/self/status"], text=True).stdout
    facts = dict(line.split(":\t", 1) for line in status.splitlines())
    assert "2" == facts["Seccomp"]
    assert "1" == facts["NoNewPrivs"]
    assert {"0000000000000000"} == {facts[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")}
    assert "0000000000000000" == facts["SigBlk"] == facts["SigIgn"]


def test_a_command_finds_no_descriptor_but_its_streams():
    with prepared(1) as template:
        shown = template.run(["sh", "-c", "echo /proc/self/fd/*"], text=True).stdout.split()
        assert {"0", "1", "2"} >= {path.rsplit("/", 1)[1] for path in shown} - {
            "3"
        }  # 3 is the directory that the shell reads
        limits = template.run(["sh", "-c", "ls /proc/$$/fd"], text=True).stdout.split()
    assert ["0", "1", "2"] == limits


def test_one_that_waits_holds_no_descriptor_of_its_owner():
    read, write = os.pipe()
    with prepared(2):
        os.close(write)
        assert b"" == os.read(read, 1)  # otherwise this would block forever
    os.close(read)


def test_a_filter_of_ones_own_holds_too():
    strict = Seccomp.default().deny("sched_yield", "futex", "mkdir", "mkdirat")
    with prepared(1, seccomp=strict) as template:
        assert 0 == template.run(["true"]).returncode
        assert template.wait_full(ENOUGH_S)
        assert 0 != template.run(["mkdir", "/tmp/x"]).returncode


def test_a_missing_program_is_reported_as_always():
    with prepared(1) as template:
        for _ in range(3):
            assert template.wait_full(ENOUGH_S)
            with pytest.raises(SetupError, match="execve no-such-program") as raised:
                template.run(["no-such-program"])
            assert 2 == raised.value.errno
        with pytest.raises(SpecError):
            template.run([])
        assert template.wait_full(ENOUGH_S)
        assert 0 == template.run(["true"]).returncode


def test_a_command_whose_time_is_up_ends():
    with prepared(1) as template:
        with pytest.raises(ContainerTimeout) as raised:
            template.run(["sh", "-c", "echo first; sleep 100"], timeout=0.3)
        assert b"first\n" == raised.value.stdout
        assert template.wait_full(ENOUGH_S)
        assert "output" == template.run(["cat", "/dev/zero"], output_limit_bytes=1000).cause


def alive(mark):
    """Return the number of processes with this argument."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                found += mark in (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
    return found


def test_nothing_of_it_runs_when_run_returns():
    with prepared(1) as template:
        for number in range(20):
            mark = f"{os.getpid()}.{number}"
            template.run(["sh", "-c", f"sleep {mark} & sleep {mark} & exit 0"])
            assert 0 == alive(mark.encode())


def test_a_directory_of_the_host_is_released_before_run_returns(tmp_path):
    with prepared(1, mounts=[Mount.bind(tmp_path, "/data", readonly=False)]) as template:
        for number in range(5):
            assert template.wait_full(ENOUGH_S)
            template.run(["sh", "-c", f"(sleep 0.01; echo late > /data/{number}) & exit 0"])
            assert not (tmp_path / str(number)).exists()
        time.sleep(0.05)
        assert [] == list(tmp_path.iterdir())


def test_a_directory_that_was_put_in_the_place_of_another_is_seen(tmp_path):
    old, new = tmp_path / "data", tmp_path / "new"
    for directory, text in ((old, "old"), (new, "new")):
        directory.mkdir()
        (directory / "file").write_text(text)
    with prepared(2, mounts=[Mount.bind(old, "/data")]) as template:
        assert b"old" == template.run(["cat", "/data/file"]).stdout
        old.rename(tmp_path / "away")
        new.rename(old)
        assert b"new" == template.run(["cat", "/data/file"]).stdout


@pytest.fixture(scope="module", autouse=True)
def _known_places():
    """Open the directories of groups, which a process does once, before descriptors are counted."""
    if os.geteuid() == 0:
        run(["true"], limits=Limits(pids=10))


@ROOT
def test_limits_and_their_report_are_those_of_the_command():
    with prepared(2, limits=Limits(memory="64M", pids=20)) as template:
        done = template.run(["sh", "-c", "x=$(head -c 10000000 /dev/zero | tr '\\0' a); echo ${#x}"], text=True)
        assert "10000000\n" == done.stdout
        assert 10_000_000 < done.usage.memory_peak_bytes < 64 * 2**20
        assert template.wait_full(ENOUGH_S)
        assert "oom" == template.run(["python3", "-c", "x = bytearray(200 << 20)"]).cause


def test_any_number_of_threads_take_from_it():
    results = []
    with prepared(4) as template:

        def work(number):
            results.extend(template.run(["echo", str(number)], text=True).stdout for _ in range(10))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(f"{number}\n" for number in range(6) for _ in range(10)) == sorted(results)


def test_a_forked_child_uses_up_nothing_of_its_parents():
    with prepared(2) as template:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            done = template.run(["echo", "child"])
            template.close()
            os.write(write, done.stdout)
            os._exit(0)
        os.close(write)
        assert b"child\n" == os.read(read, 100)
        os.close(read)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert 2 == template.ready
        assert b"parent\n" == template.run(["echo", "parent"]).stdout


@pytest.mark.parametrize("way", ["killed", "ended"])
def test_they_do_not_outlive_their_owner(way):
    mark = f"ready-{os.getpid()}-{way}"
    program = textwrap.dedent(f"""
        import os, sys, signal
        from containerkit import Container
        template = Container.prepare(ready=3, hostname={mark!r})
        template.wait_full()
        print("there", flush=True)
        sys.stdin.read() if {way!r} == "killed" else None
    """)
    owner = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert b"there\n" == owner.stdout.readline()
    if way == "killed":
        assert 6 <= len(children_of(owner.pid))
        before = children_of(owner.pid)
        owner.send_signal(signal.SIGKILL)
    else:
        before = set()
    owner.communicate()
    deadline = time.monotonic() + 30
    while (left := {pid for pid in before if os.path.exists(f"/proc/{pid}")}) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set() == left


def children_of(pid):
    """Return the pids of all descendants of a process."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found |= {int(entry.name)} | children_of(int(entry.name))
    return found


def test_the_caller_stays_what_it_was():
    libc = ctypes.CDLL(None)
    with prepared(2) as template:
        for _ in range(3):
            template.run(["true"])
        assert template.wait_full(ENOUGH_S)  # during a start it is 0
        assert 1 == libc.prctl(3, 0, 0, 0, 0)  # PR_GET_DUMPABLE
        assert template.wait_full(ENOUGH_S)
        before = len(Path("/proc/self/maps").read_text().splitlines())
        for _ in range(50):
            template.run(["true"])
        assert template.wait_full(ENOUGH_S)
        assert len(Path("/proc/self/maps").read_text().splitlines()) < before + 20


@pytest.mark.parametrize("delay_ms", [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5])
def test_a_signal_whose_handler_raises_leaves_nothing_behind(delay_ms):
    class AlarmError(Exception):
        pass

    due = []

    def ring(number, frame):
        if due:  # another thread may have been woken for a signal that this one handles only now
            raise AlarmError

    former = signal.signal(signal.SIGALRM, ring)
    try:
        with prepared(1) as template:
            for _ in range(5):
                assert template.wait_full(ENOUGH_S)
                try:
                    due.append(True)
                    signal.setitimer(signal.ITIMER_REAL, delay_ms / 1000)
                    template.run(["true"])
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    due.clear()
                except AlarmError:
                    due.clear()
            assert template.wait_full(ENOUGH_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def test_what_cant_be_made_ready_does_not_keep_a_start_from_its_error(tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    with prepared(2, mounts=[Mount.bind(directory, "/data")]) as template:
        directory.rmdir()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with pytest.raises(SpecError, match="the source"):
                template.run(["true"])
            time.sleep(0.1)
        assert ["ready containers"] == [str(each.message).split(":")[0] for each in told]
        directory.mkdir()
        assert template.wait_full(ENOUGH_S)
        assert 0 == template.run(["true"]).returncode


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"namespaces": Namespaces(pid="host")}, "its own pid namespace"),
        ({"no_new_privs": False}, "may gain privileges"),
        ({"oom_score_adj": 500}, "oom_score_adj"),
        ({"time_offsets": {"boottime": 1000}}, "clocks"),
        ({"capabilities": Capabilities.docker(), "oom_score_adj": 1}, "oom_score_adj"),
    ],
)
def test_what_cant_wait_is_refused(fields, reason):
    if "time_offsets" in fields:
        from containerkit import TimeOffsets

        fields = {"time_offsets": TimeOffsets(boottime_s=1000)}
    with pytest.raises(SpecError, match=reason):
        Container.prepare(ready=1, **fields)
    if "namespaces" not in fields:
        with Container.prepare(**fields) as template:
            assert 0 == template.ready


@pytest.mark.parametrize("ready", [-1, 1025, True, 1.5, "2"])
def test_a_number_that_cant_be_is_refused(ready):
    with pytest.raises(SpecError, match="ready"):
        Container.prepare(ready=ready)


@ROOT
def test_networks_come_with_ready_containers_unless_they_are_not_wanted():
    with Container.prepare(networks=2) as template:
        assert template.wait_full(ENOUGH_S)
        assert 2 == template.ready
        own = os.readlink("/proc/self/ns/net")
        assert own != template.run(["readlink", "/proc/self/ns/net"], text=True).stdout.strip()
        with template.container() as c:
            assert own != c.run(["readlink", "/proc/self/ns/net"], text=True).stdout.strip()
    with Container.prepare(networks=2, ready=0) as template:
        assert template.wait_full(ENOUGH_S)
        assert 0 == template.ready


def test_a_directory_as_root_serves_too(tmp_path):
    with Container.prepare(RootFS.tmpfs(size="4M"), ready=1) as template:
        assert template.wait_full(ENOUGH_S)
        with pytest.raises(SetupError):
            template.run(["/nothing"])


def test_it_fills_up_again_once_there_are_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with prepared(2) as template:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
        try:
            for _ in range(2):
                assert 0 == template.run(["true"]).returncode  # it has everything that it needs
            with pytest.raises(OSError, match="Too many open files"):
                template.run(["true"])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert template.wait_full(ENOUGH_S)
        assert 0 == template.run(["true"]).returncode


def test_nobody_waits_for_what_was_closed():
    template = prepared(1)
    stock = template._stock
    template.close()
    assert stock.wait_full()
    assert template.wait_full(1)
