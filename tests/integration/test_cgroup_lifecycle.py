"""Creating, joining, changing, killing and removing groups, and the cleanup after failures and killed owners."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from cgroup_workloads import READY, SLEEP, SPIN, eventually, fds, groups, own_groups, python, version

from containerkit._linux import mountinfo
from containerkit.cgroup import CGroup, Limits, sweep
from containerkit.cgroup.directory import Directory
from containerkit.cgroup.owner import Owner
from containerkit.cgroup.processes import wait_empty
from containerkit.errors import CleanupError, SetupError, SpecError, StateError, UnsupportedError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")]

USUAL = Limits(memory="256M", pids=64, cpus=1.5)


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert own_groups() == []


def test_group_is_there_within_and_gone_after():
    with CGroup.create("job", USUAL) as group:
        assert all(os.path.isdir(path) for path in group.paths.values())
        assert "open" in repr(group)
    assert not any(os.path.exists(path) for path in group.paths.values())
    assert "removed" in repr(group)


def test_group_kills_remaining_processes_at_the_end():
    with CGroup.create() as group, python(group, SLEEP) as process:
        group.__exit__(None, None, None)
        assert process.wait(5) == -signal.SIGKILL


def test_group_holds_no_descriptor_after_its_end():
    CGroup.create("warm", USUAL).remove()  # the bases are opened once and kept
    before = fds()
    for _ in range(20):
        with CGroup.create(limits=USUAL) as group, group.events() as events:
            group.attach_files()
            events.wait(0)
            group.stats()
            group.usage()
    assert fds() == before


def test_removal_and_closing_may_be_repeated():
    group = CGroup.create()
    group.remove()
    group.remove()
    group.close()
    with pytest.raises(StateError, match="removed"):
        group.add(0)


def test_child_of_a_fork_leaves_the_group_to_its_parent():
    with CGroup.create(limits=USUAL) as group:
        child = os.fork()
        if child == 0:
            group.__exit__(None, None, None)
            os._exit(0)
        os.waitpid(child, 0)
        assert os.path.isdir(group.path)
        assert group.stats().pids.limit == 64


def test_group_of_the_same_name_is_refused():
    with CGroup.create("same"), pytest.raises(StateError, match="same"):
        CGroup.create("same")


@pytest.mark.parametrize("name", ["..", "a/b", "", ".", "-x", "a\0"])
def test_bad_name_is_refused_before_anything_is_made(name):
    with pytest.raises(SpecError):
        CGroup.create(name)


@pytest.mark.parametrize("parent", ["relative", "/a/../b", "/.hidden", "/a b"])
def test_bad_parent_is_refused_before_anything_is_made(parent):
    with pytest.raises(SpecError):
        CGroup.create(parent=parent)


def test_refused_value_removes_the_group_again():
    before = fds()
    with pytest.raises(SetupError) as caught:
        CGroup.create("half", Limits(memory="64M", cpus=1, cpu_burst_us=10**9))
    assert "cpu" in caught.value.target
    assert own_groups() == []
    assert fds() == before


def test_error_of_an_unknown_controller_lists_the_available_ones():
    with pytest.raises(UnsupportedError, match="memory") as caught:
        CGroup.create(controllers=["memry"])
    assert caught.value.target == "memry"


def test_error_of_a_missing_controller_names_the_remedy():
    name = next((name for name in ("misc", "rdma", "net_prio", "net_cls") if not version(name)), None)
    if name is None:
        pytest.skip("every controller is served here")
    with pytest.raises(UnsupportedError) as caught:
        CGroup.create(controllers=[name])
    assert any(word in caught.value.hint for word in ("CONFIG_", "mount"))


def test_joining_through_the_files_puts_the_writer_into_every_hierarchy():
    with CGroup.create(limits=USUAL) as group:
        files = group.attach_files()
        child = os.fork()
        if child == 0:
            for file in files:
                os.write(file, b"0")
            signal.pause()
            os._exit(0)
        try:
            assert eventually(lambda: sum(child in part.processes() for part in group.parts) == len(group.parts))
            assert group.processes() == {child}
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_directory_descriptor_is_that_of_version_2():
    with CGroup.create(limits=USUAL) as group:
        if group.unified is None:
            assert group.directory_fd is None
            assert group.attach_files(into=True) == group.attach_files()
        else:
            assert os.path.samestat(os.fstat(group.directory_fd), os.stat(group.paths[""]))
            assert group.attach_files(into=True) == group.attach_files()[:-1]


def test_adding_a_process_that_is_gone_is_an_error():
    process = subprocess.Popen(["true"])
    process.wait()
    with CGroup.create() as group:
        with pytest.raises(SetupError) as caught:
            group.add(process.pid)
        assert caught.value.errno == 3
        with pytest.raises(SpecError):
            group.add(-1)


def test_leaf_is_limited_within_its_group_and_counts_for_itself():
    with (
        CGroup.create(limits=Limits(memory="128M", pids=32)) as group,
        group.create_leaf("one", Limits(memory="24M")) as one,
        group.create_leaf("two") as two,
    ):
        with python(one, READY + "x = bytearray(100 << 20)") as first, python(two, READY) as second:
            assert first.wait(30) == -signal.SIGKILL
            assert second.wait(30) == 0
        assert (one.usage().oom_kills, two.usage().oom_kills) == (1, 0)
        assert one.usage().memory_peak_bytes > two.usage().memory_peak_bytes
        assert group.usage().oom_kills == 1


def test_removal_waits_for_the_last_process():
    group = CGroup.create(limits=USUAL)
    with python(group, READY + "import time; time.sleep(0.4)") as process:
        began = time.monotonic()
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        group.remove(10)
        assert 0.2 < time.monotonic() - began < 20
        reaper.join()


def test_removal_names_the_processes_that_would_not_go():
    with CGroup.create(limits=USUAL) as group, python(group, SLEEP) as process:
        with pytest.raises(CleanupError, match=str(process.pid)):
            group.remove(0.1)
        assert os.path.isdir(group.path)


def test_removal_takes_groups_that_were_made_inside():
    with CGroup.create(limits=USUAL) as group:
        for path in set(group.paths.values()):
            os.makedirs(f"{path}/a/b")
            os.makedirs(f"{path}/c")
        inner = Path(group.path) / "a/b/cgroup.procs"
        process = subprocess.Popen(["sleep", "60"])
        inner.write_text(str(process.pid))
        assert process.pid in group.processes()
    assert process.wait(5) == -signal.SIGKILL


def test_kill_leaves_no_fork_bomb_running():
    bomb = READY + "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
    with CGroup.create(limits=Limits(pids=32)) as group, python(group, bomb) as process:
        assert eventually(lambda: len(group.processes()) == 32)
        group.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert group.wait_empty(10)


def test_kill_without_the_kernels_help_leaves_none_either(monkeypatch):
    """As on kernels before 5.14: freeze, signal each process through its pidfd, thaw."""
    write = Directory.write

    def refuse(self, file, value):
        if file == "cgroup.kill":
            raise OSError(2, "No such file or directory")
        write(self, file, value)

    monkeypatch.setattr(Directory, "write", refuse)
    bomb = READY + "import os\nwhile True:\n try: os.fork()\n except OSError: pass\n"
    with CGroup.create(limits=Limits(pids=32)) as group, python(group, bomb) as process:
        assert eventually(lambda: len(group.processes()) == 32)
        group.kill()
        assert process.wait(10) == -signal.SIGKILL
        assert group.wait_empty(10)


def test_signal_reaches_every_process():
    script = (
        READY
        + "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\nprint('set', flush=True)\nsignal.pause()"
    )
    with CGroup.create() as group, python(group, script) as one, python(group, script) as two:
        assert (one.stdout.readline(), two.stdout.readline()) == ("set\n", "set\n")
        group.kill(signal.SIGTERM)
        assert (one.wait(5), two.wait(5)) == (7, 7)


def test_update_holds_all_or_nothing():
    with CGroup.create(limits=Limits(memory="64M", cpus=1)) as group:
        group.update(Limits(memory="128M"))
        assert group.stats().memory.limit_bytes == 128 << 20
        with pytest.raises(SetupError):
            group.update(Limits(memory="32M", cpu_burst_us=10**9))
        assert group.stats().memory.limit_bytes == 128 << 20
        assert group.limits == Limits(memory="128M", cpus=1)
        group.update(Limits(memory="max"))
        assert group.stats().memory.limit_bytes is None


def test_update_takes_hold_of_a_running_process():
    with CGroup.create(limits=Limits(cpus=1)) as group, python(group, SPIN):
        group.update(Limits(cpus=0.2))
        time.sleep(0.2)
        before = group.usage().cpu_us if group.unified else None
        time.sleep(1)
        if before is not None:
            assert 150_000 < group.usage().cpu_us - before < 260_000


def test_update_of_a_controller_that_was_not_joined_is_refused():
    if version("pids") == 2:
        pytest.skip("on version 2 the group is in the pids controller anyway")
    with CGroup.create(limits=Limits(cpus=1)) as group, pytest.raises(UnsupportedError, match="pids"):
        group.update(Limits(pids=5))


def test_current_group_is_the_one_a_process_is_in():
    with CGroup.create(limits=USUAL) as group, python(group, SLEEP) as process:
        there = CGroup.of(process.pid)
        try:
            assert group.paths.items() <= there.paths.items()
        finally:
            there.close()
    here = CGroup.current()
    assert os.getpid() in here.parts[0].processes()
    here.close()
    with pytest.raises(StateError):
        CGroup.of(process.pid)


def test_parent_is_made_and_its_limits_hold_for_the_group():
    parent = f"/containerkit.{os.getpid()}.0.0.parent/inner"
    try:
        with CGroup.create("x", Limits(memory="64M", cpuset_cpus="0"), parent=parent, owned=False) as group:
            assert group.name == "x"
            assert all(path.endswith(f"{parent}/x") for path in group.paths.values())
        assert os.path.isdir(group.path)  # not owned, so it stays
        again = CGroup.open(f"{parent}/x")
        assert again.paths.items() >= group.paths.items()
        again.remove()
    finally:
        for place in (parent, parent.rpartition("/")[0]):
            CGroup.open(place).remove()
    with pytest.raises(StateError):
        CGroup.open(parent)
    with pytest.raises(SpecError):
        CGroup.open("/a/../b")


def test_parent_that_was_removed_is_made_again():
    parent = f"/containerkit.{os.getpid()}.0.0.again"
    for _ in range(2):
        with CGroup.create(limits=Limits(memory="64M"), parent=parent):
            pass
        CGroup.open(parent).remove()


MANY = """
import os, sys
from containerkit.cgroup import CGroup, Limits
limits = Limits(memory="256M", pids=64, cpus=1.5)
CGroup.create("warm", limits).remove()
before = os.listdir("/proc/self/fd")
for _ in range(500):
    group = CGroup.create(limits=limits)
    child = os.fork()
    if child == 0:
        for file in group.attach_files():
            os.write(file, b"0")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    group.remove()
assert os.listdir("/proc/self/fd") == before
left = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
assert not [name for name in left if name.startswith(f"containerkit.{os.getpid()}.")]
"""


def test_five_hundred_groups_leave_nothing_behind():
    """By a small process, which is forked quickly."""
    assert 0 == subprocess.run([sys.executable, "-c", MANY], timeout=200).returncode


def test_threads_can_make_groups_at_the_same_time():
    errors = []

    def work():
        try:
            for _ in range(20):
                with CGroup.create(limits=USUAL):
                    pass
        except (OSError, StateError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


OWNER = textwrap.dedent(
    """
    import subprocess, sys, time
    from containerkit.cgroup import CGroup, Limits
    group = CGroup.create("orphan", Limits(memory="64M", pids=8, cpus=1))
    leaf = group.create_leaf("leaf")
    child = subprocess.Popen(["sleep", "60"])
    leaf.add(child.pid)
    print(child.pid, flush=True)
    time.sleep(60)
    """
)


def _orphan():
    """Start an owner of a group and kill it. Return its pid and that of the process that it left behind."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        child = int(owner.stdout.readline())
        assert sum(f"containerkit.{owner.pid}." in path for path in groups()) >= 1
        owner.kill()
    return owner.pid, child


@pytest.mark.parametrize("everywhere", [True, False])
def test_groups_of_a_killed_owner_are_swept_with_their_processes(everywhere):
    owner, child = _orphan()
    with CGroup.create("mine") as mine:
        removed = sweep(everywhere=everywhere)
        assert os.path.isdir(mine.path)
    assert len([path for path in removed if f"containerkit.{owner}." in path]) >= 1
    assert not [path for path in groups() if f"containerkit.{owner}." in path]
    assert eventually(
        lambda: not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()
    )
    assert not [path for path in sweep(everywhere=everywhere) if f"containerkit.{owner}." in path]


class _Vanishing(Directory):
    """A group that another process removes after this one has opened a file of it."""

    def open_file(self, *args):
        opened = super().open_file(*args)
        os.rmdir(self.path)
        return opened


def test_group_that_another_sweep_removes_counts_as_empty():
    """The kernel answers ENODEV then. It would fail the start of a container, which sweeps first."""
    unified = next((mount.mount_point for mount in mountinfo.read() if mount.filesystem == "cgroup2"), None)
    if unified is None:
        pytest.skip("cgroup2 is mounted nowhere")
    path = f"{unified}/containerkit-vanishing-{os.getpid()}"
    os.mkdir(path)
    part = _Vanishing(os.open(path, os.O_RDONLY | os.O_DIRECTORY), path, 2)
    try:
        assert wait_empty((part,), 5)
        assert not os.path.exists(path)
    finally:
        part.close()


def test_sweep_of_a_user_who_may_not_remove_them_leaves_groups_alone():
    owner, _ = _orphan()
    program = "import os; os.setuid(65534); from containerkit.cgroup import sweep; print(sweep())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (0, "()\n", "") == (done.returncode, done.stdout, done.stderr)
    assert len([path for path in sweep() if f"containerkit.{owner}." in path]) >= 1


def test_sweep_leaves_groups_of_another_pid_namespace_alone():
    me = Owner.current()
    foreign = me._replace(pid=1, start=1, namespace=1).label("foreign")
    name = foreign.replace("containerkit.1.", f"containerkit.{os.getpid()}.")
    with CGroup.create(name, parent="/", owned=False) as group:
        sweep()
        assert os.path.isdir(group.path)
        CGroup.open(f"/{name}").remove()


def test_owner_is_gone_when_its_pid_was_reused():
    me = Owner.current()
    assert not me.is_gone()
    assert me._replace(start=me.start - 1).is_gone()
    assert not me._replace(namespace=me.namespace + 1, start=0).is_gone()


def test_owner_whose_first_thread_has_ended_is_not_gone():
    script = "import threading, time, ctypes\nthreading.Thread(target=lambda: (print('up', flush=True), time.sleep(60))).start()\nctypes.CDLL(None).pthread_exit(None)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        stat = Path(f"/proc/{process.pid}/stat")
        assert eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
        start = int(stat.read_text().rpartition(")")[2].split()[19])
        owner = Owner.current()._replace(pid=process.pid, start=start)
        assert not owner.is_gone()
        process.kill()
        process.wait()
        assert owner.is_gone()


def test_sweep_is_still_a_function_after_garbage_was_collected():
    script = """
from containerkit import Limits, run
from containerkit.gc import gc
gc()
print(run(["true"], limits=Limits(pids=9)).returncode)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "0\n", done.stderr
