"""Pausing containers: processes stop, continue after the resume, and nothing hangs."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from cgroup_workloads import MAPS_IDS, container, cpu_seconds, eventually, groups, own_groups, version

from containerkit import PIPE, ContainerTimeout, Limits, Namespaces, StateError
from containerkit.gc import gc

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root"),
    pytest.mark.usefixtures("nothing_left"),
]


@pytest.fixture(scope="module", autouse=True)
def _known_places():
    """Open the directories of groups, which a process does once, before descriptors are counted."""
    with container(limits=Limits(pids=50)) as c:
        c.pause()


SPIN = ["python3", "-SEc", "while True: pass"]
COUNT = [
    "python3",
    "-SEc",
    "import time\nn = 0\nwhile True:\n    print(n, flush=True)\n    n += 1\n    time.sleep(0.005)",
]
WITH_AND_WITHOUT = pytest.mark.parametrize("limits", [Limits(pids=50), None], ids=["limits", "no-limits"])

needs_unified = pytest.mark.skipif(
    version("freezer") == 1 and not os.path.exists("/sys/fs/cgroup/unified/cgroup.procs"),
    reason="a process that version 1's freezer holds dies only when it is thawed",
)


@pytest.mark.skipif(version("freezer") != 2, reason="the freezer is on version 1 here")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_error_for_a_user_without_a_group_of_its_own_names_the_remedy():
    program = f"""
from containerkit import Container, RootFS, UnsupportedError
with Container(RootFS.host(idmap={MAPS_IDS})) as c:
    try:
        c.pause()
    except UnsupportedError as error:
        print(error.hint)
"""
    user = ["setpriv", "--reuid=1500", "--regid=1500", "--clear-groups"]
    done = subprocess.run([*user, sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "" == done.stderr
    assert "delegated subtree" in done.stdout
    assert "mount -t cgroup" not in done.stdout


def stands_still(pid):
    before = cpu_seconds(pid)
    time.sleep(0.3)
    return cpu_seconds(pid) - before < 0.03


@WITH_AND_WITHOUT
def test_paused_processes_make_no_progress_and_go_on_after(limits):
    with container(limits=limits) as c:
        process = c.popen(SPIN)
        assert eventually(lambda: cpu_seconds(process.pid) > 0.05)
        c.pause()
        assert "paused" == c.state
        assert stands_still(process.pid)
        c.resume()
        assert "running" == c.state
        now = cpu_seconds(process.pid)
        assert eventually(lambda: cpu_seconds(process.pid) > now + 0.05)
        process.close()


@WITH_AND_WITHOUT
def test_paused_output_is_complete_afterwards(limits):
    with container(limits=limits) as c, c.popen(COUNT, stdout=PIPE, text=True) as process:
        assert "0\n" == process.stdout.readline()
        c.pause()
        time.sleep(0.1)
        c.resume()
        lines = [int(process.stdout.readline()) for _ in range(30)]
        assert list(range(1, 31)) == lines
        process.kill()


@WITH_AND_WITHOUT
def test_pause_reaches_what_was_started_since_the_last_one(limits):
    with container(limits=limits) as c:
        first = c.popen(SPIN)
        c.pause()
        c.resume()
        second = c.popen(SPIN)
        assert eventually(lambda: cpu_seconds(second.pid) > 0.05)
        c.pause()
        assert stands_still(first.pid)
        assert stands_still(second.pid)


@WITH_AND_WITHOUT
def test_pause_reaches_children_that_left_their_session(limits):
    script = (
        "import os\nif os.fork() == 0:\n    os.setsid()\n    print(os.getpid(), flush=True)\n    while True: pass\n"
    )
    with container(limits=limits) as c:
        c.run(["python3", "-SEc", script], stdout=subprocess.DEVNULL)
        child = next(pid for pid in c.members() if pid != c.pid)
        assert eventually(lambda: cpu_seconds(child) > 0.05)
        c.pause()
        assert stands_still(child)


@WITH_AND_WITHOUT
def test_stop_while_paused_is_prompt(limits):
    with container(limits=limits) as c:
        process = c.popen(SPIN)
        c.pause()
        began = time.monotonic()
        c.stop()
        assert time.monotonic() - began < 20
        assert -signal.SIGKILL == process.returncode
        assert "stopped" == c.state
    assert [] == own_groups()


@needs_unified
@WITH_AND_WITHOUT
def test_kill_while_paused_ends_the_process(limits):
    with container(limits=limits) as c:
        process = c.popen(SPIN)
        other = c.popen(SPIN)
        c.pause()
        process.kill()
        assert -signal.SIGKILL == process.wait(5)
        assert "paused" == c.state
        c.resume()
        assert other.poll() is None


@needs_unified
def test_timeout_holds_while_paused():
    with container(limits=Limits(pids=50)) as c:
        pauser = threading.Timer(0.2, c.pause)
        pauser.start()
        with pytest.raises(ContainerTimeout):
            c.run(SPIN, timeout=0.6)
        pauser.join()


@WITH_AND_WITHOUT
def test_nothing_is_started_while_paused(limits):
    with container(limits=limits) as c:
        c.pause()
        with pytest.raises(StateError, match="resume"):
            c.run(["true"])
        c.resume()
        assert 0 == c.run(["true"]).returncode


def test_files_can_be_read_while_paused():
    with container(limits=Limits(pids=50)) as c:
        c.pause()
        c.files.write("/tmp/x", b"abc")
        assert b"abc" == c.files.read("/tmp/x")


def test_pause_twice_and_resume_twice():
    with container() as c:
        with pytest.raises(StateError, match="not paused"):
            c.resume()
        c.pause()
        c.pause()
        c.resume()
        with pytest.raises(StateError, match="not paused"):
            c.resume()


def test_pause_before_the_start_and_after_the_stop():
    c = container()
    with pytest.raises(StateError):
        c.pause()
    with c:
        pass
    with pytest.raises(StateError):
        c.pause()


@WITH_AND_WITHOUT
def test_pause_in_a_shared_pid_namespace(limits):
    with container(limits=limits, namespaces=Namespaces(pid="host")) as c:
        if limits is None:
            with pytest.raises(StateError, match="limits"):
                c.pause()
            return
        process = c.popen(SPIN)
        assert process.pid in c.members()
        c.pause()
        assert stands_still(process.pid)


def test_pause_shows_in_the_report_and_in_the_events():
    with container(limits=Limits(pids=50)) as c:
        if c.cgroup.unified is None:
            pytest.skip("freezing is told of by version 2 only")
        c.popen(SPIN)
        with c.cgroup.events(["frozen", "thawed"]) as events:
            c.pause()
            assert c.stats().frozen
            assert "frozen" == events.wait(5).kind
            c.resume()
            assert "thawed" == events.wait(5).kind
        assert not c.stats().frozen


def test_pause_while_others_start_processes():
    with container(limits=Limits(pids=200)) as c:
        refused = []

        def start():
            for _ in range(10):
                try:
                    c.run(["true"])
                except StateError:
                    refused.append(1)
                    time.sleep(0.01)

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            c.pause()
            time.sleep(0.01)
            c.resume()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()


OWNER = """
import os, sys, time
from containerkit import Container, Limits, RootFS
limits = Limits(pids=50) if sys.argv[1] == "limits" else None
c = Container(limits=limits, rootfs=RootFS.host(idmap=sys.argv[2] == "True")).start()
p = c.popen(["python3", "-SEc", "while True: pass"])
c.pause()
print(c.pid, p.pid, flush=True)
time.sleep(60)
"""


@needs_unified
@pytest.mark.parametrize("kind", ["limits", "no-limits"])
def test_paused_container_does_not_outlive_its_owner(kind, is_alive):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, kind, str(MAPS_IDS)], stdout=subprocess.PIPE, text=True
    ) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert 2 == len(pids)
        owner.kill()
        owner.wait()
        assert eventually(lambda: not any(map(is_alive, pids)))
    gc()
    assert [] == [path for path in groups() if f"/containerkit.{owner.pid}." in path]
