"""Killed keepers and starters, and full disks: records stay correct, and no container runs without one."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from detached_samples import Kept, needs_groups, needs_root, runs
from waiting import wait_for

import containerkit
from containerkit import Limits, containers
from containerkit.detached.container import find
from containerkit.errors import StateError


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


@needs_groups
def test_killed_keeper_ends_the_container_and_the_record_shows_it(kept):
    one = kept.make("sleep", "100", limits=Limits(pids=100))
    pid, groups = one.pid, one.last_run["groups"]
    os.kill(one.keeper, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    assert ("dead", None, None) == (one.status, one.exit_code, one.pid)
    with pytest.raises(StateError, match="its keeper was killed"):
        one.wait()
    one.start()
    assert one.status == "running"
    one.stop(0)
    assert groups != one.last_run["groups"]


def test_killed_keeper_is_told_to_those_who_follow_and_to_those_who_ask_later(kept):
    one = kept.shell("echo said; exec sleep 100")
    wait_for(lambda: list(one.logs()))
    cli = [sys.executable, "-m", "containerkit"]
    following = subprocess.Popen(
        [*cli, "events", "--since", "10m", "-f", f"container={one.id}"], stdout=subprocess.PIPE, text=True
    )
    waiting = subprocess.Popen([*cli, "wait", one.id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    logs = subprocess.Popen([*cli, "logs", "-f", one.id], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with following, waiting, logs:
        try:
            assert logs.stdout.readline() == "said\n"
            assert [following.stdout.readline().split()[2] for _ in range(2)] == ["create", "start"]
            os.kill(one.keeper, signal.SIGKILL)
            assert "(error=its keeper was killed)" in following.stdout.readline()
            out, error = waiting.communicate(timeout=20)
            assert (out, waiting.returncode) == ("", 1)
            assert "its keeper was killed, so its exit status is unknown" in error
            assert logs.communicate(timeout=20) == (
                "",
                f"containerkit: {one.id}: its keeper was killed: its last output may be missing\n",
            )
        finally:
            following.kill()
    assert one.inspect()["State"]["Error"] == "its keeper was killed"
    listed = subprocess.run([*cli, "ps", "-a", "--filter", f"id={one.id}"], capture_output=True, text=True, check=True)
    assert " dead " in listed.stdout
    ends = [event for event in containerkit.events(id=one.id) if event.action == "die"]
    assert [dict(event.attributes) for event in ends] == [{"error": "its keeper was killed"}]  # one, whoever asks
    one.start()
    os.kill(one.keeper, signal.SIGKILL)
    wait_for(lambda: one.status == "dead")
    assert [event.action for event in containerkit.events(id=one.id)][-2:] == ["start", "die"]


def test_keeper_that_is_asked_to_end_ends_the_container(kept):
    one = kept.make("sleep", "100", restart="always")
    os.kill(one.keeper, signal.SIGTERM)
    wait_for(lambda: one.status == "exited")
    assert one.exit_code == -9


def test_keepers_killed_at_random_moments(kept):
    seed = random.Random(1)
    for number in range(25):
        one = kept.shell("sleep 0.0$((RANDOM % 9)); exit 4", restart="always" if number % 2 else "no")
        time.sleep(seed.random() * 0.15)
        keeper, pid = one.keeper, one.pid
        if keeper is not None:
            os.kill(keeper, signal.SIGKILL)
        wait_for(lambda one=one: one.status in ("dead", "exited"))
        if pid is not None:
            wait_for(lambda pid=pid: not runs(pid))
        assert (one.status == "exited") == (one.exit_code is not None)
        assert one.exit_code in (None, 4)
        one.remove()


_STARTER = """
import sys
from containerkit import Container
for number in range(100):
    Container().detach(f"{sys.argv[1]}-{number}", command=sys.argv[2:])
"""


_SLEEP = ("sleep", f"321.{os.getpid()}")  # no other run of the tests has these


def sleepers():
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    if file.read() == "".join(f"{word}\0" for word in _SLEEP).encode() and runs(name):
                        found.append(int(name))
            except OSError:
                continue
    return set(found)


def test_starters_killed_at_random_moments(kept):
    seed = random.Random(2)
    for number in range(12):
        words = [sys.executable, "-c", _STARTER, f"k{os.getpid()}-{number}", *_SLEEP]
        starter = subprocess.Popen(words, start_new_session=True)
        time.sleep(0.1 + seed.random() * 0.3)
        starter.kill()
        starter.wait()
    time.sleep(0.5)  # pending work has ended and is recorded, or soon will be
    wait_for(lambda: {one.pid for one in kept.new() if one.status == "running"} == sleepers())
    assert {one.status for one in kept.new()} <= {"running", "created"}


def test_names_of_killed_starters_are_free_again(kept):
    from containerkit.detached import store

    name = f"free{os.getpid()}"
    os.symlink("0123456789ab", os.path.join(store.records_root(), ".names", name))
    one = kept.make("sleep", "100", name=name)
    assert find(name) == one


def test_former_name_of_a_killed_rename_is_free_again(kept):
    from containerkit.detached import store

    before, after = f"before{os.getpid()}", f"after{os.getpid()}"
    one = kept.make("sleep", "100", name=after)
    os.symlink(one.id, os.path.join(store.records_root(), ".names", before))
    with pytest.raises(StateError, match="no such container"):
        find(before)
    other = kept.make("sleep", "100", name=before)
    assert (find(before), find(after)) == (other, one)
    os.symlink(one.id, os.path.join(store.records_root(), ".names", f"{before}-2"))
    store.sweep()
    assert not os.path.lexists(os.path.join(store.records_root(), ".names", f"{before}-2"))
    assert (find(before), find(after)) == (other, one)


_OWN_RECORDS = """
import os, subprocess
for place in ("/run/containerkit", "/var/lib/containerkit"):
    os.makedirs(place, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
"""


def in_mounts_of_its_own(program, *options, records=False):
    """Run a program as root of the machine, in a private mount namespace; with ``records`` without other records."""
    program = textwrap.dedent(program)
    if records:
        program = f"{_OWN_RECORDS}\n{program}"
    words = ["unshare", "--mount", "--propagation", "private", *options, sys.executable, "-c", program]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)


@needs_root
def test_full_disk_of_the_logs_loses_output_and_is_reported():
    done = in_mounts_of_its_own("""
        import os, subprocess, time
        from containerkit import Container
        os.makedirs("/var/lib/containerkit/containers", exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "none", "/var/lib/containerkit/containers"], check=True)
        script = "seq 200000; sleep 2; echo after; exit 6"
        one = Container().detach(command=["sh", "-c", script], log_max_bytes=64 << 20)
        time.sleep(1.5)
        assert one.status == "running"  # a full disk holds nothing up
        subprocess.run(["mount", "-o", "remount,size=64M", "/var/lib/containerkit/containers"], check=True)
        try:
            assert one.wait(20) == 6
            text = [str(line) for line in one.logs()]
            kept = sum(len(line) for line in text if line.strip().isdecimal())
            lost = sum(int(line.split()[1]) for line in text if "are lost" in line)
            piece = text[-1].removesuffix("after\\n")  # of a line whose rest is lost
            print(kept + len(piece) + lost, text[-1].removeprefix(piece), end="")
        finally:
            one.remove(force=True)
    """)
    assert f"{sum(len(str(number)) + 1 for number in range(1, 200001))} after\n" == done.stdout, done


@needs_root
def test_full_filesystem_of_the_records_does_not_hide_the_end():
    done = in_mounts_of_its_own("""
        import subprocess, time
        from containerkit import Container
        place = "/run/containerkit/containers"
        import os; os.makedirs(place, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=40", "none", place], check=True)
        one = Container().detach("full", command=["sh", "-c", "sleep 1; exit 6"])
        lasting = Container().detach("lasting", command=["sleep", "100"])
        again = Container().detach("again", command=["sh", "-c", "sleep 1; exit 5"], restart="always")
        try:
            with open(f"{place}/filler", "wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == 28, error
        try:
            number = 0
            while True:
                open(f"{place}/{number}", "w").close()
                number += 1
        except OSError as error:
            assert error.errno == 28, error
        print(one.wait(20), one.status)
        try:
            lasting.rename("other")
        except OSError as error:
            print(error.operation, error.errno, lasting.name)
        lasting.stop(0)
        print(lasting.exit_code, lasting.status)
        deadline = time.monotonic() + 20
        while "the restart failed" not in "".join(map(str, again.logs())) and time.monotonic() < deadline:
            time.sleep(0.05)
        print(again.status, "No space left" in "".join(map(str, again.logs())))
        lasting.remove(force=True)
        again.remove(force=True)
        try:  # use again what these have freed
            while True:
                number += 1
                open(f"{place}/{number}", "w").close()
        except OSError as error:
            assert error.errno == 28, error
        try:
            Container().detach(command=["true"])
        except OSError as error:
            print("refused", error.errno)
        os.unlink(f"{place}/filler")
        one.remove(force=True)
    """)
    assert done.stdout == "6 exited\nsymlink 28 lasting\n-15 exited\nexited True\nrefused 28\n", done


def test_containers_are_listed_while_others_come_and_go(kept):
    for _ in range(5):
        one = kept.make("true")
        assert one.id in {each.id for each in containers(all=True)}
        one.remove(force=True)


@needs_root
def test_an_init_killed_at_any_moment_of_the_start_ends_the_container():
    done = in_mounts_of_its_own(
        """
        import os, time
        from containerkit import Container, containers
        own = {1, os.getpid()}
        def inits():
            found = []
            for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
                try:
                    with open(f"/proc/{pid}/comm") as file:
                        if pid not in own and file.read() == "init\\n":
                            found.append(pid)
                except OSError:
                    pass
            return found
        for number in range(12):
            starter = os.fork()
            if starter == 0:
                try:
                    Container().detach(f"n{number}", command=["sleep", "100"])
                finally:
                    os._exit(0)
            while not (found := inits()):
                pass
            time.sleep(number * 0.0003)
            os.kill(found[0], 9)
            os.waitpid(starter, 0)
            deadline = time.monotonic() + 5
            while (left := inits()) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not left, number  # its own end waits until its keeper has reaped the command
            for one in containers(all=True):
                assert one.status == "exited", one
                one.remove()
        print("ended")
        """,
        "--pid", "--fork", "--mount-proc", "--kill-child", records=True,
    )  # fmt: skip
    assert done.stdout == "ended\n", done


@needs_root
def test_a_hanging_health_check_ends_with_the_container_where_process_1_reaps_nothing():
    done = in_mounts_of_its_own(
        """
        import os, time
        from containerkit import Container
        options = {"health_command": "trap '' TERM; sleep 200", "health_interval_s": 0.1}
        one = Container().detach(command=["sleep", "100"], **options)
        def checks():
            return sum(b"sleep\\x00200" in open(f"/proc/{pid}/cmdline", "rb").read() for pid in one.members())
        while not checks():
            time.sleep(0.01)
        one.stop(0)
        print(one.status, os.getpid())
        """,
        "--pid", "--fork", "--mount-proc", "--kill-child", records=True,
    )  # fmt: skip
    assert done.stdout == "exited 1\n", done


@needs_root
def test_sweep_leaves_the_files_of_a_container_whose_record_is_elsewhere():
    done = in_mounts_of_its_own(
        """
        import os, subprocess
        from containerkit import Container
        from containerkit.detached import store
        one = Container().detach(command=["sleep", "100"])
        stopped = Container().detach(command=["true"])
        stopped.wait()
        stopped.stop()
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run/containerkit/containers"], check=True)
        print(store.sweep() == (stopped.entry.state_path,), os.path.isdir(one.entry.state_path))
        subprocess.run(["umount", "/run/containerkit/containers"], check=True)
        one.remove(force=True)
        """,
        records=True,
    )
    assert done.stdout == "True True\n", done


def test_a_killed_removal_leaves_no_container_with_half_of_its_files(kept):
    from containerkit.detached import store

    name = f"half{os.getpid()}"
    one = kept.make("true", name=name)
    one.wait()
    place = os.path.join(one.entry.state_path, "many")
    os.mkdir(place)
    for number in range(3000):
        with open(f"{place}/{number}", "w"):
            pass
    program = f"from containerkit.detached.container import find; find({one.id!r}).remove()"
    removing = subprocess.Popen([sys.executable, "-c", program])
    while os.path.isdir(place) and len(os.listdir(place)) == 3000:
        pass
    removing.kill()
    removing.wait()
    with pytest.raises(StateError, match="no such container"):
        find(name)
    with pytest.raises(StateError, match="its record was removed"):
        one.start()
    kept.make("true", name=name).wait()
    store.sweep()
    assert not os.path.exists(one.entry.state_path)
    assert not [left for left in os.listdir(store.records_root()) if one.id in left]


def test_a_program_that_ignores_the_end_of_children_can_start_one(kept):
    program = """
        import signal
        from containerkit import Container
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print(Container().detach(command=["sh", "-c", "exit 3"]).wait())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60)
    assert done.stdout == "3\n", done


def test_an_interrupted_start_leaves_nothing(kept):
    program = """
        import signal
        from containerkit import Container, containers
        def interrupt(_, frame):
            while frame is not None:
                if frame.f_code.co_filename.endswith("detached/begin.py"):
                    raise KeyboardInterrupt
                frame = frame.f_back
        signal.signal(signal.SIGALRM, interrupt)
        for number in range(25):
            signal.setitimer(signal.ITIMER_REAL, 0.004 + number * 0.002)
            try:
                Container().detach(f"interrupted-{number}", command=["sleep", "100"]).remove(force=True)
            except KeyboardInterrupt:
                print("interrupted")
            signal.setitimer(signal.ITIMER_REAL, 0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=100)
    assert (done.returncode, "interrupted" in done.stdout) == (0, True), done
    assert not kept.new()
