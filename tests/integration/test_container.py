"""The life of a container: start, state, stop, and calls in the wrong state."""

import contextlib
import errno
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_for

from containerkit import (
    PIPE,
    Container,
    ContainerTimeout,
    IdMapping,
    Mount,
    Namespaces,
    RootFS,
    SetupError,
    SpecError,
    StateError,
    run,
)
from containerkit.plan.program import Program

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")


def test_state_from_created_to_stopped():
    container = Container()
    assert "created" == container.state
    container.start()
    assert "running" == container.state
    container.stop()
    assert "stopped" == container.state


def test_repr_shows_name_state_and_pid():
    container = Container(id="web-1")
    assert "<Container web-1 created>" == repr(container)
    with container:
        assert f"<Container web-1 running, pid {container.pid}>" == repr(container)
    assert "<Container web-1 stopped>" == repr(container)


def test_with_returns_the_container_and_stops_it():
    with Container() as container:
        pid = container.pid
        assert os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(f"/proc/{pid}")


def test_with_stops_on_an_exception_too():
    container = Container()
    with pytest.raises(ZeroDivisionError), container:
        1 / 0  # noqa: B018 - raised on purpose
    assert "stopped" == container.state


def test_stop_may_be_repeated_and_come_before_the_start():
    container = Container()
    container.stop()
    container.stop()
    with pytest.raises(StateError):
        container.start()


def test_a_used_container_is_not_used_again():
    container = Container()
    with container, pytest.raises(StateError, match="make another"):
        container.start()
    with pytest.raises(StateError, match="make another"):
        container.start()


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.run(["true"]),
        lambda c: c.popen(["true"]),
        lambda c: c.exec(["true"]),
        lambda c: c.pid,
        lambda c: c.fileno(),
        lambda c: c.namespace("net"),
        lambda c: c.files.read("/etc/passwd"),
        lambda c: c.files.write("/x", b""),
        lambda c: c.files.listdir("/"),
        lambda c: list(c.changes()),
        lambda c: c.run(["true"], user="root"),
        lambda c: c.run(["true"], pty=True),
        lambda c: c.stats(),
        lambda c: c.pause(),
        lambda c: c.resume(),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_use_at_the_wrong_time(use, when):
    container = Container()
    if when == "after":
        with container:
            pass
    with pytest.raises(StateError):
        use(container)


def test_use_of_a_container_whose_init_was_killed():
    with Container() as container:
        os.kill(container.pid, signal.SIGKILL)
        wait_for(lambda: container.state != "running")
        with pytest.raises((StateError, SetupError)) as caught:
            container.run(["true"])
        assert "stopped" in str(caught.value) or isinstance(caught.value, StateError)


def test_stop_ends_processes_that_still_run():
    with Container() as container:
        process = container.popen(["sleep", "100"], stdin=PIPE, stdout=PIPE)
    assert -signal.SIGKILL == process.returncode
    process.close()


def test_stop_ends_what_processes_have_left_behind():
    with Container() as container:
        container.run(["sh", "-c", "setsid sleep 4242 & sleep 0.1"])
        listed = container.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], text=True).stdout
        assert "sleep 4242" in listed
        pid = container.pid
    assert not os.path.exists(f"/proc/{pid}")


def test_stop_does_not_wait_for_those_who_ignore_signals():
    began = time.monotonic()
    script = "trap '' TERM INT HUP; echo ok; sleep 100"
    with Container() as container, container.popen(["sh", "-c", script], stdout=PIPE) as process:
        process.stdout.readline()
        container.stop()
    assert time.monotonic() - began < 20


def test_orphans_are_reaped_by_init():
    with Container() as container:
        container.run(["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done"])
        time.sleep(0.3)
        states = container.run(["sh", "-c", "cat /proc/[0-9]*/stat"], text=True).stdout
        assert " Z " not in states


def test_fileno_is_readable_once_the_container_has_ended():
    import select

    with Container() as container:
        poller = select.poll()
        poller.register(container, select.POLLIN)
        assert [] == poller.poll(0)
        os.kill(container.pid, signal.SIGKILL)
        assert poller.poll(5000)


def test_timings_add_up():
    with Container() as container:
        timings = container.timings
    assert 0 < timings.clone_us < timings.total_us
    assert 0 < timings.setup_us < timings.total_us
    assert timings.plan_us + timings.clone_us + timings.setup_us <= timings.total_us * 1.01


@pytest.mark.parametrize("name", ["a", "web-1", "A_b.c-9", "x" * 64])
def test_id_that_is_good(name):
    assert name == Container(id=name).id


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-x", ".x", "x" * 65, "a b", "ä", "a\n", "a\0", 3, b"x"]
)
def test_id_that_could_lead_anywhere_is_refused(name):
    with pytest.raises(SpecError, match="id"):
        Container(id=name)


def test_ids_are_different():
    assert 100 == len({Container().id for _ in range(100)})


# --- Invalid descriptions --------------------------------------------------------------------------------------------

WRONG = [
    ({"rootfs": "/"}, "RootFS"),
    ({"rootfs": 3}, "RootFS"),
    ({"mounts": Mount.tmpfs("/x")}, "mounts"),
    ({"mounts": ["/x"]}, "Mount"),
    ({"mounts": 3}, "mounts"),
    ({"namespaces": {"net": "host"}}, "Namespaces"),
    ({"hostname": 3}, "hostname"),
    ({"hostname": ""}, "hostname"),
    ({"hostname": "a/b"}, "hostname"),
    ({"hostname": "a\0"}, "hostname"),
    ({"hostname": "\udcff"}, "hostname"),
    ({"hostname": "x" * 65}, "hostname"),
    ({"domainname": b"x"}, "domainname"),
    ({"sysctls": {"kernel.panic": 1}}, "kernel.panic"),
    ({"sysctls": {"net..ipv4": 1}}, "sysctls"),
    ({"sysctls": {"net/../kernel/panic": 1}}, "sysctls"),
    ({"sysctls": 3}, "sysctls"),
    ({"sysctls": ["a"]}, "sysctls"),
    ({"sysctls": {"net.ipv4.ip_forward": "1\0"}}, "sysctls"),
    ({"uid_mappings": [IdMapping(0, 0)]}, "both"),
    ({"uid_mappings": [(0, 0, 1)], "gid_mappings": [(0, 0, 1)]}, "IdMapping"),
    ({"uid_mappings": [], "gid_mappings": []}, "at least one"),
    ({"uid_mappings": 3, "gid_mappings": 3}, "mapping"),
    ({"time_offsets": 3}, "time"),
    ({"masked_paths": ["proc"]}, "absolute"),
    ({"masked_paths": 3}, "path"),
    ({"masked_paths": "/proc/kcore"}, "path"),
    ({"readonly_paths": [3]}, "string"),
    ({"host_name": "x"}, "did you mean 'hostname'"),
    ({"root": "x"}, "root"),
]


@pytest.mark.parametrize(
    ("arguments", "word"), WRONG, ids=lambda value: str(value)[:40] if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("way", ["container", "one shot"])
def test_description_that_is_wrong_is_one_clear_exception(arguments, word, way):
    with pytest.raises(SpecError) as caught:
        Container(**arguments) if way == "container" else run(["true"], **arguments)
    assert word in str(caught.value)
    assert SpecError is type(pickle.loads(pickle.dumps(caught.value)))


WRONG_COMMANDS = [
    ("true", {}, "list of strings"),
    (b"true", {}, "list of strings"),
    (3, {}, "list of strings"),
    (None, {}, "list of strings"),
    ([], {}, "at least one argument"),
    ([""], {}, "at least one argument"),
    ([3], {}, "string"),
    (["a", None], {}, "string"),
    (["a\0b"], {}, "NUL"),
    (["a", b"b\0"], {}, "NUL"),
    (["true"], {"env": {"A": "b\0"}}, "NUL"),
    (["true"], {"env": {"A\0": "b"}}, "NUL"),
    (["true"], {"env": {"A=B": "c"}}, "env"),
    (["true"], {"env": {"": "c"}}, "env"),
    (["true"], {"env": {"A": 1}}, "env"),
    (["true"], {"env": {"A": None}}, "env"),
    (["true"], {"env": {1: "a"}}, "env"),
    (["true"], {"env": "A=1"}, "env"),
    (["true"], {"env": ["A=1"]}, "env"),
    (["true"], {"cwd": "relative"}, "cwd"),
    (["true"], {"cwd": "/a/../b"}, "cwd"),
    (["true"], {"cwd": "/a\0"}, "cwd"),
    (["true"], {"cwd": 3}, "cwd"),
    (["true"], {"umask": "022"}, "umask"),
    (["true"], {"umask": 0o1000}, "umask"),
    (["true"], {"umask": -1}, "umask"),
    (["true"], {"umask": True}, "umask"),
    (["true"], {"nice": 20}, "nice"),
    (["true"], {"nice": "5"}, "nice"),
    (["true"], {"rlimits": {"files": 3}}, "rlimits"),
    (["true"], {"rlimits": {"nofile": "3"}}, "rlimits"),
    (["true"], {"rlimits": {"nofile": (5, 3)}}, "rlimits"),
    (["true"], {"rlimits": {"nofile": (5,)}}, "rlimits"),
    (["true"], {"rlimits": {3: 3}}, "rlimits"),
    (["true"], {"rlimits": 3}, "rlimits"),
    (["true"], {"pass_fds": 3}, "pass_fds"),
    (["true"], {"pass_fds": ["3"]}, "pass_fds"),
    (["true"], {"pass_fds": [-1]}, "pass_fds"),
    (["true"], {"groups": "5"}, "groups"),
    (["true"], {"groups": [-5]}, "id"),
    (["true"], {"encoding": "no-such-encoding"}, "encoding"),
    (["true"], {"shell": True}, "shell"),
    (["true"], {"preexec_fn": print}, "preexec_fn"),
]


@pytest.mark.parametrize("way", ["container", "one shot"])
def test_command_that_is_wrong_is_one_clear_exception(box, way):
    start = run if way == "one shot" else box.run
    messages = []
    for argv, arguments, _ in WRONG_COMMANDS:
        try:
            start(argv, **arguments)
            messages.append("")
        except SpecError as error:
            messages.append(str(error))
    cases = zip(WRONG_COMMANDS, messages, strict=True)
    assert [] == [(case, message) for case, message in cases if case[2] not in message]


def test_rootfs_that_is_not_there(tmp_path):
    for rootfs in (RootFS.dir(tmp_path / "no"), RootFS.overlay(tmp_path, tmp_path / "no"), RootFS.dir("/etc/passwd")):
        with pytest.raises(SpecError, match="missing, or not a directory"):
            run(["true"], rootfs=rootfs)


def test_mount_source_that_is_not_there(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        run(["true"], mounts=[Mount.bind(tmp_path / "no", "/x")])


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("no-such-program", errno.ENOENT),
        ("/no/such", errno.ENOENT),
        ("/etc/passwd", errno.EACCES),
        ("/usr", errno.EACCES),
    ],
)
@pytest.mark.parametrize("init", [True, False])
def test_command_that_is_not_there(name, number, init):
    with pytest.raises(SetupError) as caught:
        run([name], init=init)
    assert (number, "execve", name) == (caught.value.errno, caught.value.operation, caught.value.target)
    assert isinstance(caught.value, OSError)


def test_command_that_is_no_program():
    with Container() as container:
        container.files.write("/bad", b"\x7fELF and then nothing", mode=0o755)
        with pytest.raises(SetupError) as caught:
            container.run(["/bad"])
        assert errno.ENOEXEC == caught.value.errno


def test_script_whose_interpreter_is_missing_is_reported_as_such():
    with Container() as container:
        container.files.write("/script", b"#!/no/such/shell\n", mode=0o755)
        with pytest.raises(SetupError, match="interpreter that it names"):
            container.run(["/script"])


def test_hundred_thousand_arguments():
    done = run(["sh", "-c", "echo $#", *["a"] * 100_001], text=True)
    assert "100000\n" == done.stdout


def test_too_many_arguments_for_the_kernel():
    with pytest.raises(SetupError) as caught:
        run(["true", *["argument" * 10] * 100_000])
    assert (errno.E2BIG, "execve") == (caught.value.errno, caught.value.operation)


def test_a_huge_environment():
    env = {f"NAME_{number}": "x" * 1000 for number in range(1000)}
    assert b"1000\n" == run(["/bin/sh", "-c", "/usr/bin/env | /usr/bin/grep -c ^NAME_"], env=env).stdout
    with pytest.raises(SetupError) as caught:
        run(["/bin/true"], env={"A": "x" * 200_000})
    assert errno.E2BIG == caught.value.errno


def test_words_that_are_not_utf_8():
    done = run([b"printf", b"%s", b"\xff\xfe", "\udc80"])
    assert b"\xff\xfe" == done.stdout[:2]


def test_words_that_are_paths():
    from pathlib import Path

    assert 0 == run([Path("/usr/bin/true"), Path("x")]).returncode


# --- Forks, garbage, the end of the interpreter -----------------------------------------------------------------------------


def test_garbage_collection_stops_and_warns():
    container = Container().start()
    pid = container.pid
    with pytest.warns(ResourceWarning, match="was never stopped"):  # noqa: PT031 - the last reference, then the cycles
        del container
        gc.collect()
    assert not os.path.exists(f"/proc/{pid}")


def test_garbage_collection_with_processes_that_run():
    container = Container().start()
    process = container.popen(["sleep", "100"])
    with pytest.warns(ResourceWarning, match="was never stopped"):  # noqa: PT031 - the last reference, then the cycles
        del container, process
        gc.collect()


def test_interpreter_that_ends_without_stop_leaves_nothing(is_alive):
    code = (
        "import containerkit as c\nbox = c.Container().start()\np = box.popen(['sleep', '4321'])\nprint(box.pid, p.pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "" == done.stderr
    wait_for(lambda: not any(is_alive(pid) for pid in done.stdout.split()))


def in_fork(function):
    """Run in a forked child. Return its output in a pipe and its status."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.close(read)
            os.write(write, str(function()).encode())
            status = 0
        except BaseException as error:  # noqa: BLE001 - told to the parent
            os.write(write, repr(error).encode())
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        said = file.read().decode()
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_child_may_run_containers_of_its_own():
    with Container() as container:
        assert ("hi\n", 0) == in_fork(lambda: run(["echo", "hi"], text=True).stdout)
        assert "running" == container.state


def test_forked_child_does_not_end_its_parents_container():
    with Container() as container:
        process = container.popen(["cat"], stdin=PIPE)

        def use():
            container.stop()
            process.close()
            container.__exit__(None, None, None)
            return gc.collect() >= 0

        assert ("True", 0) == in_fork(use)
        assert "running" == container.state
        assert None is process.poll()
        assert 0 == container.run(["true"]).returncode
        process.stdin.close()
        process.wait()


def test_forked_child_that_lives_on_does_not_keep_the_container_alive(is_alive):
    code = (
        "import os, sys, time, containerkit as c\n"
        "box = c.Container().start()\n"
        "print(box.pid, flush=True)\n"
        "if os.fork() == 0: time.sleep(30); os._exit(0)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, text=True, start_new_session=True) as process:
        pid = int(process.stdout.readline())
        process.wait(timeout=60)
        try:
            wait_for(lambda: not is_alive(pid), 20)  # before the child ends by itself
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_forked_child_uses_other_ids_than_its_parent():
    if os.geteuid():
        pytest.skip("needs ranges of ids")
    with Container() as container:
        mine = open_map(container.pid)

        def other():
            with Container() as second:
                return open_map(second.pid)

        theirs, status = in_fork(other)
    assert 0 == status
    assert mine != int(theirs)


def open_map(pid):
    with open(f"/proc/{pid}/uid_map") as file:
        return int(file.read().split()[1])


# --- Namespaces left to the host ----------------------------------------------------------------------------------------------

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


@needs_root
def test_without_a_pid_namespace_of_its_own_stop_still_ends_what_was_started():
    with Container(namespaces=Namespaces(pid="host")) as container:
        process = container.popen(["sleep", "100"])
        done = container.run(["sh", "-c", "echo $$; exit 3"], text=True)
        assert 3 == done.returncode
        assert os.path.exists(f"/proc/{process.pid}")
    assert -9 == process.returncode


@needs_root
def test_without_a_pid_namespace_a_run_in_one_shot():
    done = run(["sh", "-c", "echo hi; exit 4"], namespaces=Namespaces(pid="host"))
    assert (4, b"hi\n") == (done.returncode, done.stdout)


@needs_root
def test_without_a_pid_namespace_a_timeout_kills_the_tree():
    sleep = f"sleep 5151.{os.getpid()}"
    with pytest.raises(ContainerTimeout):
        run(["sh", "-c", f"{sleep} & {sleep}; wait"], namespaces=Namespaces(pid="host"), timeout=0.3)
    listing = subprocess.run(["ps", "ax", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert sleep not in listing


# --- Races --------------------------------------------------------------------------------------------------------------------


def test_stop_while_others_start_processes():
    """A late call gets an error. No thread hangs, and no process is left."""
    for _ in range(10):
        container = Container().start()
        errors = []

        def start_many(container=container, errors=errors):
            while True:
                try:
                    container.popen(["sleep", "100"])
                except (StateError, SetupError) as error:
                    errors.append(error)
                    return

        threads = [threading.Thread(target=start_many) for _ in range(6)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        container.stop()
        for thread in threads:
            thread.join(20)
        assert [False] * 6 == [thread.is_alive() for thread in threads]
        assert 6 == len(errors)


def test_stop_from_many_threads():
    container = Container().start()
    threads = [threading.Thread(target=container.stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert "stopped" == container.state


def test_stop_while_a_run_waits_in_another_thread():
    container = Container().start()
    ends = []
    thread = threading.Thread(target=lambda: ends.append(container.run(["sleep", "100"]).returncode))
    thread.start()
    time.sleep(0.2)
    container.stop()
    thread.join(20)
    assert [-9] == ends


def test_names_of_the_uts_namespace():
    done = run(
        ["sh", "-c", "uname -n; cat /proc/sys/kernel/domainname"], hostname="Box.example", domainname="lan", text=True
    )
    assert "Box.example\nlan\n" == done.stdout


def test_name_of_the_uts_namespace_unless_given():
    assert "container\n" == run(["uname", "-n"], text=True).stdout


def test_result_survives_pickling():
    done = pickle.loads(pickle.dumps(run(["sh", "-c", "echo x; exit 3"])))
    assert (3, b"x\n", "exit") == (done.returncode, done.stdout, done.cause)


@pytest.mark.parametrize("number", range(3))
def test_errors_survive_pickling(number):
    wishes = [
        lambda: run(["false"], check=True),
        lambda: run(["sleep", "9"], timeout=0.05),
        lambda: run(["no-such"]),
    ]
    with pytest.raises(Exception) as caught:
        wishes[number]()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(caught.value), str(caught.value)) == (type(again), str(again))


def test_default_container_has_all_eight_namespaces_new():
    own = {name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")}
    listed = run(["sh", "-c", "for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done"], text=True).stdout
    inside = dict(line.split() for line in listed.splitlines())
    assert set(own) == set(inside)
    assert [] == [name for name in own if own[name] == inside[name]]


def test_exec_is_in_the_same_namespaces_as_init():
    script = "for n in /proc/$0/ns/*; do echo ${n##*/} $(readlink $n); done"
    with Container() as container:
        listed = container.run(["sh", "-c", script.replace("$0", "self")], text=True).stdout
        inside = dict(line.split() for line in listed.splitlines())
        links = {name: os.readlink(f"/proc/{container.pid}/ns/{name}") for name in inside}
    assert links == inside


def test_ids_of_processes_are_small():
    assert re.fullmatch(r"2\n", run(["sh", "-c", "echo $$"], text=True).stdout)
    assert "1\n" == run(["sh", "-c", "echo $$"], text=True, init=False).stdout


def test_who_stops_a_container_asks_what_another_thread_runs():
    done = []
    with Container() as c:
        script = "trap 'echo bye; exit 3' TERM; echo here > /tmp/up; while :; do sleep 0.02; done"
        thread = threading.Thread(target=lambda: done.append(c.run(["sh", "-c", script])))
        thread.start()
        while c.run(["test", "-e", "/tmp/up"]).returncode:
            time.sleep(0.01)
        c.stop(grace_s=10)
        thread.join()
    assert [(3, b"bye\n")] == [(each.returncode, each.stdout) for each in done]


def test_who_stops_a_container_asks_what_another_thread_is_just_starting(monkeypatch):
    begin, begun, done = Program.begin, threading.Event(), []

    def begin_slowly(*arguments, **more):
        begun.set()
        time.sleep(0.2)
        begin(*arguments, **more)

    with Container() as c:
        monkeypatch.setattr(Program, "begin", begin_slowly)
        thread = threading.Thread(target=lambda: done.append(c.run(["sleep", "30"])))
        thread.start()
        begun.wait()
        c.stop(grace_s=5)
        thread.join()
    assert [-signal.SIGTERM] == [each.returncode for each in done]


def test_a_container_is_stopped_under_what_another_thread_runs():
    done = []
    with Container() as c:
        threads = [threading.Thread(target=lambda: done.append(c.run(["sleep", "100"]).returncode)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(c.members()) < 5:
            time.sleep(0.01)
        c.stop()
        for thread in threads:
            thread.join()
    assert [-9] * 4 == done


def test_a_command_that_is_killed_while_it_enters_was_killed():
    statuses = set()
    with Container() as c:

        def kill_all():
            while not ended.is_set():
                for pid in c.members():
                    if pid != c.pid:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)

        ended = threading.Event()
        killer = threading.Thread(target=kill_all)
        killer.start()
        try:
            for _ in range(300):
                statuses.add(c.run(["true"]).returncode)
        finally:
            ended.set()
            killer.join()
    assert statuses <= {0, -signal.SIGKILL}
    assert -signal.SIGKILL in statuses


def test_nobody_waits_for_a_command_that_another_thread_runs():
    with Container() as c:
        thread = threading.Thread(target=c.run, args=(["sleep", "100"],))
        thread.start()
        time.sleep(0.1)
        began = time.monotonic()
        assert 0 == c.run(["true"]).returncode
        assert "running" == c.state
        assert time.monotonic() - began < 50
        c.stop()
        thread.join()
