"""Fleets on executors, for the common behaviour of engines whose workers are Python processes."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import count

import pytest
from fleet_samples import lasting, none_of, processes_of, runs_of
from waiting import wait_for

from containerkit import ContainerTimeout, ExitError, Limits, Namespaces, RootFS, SetupError, SpecError, StateError, run
from containerkit.executor import ContainerExecutor
from containerkit.fleet import (
    Attempt,
    Engine,
    Fleet,
    FleetContainer,
    FleetError,
    FleetFuture,
    FleetProcess,
    Node,
    NodeLost,
    NodeReport,
    Outcome,
    Report,
    Task,
    Watcher,
    wire,
)
from containerkit.fleet.channel import Ticket
from containerkit.fleet.link import Link
from containerkit.fleet.perform import Attending

root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: control groups")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(4) as executor, Fleet.executor(executor) as fleet:
        yield fleet


@pytest.fixture
def processes():
    """A fleet on two processes. They are forked when tasks arrive, with the open files of this process."""
    executor = ProcessPoolExecutor(2)
    with Fleet.executor(executor) as fleet:
        yield fleet
    executor.shutdown(cancel_futures=True)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_results_are_those_of_run(kind, request):
    fleet = request.getfixturevalue(kind)
    script = ["sh", "-c", "cat; echo $NAME; echo problem >&2; exit 3"]
    options = {"env": {"NAME": "a name", "PATH": "/usr/bin:/bin"}, "cwd": "/tmp"}
    if os.geteuid() == 0:
        options["user"] = "daemon"
    future = fleet.submit(script, input="given\n", text=True, **options)
    done, here = future.result(60), run(script, input="given\n", text=True, **options)
    assert isinstance(future, FleetFuture)
    assert (done.args, done.returncode, done.stdout, done.stderr) == (
        here.args, here.returncode, here.stdout, here.stderr
    )  # fmt: skip
    assert ("exit", 1, True) == (future.cause, future.attempts, future.usage.user_us + future.usage.system_us > 0)
    assert future.node.startswith(socket.gethostname())
    assert fleet.submit(["echo", "hi"]).result(60).stdout == b"hi\n"


def test_errors_are_those_of_run(threads):
    slow = threads.submit(["sh", "-c", "echo begun; sleep 100"], timeout=0.3)
    failed = threads.submit(["false"], check=True)
    much = threads.submit(["yes"], output_limit_bytes=100_000)
    missing = threads.submit(["/no/such/program"])
    with pytest.raises(ContainerTimeout) as caught:
        slow.result(60)
    assert (caught.value.result.stdout, slow.cause) == (b"begun\n", "timeout")
    with pytest.raises(ExitError):
        failed.result(60)
    assert much.result(60).cause == "output"
    with pytest.raises(FileNotFoundError):
        missing.result(60)
    assert missing.cause == "error"
    report = threads.report()
    assert {"timeout": 1, "exit": 1, "output": 1, "error": 1} == report.failures


@root
def test_limits_are_those_of_the_container(threads):
    future = threads.submit(["python3", "-c", "b'1' * 10**9"], limits=Limits(memory="50M"))
    assert (future.result(60).cause, future.cause) == ("oom", "oom")
    assert future.usage.memory_limit_bytes == 50 << 20


REFUSED = [
    ({"image": "a", "rootfs": RootFS.host()}, "either image or rootfs"),
    ({"image": 3}, "not the name of an image"),
    ({"image": "UPPER/Case"}, "lower case"),
    ({"retries": -1}, "retries"),
    ({"retries": True}, "retries"),
    ({"retires": 1}, "did you mean"),
    ({"pass_fds": [0]}, "unknown argument"),
    ({"stdin": 0}, "unknown argument"),
    ({"syscall_handler": print}, "unknown argument"),
    ({"timeout": -1}, "timeout"),
    ({"timeout": "1"}, "timeout"),
    ({"output_limit_bytes": -1}, "output_limit_bytes"),
    ({"check": 1}, "check"),
    ({"on_stdout": 3}, "on_stdout"),
    ({"input": "text"}, "input"),
    ({"hostname": "no/name"}, "hostname"),
    ({"namespaces": Namespaces(network=1)}, "namespaces"),
]


@pytest.mark.parametrize(("options", "told"), REFUSED, ids=[str(each[0])[:40] for each in REFUSED])
def test_what_cannot_be_is_refused_before_anything_is_made(options, told, threads):
    with pytest.raises(SpecError, match=told):
        threads.submit(["true"], **options)
    assert threads.report().tasks == 0


def test_what_is_no_argv_or_no_engine_is_refused(threads):
    with pytest.raises(SpecError):
        threads.submit("true")
    with pytest.raises(SpecError):
        threads.submit([])
    with pytest.raises(SpecError, match="can't be sent"):
        threads.submit(["true"], extra_env=_Unsendable({"A": "b"}))
    with pytest.raises(SpecError, match="not a concurrent"):
        Fleet.executor(print)
    with pytest.raises(SpecError, match="listen"):
        Fleet.executor(ThreadPoolExecutor(1), listen="203.0.113.7")
    with pytest.raises(SpecError, match="Engine"):
        Fleet(threads)
    with ContainerExecutor(1) as executor, pytest.raises(SpecError, match="ContainerExecutor"):
        Fleet.executor(executor)
    with ThreadPoolExecutor(1) as executor:
        fleet = Fleet.executor(executor)
        fleet.close()
        fleet.close()
        with pytest.raises(StateError, match="closed"):
            fleet.submit(["true"])


class _Unsendable(dict):
    def __reduce__(self):
        raise TypeError("not this one")


class _Small(Engine):
    """An engine of two nodes that stores its tasks."""

    name = "small"

    def __init__(self):
        self.taken: list[tuple[Task, Watcher]] = []

    def submit(self, task, watcher):
        self.taken.append((task, watcher))
        return _Nothing()

    def nodes(self):
        return (Node(name="a", cpus=2, memory_bytes=1 << 30), Node(name="b", cpus=4, memory_bytes=1 << 29))

    def close(self):
        pass


class _Nothing(Attempt):
    def cancel(self, *, force=False):
        pass


@pytest.mark.parametrize("limits", [Limits(cpus=5), Limits(memory="2G")], ids=str)
def test_tasks_that_no_node_is_large_enough_for_are_refused(limits):
    engine = _Small()
    with pytest.raises(SpecError, match="the largest of 2 nodes"):
        Fleet(engine).submit(["true"], limits=limits)
    assert engine.taken == []
    Fleet(engine, elastic=True).submit(["true"], limits=limits)
    Fleet(engine).submit(["true"], limits=Limits(cpus=4, memory="1G"))
    assert len(engine.taken) == 2
    with pytest.raises(SpecError, match="holds no containers"):
        Fleet(engine).container()


def test_attempts_are_repeated_only_if_lost_and_only_as_often_as_asked():
    engine = _Small()
    fleet = Fleet(engine)
    once, thrice = fleet.submit(["true"]), fleet.submit(["true"], retries=2)
    lost = Outcome(error=NodeLost("gone", "a"), lost=True)
    engine.taken[0][1].began("a")
    engine.taken[0][1].ended(lost)
    with pytest.raises(NodeLost):
        once.result(10)
    assert (once.attempts, once.cause, once.node) == (1, "lost", "a")
    engine.taken[1][1].ended(lost)
    assert len(engine.taken) == 3
    engine.taken[2][1].ended(lost)
    wait_for(lambda: len(engine.taken) == 4)
    assert len({task.id for task, _ in engine.taken}) == 4
    engine.taken[3][1].ended(Outcome(error=FleetError("another problem")))
    with pytest.raises(FleetError, match="another problem"):
        thrice.result(10)
    assert (thrice.attempts, len(engine.taken)) == (3, 4)
    report = fleet.report()
    assert isinstance(report, Report)
    assert (report.retried, report.failures) == (2, {"lost": 1, "error": 1})
    assert report.nodes == (NodeReport(name="a", began=1, lost=1, busy_s=0.0),)
    assert "2 retried" in str(report)


# --- Cancellation


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_cancelled_task_ends_on_its_node(nothing_left, kind, request):
    fleet = request.getfixturevalue(kind)
    command = lasting()
    future = fleet.submit(command)
    wait_for(runs_of(command))
    assert future.running()
    assert future.cancel()
    assert (future.cancelled(), future.done(), future.cause) == (True, True, "cancelled")
    assert future.gone(30)
    wait_for(none_of(command))
    with pytest.raises(CancelledError):
        future.result()
    assert fleet.submit(["echo", "on"]).result(60).stdout == b"on\n"
    assert not fleet.submit(["true"]).cancelled()


def test_a_task_that_waits_is_never_begun_once_it_is_cancelled(tmp_path):
    with ThreadPoolExecutor(1) as executor, Fleet.executor(executor) as fleet:
        command = lasting()
        first = fleet.submit(command)
        wait_for(runs_of(command))
        second = fleet.submit(["echo", "never"])
        assert second.cancel()
        assert second.gone(30)
        assert second.node is None
        first.cancel()
        assert fleet.submit(["echo", "on"]).result(60).stdout == b"on\n"
        assert [node.began for node in fleet.report().nodes] == [2]


def test_cancellation_at_any_moment_leaves_nothing(nothing_left, threads):
    chance = random.Random(18)
    commands = [lasting() for _ in range(30)]
    futures = []
    for command in commands:
        futures.append(threads.submit(command))
        time.sleep(chance.random() * 0.01)
        chance.choice(futures).cancel()
    for future in futures:
        future.cancel()
    assert all(future.gone(30) for future in futures)
    wait_for(none_of(*commands))
    assert threads.report().failures == {"cancelled": 30}


def test_an_exception_in_with_cancels_what_is_under_way(nothing_left):
    command = lasting()
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyError), Fleet.executor(executor) as fleet:
            future = fleet.submit(command)
            wait_for(runs_of(command))
            raise KeyError
        assert future.cancelled()
        assert processes_of(command) == []


# --- Lost workers and drivers


def test_a_worker_that_is_killed_loses_its_task_and_its_container(processes):
    command = lasting()
    future = processes.submit(command)
    wait_for(runs_of(command))
    wait_for(future.running)
    os.kill(int(future.node.rpartition("/")[2]), signal.SIGKILL)
    with pytest.raises(NodeLost) as caught:
        future.result(60)
    assert (caught.value.node, future.cause, future.attempts) == (future.node, "lost", 1)
    wait_for(none_of(command))


DRIVER = """
import sys
from concurrent.futures import ProcessPoolExecutor
from containerkit.fleet import Fleet

if __name__ == "__main__":
    fleet = Fleet.executor(ProcessPoolExecutor(2))
    futures = [fleet.submit(["sleep", each]) for each in sys.argv[1:3]]
    fleet.container().start() if len(sys.argv) > 3 else None
    [future.exception() for future in futures]
"""


def test_containers_end_when_their_driver_is_killed(tmp_path):
    """Its workers survive: the second was forked when the first already had its connection."""
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    commands = [lasting(), lasting()]
    arguments = [sys.executable, path, *(command[1] for command in commands)]
    with subprocess.Popen(arguments, start_new_session=True) as driver:
        try:
            wait_for(runs_of(*commands))
        finally:
            driver.kill()
    try:
        wait_for(none_of(*commands))
    finally:
        os.killpg(driver.pid, signal.SIGKILL)  # its workers wait for it forever


def test_a_task_is_given_to_one_worker_once(threads):
    held, ticket = threads._engine.channel.expect(Task(id="twice", argv=("true",)), _Deaf())
    link = Link.to(ticket)
    jobs = [Attending(link, ticket.id) for _ in range(2)]
    assert link.claim(jobs[0], "here") is not None
    assert link.claim(jobs[1], "there") is None
    assert held.node == "here"
    link.end(jobs[0], Outcome(error=FleetError("enough")))
    wait_for(lambda: held.over)
    assert link.claim(jobs[1], "there") is None
    link.forget(jobs[1])


class _Deaf:
    def began(self, node):
        pass

    def wrote(self, stream, data):
        pass

    def ended(self, outcome):
        pass


def test_strangers_get_nothing(threads):
    _, ticket = threads._engine.channel.expect(Task(id="secret", argv=("true",)), _Deaf())
    assert ticket.key.hex() not in repr(ticket)
    assert repr(ticket.key) not in repr(ticket)
    with pytest.raises(NodeLost, match="can't be reached"):
        Link.to(Ticket(ticket.host, ticket.port, bytes(32), ticket.id))
    with socket.create_connection((ticket.host, ticket.port), timeout=30) as sock:
        assert len(sock.recv(100)) == 32
        sock.sendall(bytes(64))
        assert sock.recv(100) == b""
    with socket.create_server(("127.0.0.1", 0)) as liar:  # workers do not trust a driver without the key
        port = liar.getsockname()[1]
        threading.Thread(target=_lie, args=(liar,)).start()
        with pytest.raises(NodeLost, match="does not have the key"):
            Link.to(Ticket("127.0.0.1", port, ticket.key, "any"))
    held = threads._engine.channel._held["secret"]
    threads._engine.channel.cancel(held)


def _lie(server):
    sock, _ = server.accept()
    with sock:
        sock.sendall(bytes(32))
        sock.recv(64)
        sock.sendall(bytes(32))


# --- Output, maps


def test_lines_are_received_while_the_command_runs(threads):
    heard = threading.Event()
    lines = []
    command = ["sh", "-c", "echo first; echo problem >&2; exec sleep 1000"]
    future = threads.submit(command, text=True, on_stdout=lambda line: (lines.append(line), heard.set()))
    assert heard.wait(30)
    assert (lines, future.done()) == (["first"], False)
    future.cancel()
    many = threads.submit(["seq", "20000"], on_stdout=lines.append, capture_output=False)
    assert many.result(60).stdout is None
    assert lines[1:] == [str(number).encode() for number in range(1, 20001)]


def test_a_slow_listener_does_not_break_the_connection(monkeypatch, threads):
    """The kernel ends a connection that nobody receives from for as long as TCP_USER_TIMEOUT, here half a second."""
    watchful = [each for each in wire._WATCHFUL if each[1] != socket.TCP_USER_TIMEOUT]
    monkeypatch.setattr(wire, "_WATCHFUL", [*watchful, (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)])
    sizes = []

    def slow(line):
        if not sizes:
            time.sleep(2)
        sizes.append(len(line))

    much = "head -c 20000000 /dev/zero | tr '\\0' x | fold -w 1000"  # more than buffers of sockets hold
    future = threads.submit(["sh", "-c", much], on_stdout=slow, capture_output=False)
    assert future.result(60).returncode == 0
    assert sizes == [1000] * 20_000


def test_an_exception_in_a_listener_ends_the_command(threads):
    def listen(line):
        raise ZeroDivisionError(line)

    future = threads.submit(["sh", "-c", "echo first; exec sleep 1000"], on_stdout=listen)
    with pytest.raises(ZeroDivisionError):
        future.result(60)
    assert future.gone(30)


def test_map_returns_results_in_order_and_takes_items_as_they_are_needed(threads):
    shown = threads.map(lambda item: ["echo", item], "abc", text=True, progress=True)
    assert [done.stdout for done in shown] == ["a\n", "b\n", "c\n"]
    numbers = count()
    results = threads.map(lambda number: ["sh", "-c", f"exit {number}"], numbers, buffersize=3)
    assert [next(results).returncode for _ in range(5)] == [0, 1, 2, 3, 4]
    assert next(numbers) <= 9
    results.close()
    failing = threads.map(lambda item: [item], ["true", "false", "true"], check=True)
    assert next(failing).returncode == 0
    with pytest.raises(ExitError):
        next(failing)
    with pytest.raises(SpecError, match="buffersize"):
        threads.map(lambda item: [item], ["true"], buffersize=0)
    futures = [threads.submit(["true"]) for _ in range(3)]
    assert set(threads.as_completed(futures, 60)) == set(futures)


# --- Held containers


def test_a_container_is_held_for_many_commands(nothing_left, processes):
    with processes.container(hostname="held") as container:
        assert isinstance(container, FleetContainer)
        container.files.make_directory("/tmp/a/b")
        container.files.write("/tmp/a/b/file", "one\n")
        container.files.append("/tmp/a/b/file", b"two\n")
        assert container.files.read("/tmp/a/b/file") == b"one\ntwo\n"
        assert (container.files.listdir("/tmp/a"), container.files.exists("/tmp/c")) == (["b"], False)
        done = container.run(["sh", "-c", "hostname; cat /tmp/a/b/file"], text=True)
        assert done.stdout == "held\none\ntwo\n"
        with pytest.raises(SetupError, match="No such file"):
            container.files.read("/tmp/c")
        with pytest.raises(ExitError):
            container.run(["false"], check=True)
        with pytest.raises(SpecError):
            container.run(["true"], hostname="other")
        lines = []
        assert container.run(["seq", "3"], text=True, on_stdout=lines.append).returncode == 0
        assert lines == ["1", "2", "3"]
        process = container.popen(["sh", "-c", "echo out; echo err >&2; exec sleep 1000"], text=True)
        assert isinstance(process, FleetProcess)
        told = iter(process)
        assert {next(told), next(told)} == {("stdout", "out"), ("stderr", "err")}
        assert process.poll() is None
        with pytest.raises(TimeoutError):
            process.wait(0.01)
        process.kill()
        assert (process.wait(30).returncode, process.poll()) == (-9, -9)
        assert list(told) == []
        early = container.popen(["sleep", "1000"])
        early.send_signal(signal.SIGKILL)  # possibly before it has begun
        assert early.wait(30).returncode == -9
        left = container.popen(["sleep", "1000"])
    assert container.stopped
    with contextlib.suppress(StateError):  # or its end was reported in time
        assert left.wait(30).returncode == -9
    with pytest.raises(StateError):
        container.run(["true"])


def test_a_held_container_that_does_not_start_reports_the_cause(threads, tmp_path):
    with pytest.raises(SpecError, match="missing"):
        threads.container(RootFS.dir(tmp_path / "missing")).start()


def test_a_held_container_ends_with_its_worker(processes):
    command = lasting()
    container = processes.container().start()
    process = container.popen(command)
    wait_for(runs_of(command))
    os.kill(int(container.node.rpartition("/")[2]), signal.SIGKILL)
    with pytest.raises(NodeLost):
        process.wait(60)
    wait_for(none_of(command))
    assert container.stop(30)


def test_no_room_for_a_held_container_in_time():
    with (
        ThreadPoolExecutor(1) as executor,
        Fleet.executor(executor) as fleet,
        fleet.container(),
        pytest.raises(TimeoutError, match="no node was free"),
    ):
        fleet.container().start(timeout=0.1)


def test_importing_it_imports_no_engine():
    code = "import sys, containerkit.fleet as f; f.Fleet; print([n for n in ('ray', 'distributed', 'rich') if n in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
