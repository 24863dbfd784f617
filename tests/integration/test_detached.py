"""Detached containers: they outlive their caller, and their records are correct."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from detached_samples import Kept, needs_groups, needs_root, runs
from waiting import wait_for

import containerkit
from containerkit import Container, Limits, Mount, RootFS
from containerkit.detached import store
from containerkit.detached.container import find
from containerkit.detached.owned import owned
from containerkit.detached.stdin import end_input, stdin_of
from containerkit.errors import ContainerTimeout, ProgramNotFoundError, SpecError, StateError

LIMITS = Limits(pids=100)


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


@pytest.fixture
def name():
    return f"t{os.getpid()}-{time.monotonic_ns()}"


# --- Life


def test_container_outlives_the_process_that_started_it(kept, name):
    program = f"from containerkit import Container; Container().detach({name!r}, command=['sleep', '100'])"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    one = find(name)
    assert ("running", name) == (one.status, one.name)
    assert runs(one.pid)
    assert one in containerkit.containers()


def test_keeper_is_small_and_no_child_of_the_caller(kept):
    one = kept.make("sleep", "100")
    with open(f"/proc/{one.keeper}/smaps_rollup", encoding="ascii") as file:
        pss = next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    assert pss < 1024
    with open(f"/proc/{one.keeper}/stat", encoding="ascii") as file:
        assert str(os.getpid()) != file.read().rpartition(")")[2].split()[1]


def test_keeper_has_no_stream_of_the_caller(kept, name):
    program = f"from containerkit import Container; Container().detach({name!r}, command=['sleep', '100'])"
    # If the keeper had the pipe open, this read would not end.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=True)
    assert (b"", b"") == (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$; sleep 9", -15)]
)
def test_exit_status_is_on_record(kept, script, code):
    one = kept.shell(script)
    assert code == one.wait(10)
    wait_for(lambda: one.status == "exited")
    assert code == one.exit_code
    assert one.finished_at.endswith("Z")


def test_wait_gives_up_in_time(kept):
    one = kept.make("sleep", "100")
    with pytest.raises(ContainerTimeout):
        one.wait(0.05)
    assert one.status == "running"


def test_stop_asks_and_then_kills(kept):
    polite = kept.shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    wait_for(lambda: list(polite.logs()))
    polite.stop(10)
    assert ("exited", 7) == (polite.status, polite.exit_code)
    deaf = kept.shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    wait_for(lambda: list(deaf.logs()))
    deaf.stop(0.1)
    assert ("exited", -9) == (deaf.status, deaf.exit_code)
    deaf.stop()  # harmless


def test_stop_sends_the_signal_of_the_container(kept):
    one = kept.shell("trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done", stop_signal="USR1")
    wait_for(lambda: list(one.logs()))
    one.stop(10)
    assert one.exit_code == 5


def test_all_of_it_ends_with_the_command(kept):
    one = kept.shell("sleep 1000 & echo $!; sleep 0.2")
    inside = one.members()
    assert one.wait(10) == 0
    wait_for(lambda: not any(map(runs, inside)))


def test_standard_input_is_ended_on_demand(kept):
    one = kept.shell("wc -c", stdin_open=True)
    fd = stdin_of(one)
    os.write(fd, b"abc")
    os.close(fd)
    end_input(one)
    assert one.wait(10) == 0
    assert str(next(one.logs())) == "3\n"
    with pytest.raises(StateError, match="does not run"):
        end_input(one)
    other = kept.make("sleep", "100")
    with pytest.raises(StateError, match="no pipe as standard input"):
        end_input(other)


def test_start_after_the_end_is_another_run(kept):
    one = kept.shell("echo run")
    one.wait(10)
    one.start()
    one.wait(10)
    assert ["run\n", "run\n"] == [str(line) for line in one.logs()]


def test_start_while_it_runs_is_refused(kept):
    one = kept.make("sleep", "100")
    with pytest.raises(StateError, match="it is running"):
        one.start()


def test_kill_is_at_once_and_other_signals_are_handed_on(kept):
    one = kept.shell("trap 'echo usr' USR1; echo ready; while :; do sleep 0.01; done")
    wait_for(lambda: list(one.logs()))
    one.kill("USR1")
    wait_for(lambda: [str(line) for line in one.logs()] == ["ready\n", "usr\n"])
    one.kill()
    assert ("exited", -9) == (one.status, one.exit_code)
    with pytest.raises(StateError, match="does not run"):
        one.kill()


@needs_groups
def test_pause_holds_the_processes_and_not_the_init(kept):
    one = kept.shell("while :; do echo x; sleep 0.01; done", limits=LIMITS)
    one.pause()
    assert one.status == "paused"

    def is_still():
        before = len(list(one.logs()))
        time.sleep(0.1)
        return before == len(list(one.logs()))

    wait_for(is_still)  # on a busy machine the keeper reads late what was written before
    count = len(list(one.logs()))
    one.resume()
    wait_for(lambda: len(list(one.logs())) > count)
    one.pause()
    one.stop(5)
    assert one.status == "exited"


@needs_groups
def test_paused_container_ends_with_its_keeper(kept):
    one = kept.make("sleep", "100", limits=LIMITS)
    pid = one.pid
    one.pause()
    os.kill(one.keeper, signal.SIGKILL)
    wait_for(lambda: not runs(pid))
    assert one.status == "dead"


def test_rename_frees_the_former_name(kept, name):
    one = kept.make("sleep", "100", name=name)
    with pytest.raises(StateError, match="belongs to container"):
        kept.make("true", name=name)
    one.rename(f"{name}-2")
    assert find(f"{name}-2") == one
    other = kept.make("sleep", "100", name=name)
    assert find(name) == other


@needs_groups
def test_update_holds_now_and_at_later_starts(kept):
    one = kept.make("sleep", "100", limits=LIMITS)
    one.update(Limits(pids=55))
    assert one.stats().pids.limit == 55
    one.restart(0)
    assert one.stats().pids.limit == 55


@needs_groups
def test_removal_leaves_nothing(kept):
    one = kept.make("sleep", "100", limits=LIMITS)
    run = one.last_run
    with pytest.raises(StateError, match="stop it first"):
        one.remove()
    one.remove(force=True)
    left = [one.entry.path, one.entry.state_path, *run["groups"], *run["leaves"]]
    assert [] == [path for path in left if os.path.exists(path)]
    with pytest.raises(StateError, match="no such container"):
        find(one.id)


def test_remove_option_removes_the_record_at_the_end(kept):
    one = kept.shell("sleep 0.1", remove=True)
    wait_for(lambda: not os.path.exists(one.entry.path) and not os.path.exists(one.entry.state_path))


@needs_groups
def test_control_groups_go_with_the_end(kept):
    one = kept.make("sleep", "0.1", limits=LIMITS)
    groups = one.last_run["groups"]
    assert all(map(os.path.exists, groups))
    one.wait(10)
    wait_for(lambda: not any(map(os.path.exists, groups)))


@needs_groups
def test_memory_limit_that_killed_is_on_record(kept):
    one = kept.make("python3", "-c", "x = bytearray(300 << 20); print(len(x))", limits=Limits(memory="32M"))
    assert one.wait(30) == -9
    wait_for(lambda: one.status == "exited")
    assert one.oom_killed


# --- Starts that fail


def test_missing_program_is_reported_and_leaves_nothing(kept):
    with pytest.raises(ProgramNotFoundError):
        kept.make("nosuch")
    assert [] == kept.new()


@pytest.mark.parametrize(
    "options",
    [
        {"restart": "sometimes"},
        {"restart": "no:3"},
        {"restart": "always", "remove": True},
        {"name": "a/b"},
        {"labels": {"": "x"}},
        {"stop_signal": "NOSUCH"},
        {"stop_timeout_s": -1},
        {"log_max_bytes": 10},
        {"tty": "yes"},
        {"nosuch": 1},
        {"command": []},
        {"command": ["a\0b"]},
    ],
)
def test_values_that_cannot_be_are_refused_before_anything_is_made(kept, options):
    with pytest.raises(SpecError):
        Container().detach(options.pop("name", ""), **{"command": ["true"], **options})
    assert [] == kept.new()


def test_root_without_a_command_needs_one():
    with pytest.raises(SpecError, match="has no command"):
        Container().detach()


def test_network_of_the_host_is_shared(kept):
    one = Container(network="host").detach(command=["sleep", "100"])
    assert os.readlink(f"/proc/{one.pid}/ns/net") == os.readlink("/proc/self/ns/net")


def test_container_is_used_up(kept):
    container = Container()
    container.detach(command=["sleep", "100"])
    with pytest.raises(StateError, match="started before"):
        container.start()


def test_start_from_a_process_with_threads(kept):
    ready = threading.Event()
    thread = threading.Thread(target=ready.wait)
    thread.start()
    try:
        one = kept.make("sleep", "100")
        assert one.status == "running"
        with pytest.raises(ProgramNotFoundError):
            kept.make("nosuch")
    finally:
        ready.set()
        thread.join()


# --- Restart policies


def test_policy_starts_it_again_until_it_is_stopped_by_hand(kept):
    one = kept.shell("echo run; sleep 0.05", restart="always")
    wait_for(lambda: one.restarts >= 2 and len(list(one.logs())) >= 3, 30)
    one.stop(0)
    count = one.restarts
    time.sleep(0.5)
    assert ("exited", count) == (one.status, one.restarts)


def test_on_failure_counts(kept):
    one = kept.shell("exit 1", restart="on-failure:2")
    wait_for(lambda: one.restarts == 2 and one.status == "exited", 30)
    assert one.exit_code == 1
    good = kept.shell("exit 0", restart="on-failure")
    good.wait(10)
    wait_for(lambda: good.status == "exited")
    assert good.restarts == 0


def test_policy_can_be_changed_while_it_runs(kept):
    one = kept.shell("sleep 0.3", restart="no")
    one.update(restart="always")
    wait_for(lambda: one.restarts >= 1, 30)
    one.update(restart="no")
    wait_for(lambda: one.status == "exited", 30)


def test_killed_by_hand_is_not_started_again(kept):
    one = kept.make("sleep", "100", restart="always")
    one.kill()
    time.sleep(0.3)
    assert one.status == "exited"


# --- Views


@needs_groups
def test_attach_gives_a_container_as_any_other(kept, name):
    one = kept.make("sleep", "100", name=name, limits=LIMITS, env={"A": "b"})
    with Container.attach(name) as view:
        assert view.run(["cat", "/proc/2/comm"], text=True).stdout == "sleep\n"
        view.files.write("/tmp/x", "y")
        assert view.files.read_text("/tmp/x") == "y"
        assert view.state == "running"
        assert one.pid in view.members()
        view.pause()
        assert view.state == "paused"
        view.resume()
        view.update(Limits(pids=60))
    assert (60, "running") == (one.stats().pids.limit, one.status)


def test_commands_in_a_view_are_confined_as_the_container(kept):
    from containerkit import Capabilities

    strict = Container(capabilities=Capabilities.none().add("net_raw")).detach(command=["sleep", "100"])
    with strict.attach() as view:
        status = view.run(["cat", "/proc/self/status"], text=True).stdout
    assert "CapEff:\t0000000000002000" in status


def test_attach_to_what_does_not_run_is_refused(kept, name):
    one = kept.make("true", name=name)
    one.wait(10)
    with pytest.raises(StateError, match=rf"containerkit start {one.id}"):
        Container.attach(name)


# --- Roots that keep what is written


@needs_root
def test_writable_layer_lasts_from_start_to_start(kept, tmp_path):
    lower = tmp_path / "lower"
    lower.mkdir()
    mounts = [
        Mount.bind(path, path, readonly=True) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.isdir(path)
    ]
    script = "echo x >> /made; cat /made"
    root = RootFS.overlay(lower)
    one = Container(root, mounts=mounts).detach(command=["/bin/sh", "-c", script])
    one.wait(10)
    one.start()
    one.wait(10)
    assert ["x\n", "x\n", "x\n"] == [str(line) for line in one.logs()]
    assert ("/made", "added") in {(change.path, change.kind) for change in one.changes()}


@needs_root
def test_files_of_a_stopped_container(kept, tmp_path):
    lower = tmp_path / "lower"
    lower.mkdir()
    mounts = [
        Mount.bind(path, path, readonly=True) for path in ("/usr", "/bin", "/lib", "/lib64") if os.path.isdir(path)
    ]
    one = Container(RootFS.overlay(lower), mounts=mounts, network="internet").detach(
        command=["/bin/sh", "-c", "cat /given || echo first > /made"]
    )
    one.wait(10)
    wait_for(lambda: not one.entry.is_kept())
    with one.opened() as container:
        assert container.files.read_text("/made") == "first\n"
        container.files.write("/given", "given\n")
        with pytest.raises(StateError, match="is being started"):
            one.entry.lock()
    one.start()
    assert one.wait(10) == 0
    assert str(list(one.logs())[-1]) == "given\n"
    in_memory = kept.make("true")
    in_memory.wait(10)
    wait_for(lambda: not in_memory.entry.is_kept())
    with pytest.raises(StateError, match="its root was in memory"), in_memory.opened():
        pass


def test_root_without_a_layer_has_no_changes(kept):
    one = kept.make("sleep", "100")
    with pytest.raises(StateError, match="no writable layer on disk"):
        list(one.changes())


# --- Records


def test_containers_of_owners_are_found_with_their_owner(kept):
    one = kept.make("sleep", "100")
    with Container() as mine, mine.popen(["sleep", "100.25"]) as process:
        wait_for(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sleep"))  # after its exec
        found = {each.pid: each for each in owned({one.last_run["init"]})}
        assert one.last_run["init"] not in found
        each = found[mine.pid]
        assert (each.owner, each.argv) == (os.getpid(), ("sleep", "100.25"))
        assert abs(time.time() - each.started_at) < 60
        process.kill()
    assert mine.id not in {each.id for each in owned()}


def test_record_of_another_version_is_refused(kept):
    one = kept.make("sleep", "100")
    config = one.entry.config
    try:
        with open(one.entry.file("config.json"), "w", encoding="ascii") as file:
            file.write('{"version": 99}')
        with pytest.raises(StateError, match="another version"):
            one.status  # noqa: B018 - it raises
            one.entry.config  # noqa: B018 - it raises
    finally:
        one.entry.write("config.json", config)


def test_sweep_removes_what_a_reboot_leaves(kept):
    left = os.path.join(store.state_root(), "feedfeedfeed")
    os.makedirs(os.path.join(left, "upper"))
    one = kept.make("true")
    one.wait(10)
    assert left in store.sweep()
    assert not os.path.exists(left)
    assert os.path.isdir(one.entry.state_path)


def test_descriptions_outlive_the_process():
    spec = Container(limits=LIMITS, mounts=[Mount.tmpfs("/t")]).spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_importing_the_package_loads_none_of_it():
    program = "import sys, containerkit; containerkit.run; containerkit.Container; print([m for m in sys.modules if 'detached' in m])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
