"""Facts about processes: the parsers with generated text, the readers with this process and its children."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit._linux import procfs

NOBODY = 2**22 + 1  # above any pid


@pytest.fixture
def sleeper():
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; print(); sys.stdin.read()"], stdin=-1, stdout=-1
    ) as child:
        child.stdout.readline()
        yield child
        child.kill()


@given(st.binary(max_size=15), st.sampled_from("RSDTtZXI"), st.lists(st.integers(0, 2**63), min_size=19, max_size=49))
def test_procfs_parse_stat_takes_any_name(comm, state, numbers):
    line = b"42 (%s) %s %s\n" % (comm, state.encode(), b" ".join(b"%d" % number for number in numbers))
    stat = procfs.parse_stat(line)
    assert (42, comm, state, *numbers[:4]) == (
        stat.pid,
        stat.comm,
        stat.state,
        stat.ppid,
        stat.pgrp,
        stat.session,
        stat.tty,
    )
    assert (numbers[16], numbers[18]) == (stat.threads, stat.start_ticks)


@pytest.mark.parametrize("comm", [b") R 1 2 3", b"a b", b"(", b"))((", b"x\ny", b""])
def test_procfs_parse_stat_is_not_fooled_by_parentheses(comm):
    stat = procfs.parse_stat(b"7 (" + comm + b") S 1" + b" 5" * 48 + b"\n")
    assert (comm, "S", 1, 5) == (stat.comm, stat.state, stat.ppid, stat.start_ticks)


@pytest.mark.parametrize("content", [b"", b"7 (x) S 1 2", b"nonsense"])
def test_procfs_parse_stat_refuses_invalid_text(content):
    with pytest.raises(ValueError, match="stat"):
        procfs.parse_stat(content)


def test_procfs_parse_status_keeps_colons_of_values():
    assert {"Name": "a:b", "Groups": ""} == procfs.parse_status(b"Name:\ta:b\nGroups:\t\n")


def test_procfs_stat_agrees_with_os():
    stat = procfs.stat()
    assert (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0)) == (stat.pid, stat.ppid, stat.pgrp, stat.session)
    times = os.times()
    ticks = os.sysconf("SC_CLK_TCK")
    assert abs(stat.user_ticks / ticks - times.user) < 0.2
    assert abs(stat.system_ticks / ticks - times.system) < 0.2


def test_procfs_start_time_lies_between_boot_and_now(sleeper):
    now = time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK")
    assert 0 < procfs.start_time() <= procfs.start_time(sleeper.pid) <= now


def test_procfs_is_same_knows_pid_and_start(sleeper):
    start = procfs.start_time(sleeper.pid)
    assert procfs.is_same(sleeper.pid, start)
    assert not procfs.is_same(sleeper.pid, start - 1)
    assert not procfs.is_same(NOBODY, start)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # now a zombie
    assert "Z" == procfs.stat(sleeper.pid).state
    assert not procfs.is_same(sleeper.pid, start)


def test_procfs_status_has_the_fields():
    assert str(os.getpid()) == procfs.status()["Pid"]
    assert procfs.status()["NoNewPrivs"] in "01"


def test_procfs_status_of_an_odd_name_keeps_its_lines():
    code = "open('/proc/self/comm', 'wb').write(b'a\\nUid:\\t9'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        status, stat = procfs.status(child.pid), procfs.stat(child.pid)
        child.kill()
    assert b"a\nUid:\t9" == stat.comm
    assert os.getuid() == int(status["Uid"].split()[0])


def test_procfs_inner_pids_end_with_the_own():
    assert os.getpid() == procfs.inner_pids()[-1]


def test_procfs_cmdline_is_the_argument_vector(sleeper):
    assert sleeper.args == list(procfs.cmdline(sleeper.pid))
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert () == procfs.cmdline(sleeper.pid)


def test_procfs_cmdline_keeps_empty_arguments():
    command = [sys.executable, "-c", "print(flush=True); input()", "", "a b", ""]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        seen = procfs.cmdline(child.pid)
        child.kill()
    assert command == list(seen)


def test_procfs_pids_and_threads_hold_the_own():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert os.getpid() in procfs.pids()
        assert {os.getpid(), thread.native_id} <= set(procfs.threads())
    finally:
        stop.set()
        thread.join()


def test_procfs_children_come_from_every_thread(sleeper):
    born, stop = [], threading.Event()

    def parent():
        with subprocess.Popen(["sleep", "60"]) as child:
            born.append(child.pid)
            stop.wait()
            child.kill()

    thread = threading.Thread(target=parent)
    thread.start()
    while not born:
        time.sleep(0.01)
    try:
        assert {sleeper.pid, *born} <= set(procfs.children())
        assert set(procfs.children()) == set(procfs._children_by_parent("self", "/proc"))
    finally:
        stop.set()
        thread.join()


def test_procfs_descendants_reach_grandchildren():
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=-1, start_new_session=True) as child:
        grandchild = int(child.stdout.readline())
        found = procfs.descendants()
        os.killpg(child.pid, signal.SIGKILL)
    assert found.index(child.pid) < found.index(grandchild)


def test_procfs_namespaces_agree_with_stat(sleeper):
    for pid in ("self", "thread-self", sleeper.pid):
        expected = {name: os.stat(f"/proc/{pid}/ns/{name}").st_ino for name in os.listdir(f"/proc/{pid}/ns")}
        assert expected == procfs.namespaces(pid)
        assert {"mnt", "pid", "pid_for_children", "net", "ipc", "uts", "user", "cgroup"} <= set(expected)


def test_procfs_id_map_gives_ranges():
    with open("/proc/self/uid_map") as file:
        expected = tuple(tuple(int(number) for number in line.split()) for line in file)
    assert expected == procfs.id_map()
    assert procfs.id_map(name="gid_map")[0][2] > 0


def test_procfs_pid_of_pidfd(sleeper):
    pidfd = os.pidfd_open(sleeper.pid)
    try:
        assert sleeper.pid == procfs.pid_of_pidfd(pidfd)
        sleeper.kill()
        sleeper.wait()
        with pytest.raises(ProcessLookupError) as caught:
            procfs.pid_of_pidfd(pidfd)
        assert f"pidfd {pidfd}" == caught.value.filename
    finally:
        os.close(pidfd)


def test_procfs_pid_of_pidfd_refuses_other_descriptors():
    with open("/dev/null") as file, pytest.raises(ValueError, match="not a pidfd"):
        procfs.pid_of_pidfd(file.fileno())


@pytest.mark.parametrize(
    "reader",
    [
        procfs.stat,
        procfs.status,
        procfs.start_time,
        procfs.inner_pids,
        procfs.cmdline,
        procfs.threads,
        procfs.children,
        procfs.descendants,
        procfs.namespaces,
        procfs.id_map,
    ],
)
def test_procfs_readers_name_a_missing_pid(reader):
    with pytest.raises(ProcessLookupError) as caught:
        reader(NOBODY)
    assert (errno.ESRCH, f"pid {NOBODY}") == (caught.value.errno, caught.value.filename)
