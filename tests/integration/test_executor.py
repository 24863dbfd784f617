"""Tasks in containers: modelled on CPython's test_concurrent_futures, and hostile tasks."""

import asyncio
import concurrent.futures as cf
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

import pytest

from containerkit import (
    PIPE,
    Attach,
    Container,
    Limits,
    Mount,
    Namespaces,
    Network,
    OutOfMemory,
    RootFS,
    SetupError,
    SpecError,
    executor,
)
from containerkit.executor import ContainerExecutor, TaskError, TaskTimeout, WorkerLost, Zygote

pytest.importorskip("cloudpickle")

ISOLATIONS = ("container", "fork", "worker")
FRESH = ("container", "fork")


@pytest.fixture(scope="module", params=ISOLATIONS)
def pool(request):
    with ContainerExecutor(2, isolation=request.param) as made:
        made.kind = request.param
        yield made


@pytest.fixture(scope="module")
def fresh():
    with ContainerExecutor(2) as made:
        yield made


# --- Like CPython's tests of executors


def test_submit(pool):
    assert pool.submit(pow, 2, 8).result() == 256


def test_submit_keyword(pool):
    assert pool.submit(int, "11", base=2).result() == 3
    assert pool.submit(lambda fn, self: (fn, self), fn=1, self=2).result() == (1, 2)


def test_map(pool):
    assert list(pool.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))


def test_map_exception(pool):
    results = pool.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5])
    assert next(results) == (0, 1)
    assert next(results) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_map_timeout(pool):
    results = []
    with pytest.raises(TimeoutError):
        results.extend(pool.map(time.sleep, [0, 0, 1.5], timeout=0.7))
    assert results == [None, None]


def test_many_at_once(pool):
    assert list(pool.map(abs, range(-100, 0), chunksize=7)) == list(range(100, 0, -1))


def test_wait_and_as_completed(fresh):
    list(fresh.map(time.sleep, [0.2, 0.2]))  # both workers exist
    slow, quick = fresh.submit(time.sleep, 2), fresh.submit(pow, 2, 3)
    done, _ = cf.wait([slow, quick], return_when=cf.FIRST_COMPLETED)
    assert done == {quick}
    assert [each.result() for each in cf.as_completed([slow, quick])] == [8, None]


def test_traceback_of_the_task_is_the_cause(pool):
    def deep():
        raise KeyError("missing", 7)

    error = pool.submit(deep).exception()
    assert (type(error), error.args) == (KeyError, ("missing", 7))
    assert "in deep" in str(error.__cause__)


def test_callbacks(pool):
    called = threading.Event()
    pool.submit(abs, -1).add_done_callback(lambda future: called.set())
    assert called.wait(10)


def test_no_stale_references(pool):
    import gc
    import weakref

    class Argument:
        pass

    argument = Argument()
    gone = weakref.ref(argument)
    pool.submit(id, argument).result()
    del argument
    until = time.monotonic() + 5
    while gone() is not None and time.monotonic() < until:
        gc.collect()
        time.sleep(0.02)
    assert gone() is None


def test_run_after_shutdown():
    made = ContainerExecutor(1)
    made.shutdown()
    made.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        made.submit(pow, 2, 5)


def test_hang_free_shutdown_without_waiting():
    made = ContainerExecutor(1)
    future = made.submit(time.sleep, 0.3)
    made.shutdown(wait=False)
    assert future.result() is None
    made.shutdown()


def test_cancel_futures():
    made = ContainerExecutor(1)
    futures = [made.submit(time.sleep, 0.3) for _ in range(20)]
    futures[0].running()
    made.shutdown(cancel_futures=True)
    assert sum(each.cancelled() for each in futures) >= 17
    assert all(each.done() for each in futures)


@pytest.mark.parametrize("wrong", [0, -1, True, "2", 1.5])
def test_number_of_workers_is_refused(wrong):
    with pytest.raises(SpecError, match="max_workers"):
        ContainerExecutor(wrong)


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_initializer(kind):
    def begin(value):
        import builtins

        builtins.begun = value

    def look():
        import builtins

        return builtins.begun

    with ContainerExecutor(1, isolation=kind, initializer=begin, initargs=("given",)) as made:
        assert [made.submit(look).result() for _ in range(3)] == ["given"] * 3


def test_initializer_that_fails_is_reported():
    def begin():
        raise ValueError("mine")

    with (
        ContainerExecutor(1, initializer=begin) as made,
        pytest.raises(TaskError, match="initializer: ValueError: mine"),
    ):
        made.submit(abs, 1).result()


def test_what_cannot_be_sent(pool):
    with pytest.raises((TypeError, pickle.PicklingError)):
        pool.submit(id, threading.Lock()).result()
    assert pool.submit(abs, -1).result() == 1


class Leaving:
    def __reduce__(self):
        raise SystemExit(3)


def test_what_leaves_when_it_is_sent_does_not_end_who_waits(pool):
    with pytest.raises(TaskError, match="SystemExit"):
        pool.submit(len, Leaving()).result()
    with pytest.raises(TaskError, match="SystemExit"):
        pool.submit(exec, "raise SystemExit(3)").result()


def test_at_the_end_of_the_interpreter_tasks_are_done(tmp_path):
    code = (
        "from containerkit.executor import ContainerExecutor\n"
        "import time\n"
        "made = ContainerExecutor(1)\n"
        "f = made.submit(time.sleep, 0.5)\n"
        "f.add_done_callback(lambda f: print('done', flush=True))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout == "done\n"


def test_in_asyncio(pool):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, pow, 2, n) for n in range(5)))

    assert asyncio.run(main()) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_nothing_is_left_behind(kind, left_of):
    def work():
        with ContainerExecutor(2, isolation=kind) as made:
            assert list(made.map(abs, range(10))) == list(range(10))
            with pytest.raises(WorkerLost):
                made.submit(end_at_once).result()

    work()  # creates the objects that a process creates once and keeps
    assert left_of(work) == {}


# --- Results


VALUES = [
    None, True, 1.5, float("inf"), 2**100, -(2**100), "text \ud800", b"bytes", bytearray(b"x"), 1 + 2j,
    [1, [2]], (1, (2,)), {1, 2}, frozenset("a"), {"a": {1: (2,)}, (1, 2): None}, b"", {}, [], (), {"dict": 1},
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_plain_values_come_as_they_are(fresh, value):
    def give():
        return value

    got = fresh.submit(give).result()
    assert (type(got), got) == (type(value), value)


def test_large_values(pool):
    def give(given):
        return given, bytes(len(given))

    given = os.urandom(3_000_000)
    assert pool.submit(give, given).result() == (given, bytes(3_000_000))


def test_arrays(fresh):
    np = pytest.importorskip("numpy")

    def double(given):
        return {"twice": given * 2, "one": given[0, 0], "turned": given.T, "none": given[:0]}

    given = np.arange(300_000, dtype="f4").reshape(3, -1)
    got = fresh.submit(double, given).result()
    assert (got["twice"] == given * 2).all()
    assert (got["turned"] == given.T).all()
    assert got["none"].shape == (0, 100_000)
    assert (got["one"], got["one"].dtype) == (0, given.dtype)


def test_other_results_are_refused_with_the_remedy(pool):
    class Mine:
        pass

    for give in (Mine, object, lambda: [Mine()], type("dict", (dict,), {})):
        with pytest.raises(TypeError, match="results='pickle'"):
            pool.submit(give).result()


def test_exceptions_of_other_classes_are_reported_by_name(pool):
    def fail():
        class MineError(Exception):
            pass

        raise MineError("why", object())

    error = pool.submit(fail).exception()
    assert isinstance(error, TaskError)
    assert error.exception.endswith("MineError")
    assert "why" in str(error)


def test_results_by_pickle():
    import fractions

    def fail():
        raise subprocess.CalledProcessError(3, ["x"])

    with ContainerExecutor(1, results="pickle") as made:
        assert made.submit(fractions.Fraction, 1, 3).result() == fractions.Fraction(1, 3)
        assert made.submit(bytes, 5_000_000).result() == bytes(5_000_000)
        error = made.submit(fail).exception()
        assert (type(error), error.returncode) == (subprocess.CalledProcessError, 3)
        with pytest.raises((TypeError, AttributeError)):
            made.submit(threading.Lock).result()


class Own:
    def __init__(self, number):
        self.number = number


class FalseError(Exception):
    def __bool__(self):
        return False


def fail_falsely():
    raise FalseError("no")


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_results_of_the_callers_own_classes_are_of_these(kind):
    """The classes are not inside: this module is sent by value."""
    with ContainerExecutor(1, isolation=kind, results="pickle") as made:
        got = made.submit(Own, 7).result()
        assert (type(got), got.number) == (Own, 7)
        error = made.submit(fail_falsely).exception()
        assert (type(error), error.args) == (FalseError, ("no",))


def test_result_that_is_too_large():
    with ContainerExecutor(1, result_limit_bytes=1_000_000) as made:
        with pytest.raises(TaskError, match="result_limit_bytes"):
            made.submit(bytes, 2_000_000).result()
        assert made.submit(abs, -1).result() == 1


# --- What tasks see


def test_each_task_has_a_container_of_its_own(fresh):
    def leave_and_look():
        found = sorted(os.listdir("/tmp"))
        with open("/tmp/left", "w") as file:
            file.write("x")
        return found, os.getpid(), len([each for each in os.listdir("/proc") if each.isdigit()])

    for _ in range(5):
        found, pid, processes = fresh.submit(leave_and_look).result()
        assert ("left" in found, pid, processes) == (False, 2, 2)


def confinement():
    with open("/proc/self/status") as file:
        told = dict(line.split(":\t") for line in file.read().splitlines() if ":\t" in line)
    fds = {fd for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
    wanted = ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs")
    return {name: told[name] for name in wanted}, told["Seccomp"], len(fds), os.getcwd()


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_confinement_is_that_of_any_command(kind):
    with ContainerExecutor(1, isolation=kind) as made:
        told, seccomp, fds, cwd = made.submit(confinement).result()
    assert told.pop("NoNewPrivs") == "1"
    assert set(told.values()) == {"0" * 16}
    assert (seccomp, cwd) == ("2", "/")
    assert fds <= 5  # the standard streams, the socket, the listed directory


def forbidden():
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    refused = {}
    for name, call in {
        "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None),
        "unshare": lambda: libc.unshare(0x10000000),
        "sethostname": lambda: libc.sethostname(b"x", 1),
        "keyctl": lambda: libc.syscall(250, 0, 0, 0, 0, 0),
        "setns": lambda: libc.setns(os.open("/proc/self/ns/net", os.O_RDONLY), 0),
    }.items():
        refused[name] = call() < 0
    return refused


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_tasks_have_lost_what_their_zygote_could(kind):
    with ContainerExecutor(1, isolation=kind) as made:
        assert set(made.submit(forbidden).result().values()) == {True}


@pytest.mark.several_ids
def test_tasks_as_another_user():
    with ContainerExecutor(1, user=(1000, 1001)) as made:
        assert made.submit(os.getresuid).result() == (1000, 1000, 1000) or os.geteuid() != 0
        assert made.submit(os.getgroups).result() == []


def test_network_and_names_are_their_own(fresh):
    def look():
        import socket

        return socket.gethostname(), [name for _, name in socket.if_nameindex()]

    assert fresh.submit(look).result() == ("container", ["lo"])


ANSWER = (
    "import socket; s = socket.create_server(('', 80)); print(flush=True)\nwhile True: s.accept()[0].send(b'hello')"
)


def test_tasks_of_each_isolation_are_on_a_network():
    def ask():
        import socket

        try:
            socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        except PermissionError:
            return socket.create_connection(("server", 80), 10).recv(5)
        return b"a raw socket"

    with (
        Network("tasks", internal=True).open() as net,
        Container(network=Attach(net, aliases=["server"])) as server,
        server.popen(["python3", "-c", ANSWER], stdout=PIPE) as answering,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(answering.kill)
        answering.stdout.readline()
        for kind in ISOLATIONS:
            with ContainerExecutor(1, isolation=kind, network=net) as made:
                assert [made.submit(ask).result(20) for _ in range(2)] == [b"hello"] * 2, kind
        assert len(net.inspect()["containers"]) == 1  # all others were released


def test_tasks_with_containers_of_their_own_cannot_share_the_network_of_another_one():
    with Container() as other, pytest.raises(SpecError, match="isolation='fork'"):
        ContainerExecutor(1, network=other)


def test_preload_path_and_environment(tmp_path):
    (tmp_path / "mymodule.py").write_text("import os\nbegun = os.environ['WHICH']\ndef f(x): return x * 2\n")

    def look():
        import mymodule

        return "decimal" in sys.modules, mymodule.begun, mymodule.f(21)

    with ContainerExecutor(
        1, preload=["decimal", "mymodule"], path=[tmp_path], env={"WHICH": "mine", "PATH": "/usr/bin"}
    ) as made:
        assert made.submit(look).result() == (True, "mine", 42)


def test_output_goes_where_it_is_told():
    read, write = os.pipe()
    with os.fdopen(read, "rb") as heard:
        with ContainerExecutor(1, stdout=write) as made:
            made.submit(print, "told").result()
        os.close(write)
        assert heard.read() == b"told\n"


def test_a_root_of_its_own():
    with ContainerExecutor(1, RootFS.host(), mounts=[Mount.tmpfs("/mnt")]) as made:
        assert made.submit(os.listdir, "/mnt").result() == []


@pytest.mark.root
def test_usage_and_limits():
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")

    def use():
        return len(bytearray(50_000_000))

    with ContainerExecutor(1, limits=Limits(memory="200M", pids=20)) as made:
        future = made.submit(use)
        assert future.result() == 50_000_000
        assert future.usage.memory_peak_bytes > 50_000_000
        assert future.usage.memory_limit_bytes == 200 * 2**20
        assert future.cause == "exit"
        with pytest.raises(OutOfMemory):
            made.submit(bytearray, 400_000_000).result()
        assert made.submit(abs, -1).result() == 1


# --- Hostile tasks


def kill_all():
    with contextlib.suppress(ProcessLookupError):  # there is no other process than PID 1
        os.kill(-1, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def end_at_once():
    os._exit(7)


def send_garbage(content):
    import socket

    for fd in range(3, 100):
        try:
            sock = socket.socket(fileno=os.dup(fd))
            sock.getsockname()
        except OSError:
            continue
        sock.sendall(content)
        time.sleep(0.2)
        os._exit(0)


def pickle_bomb():
    class Bomb:
        def __reduce__(self):
            return os.system, ("touch /tmp/containerkit-bomb",)

    send_garbage(b"p" + len(pickle.dumps(Bomb())).to_bytes(8, "little") + pickle.dumps(Bomb()))


def leave_children():
    for _ in range(5):
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
    return "left"


def good(number):
    return number * 2


@pytest.mark.parametrize("kind", ISOLATIONS)
@pytest.mark.parametrize("harm", [kill_all, end_at_once])
def test_harm_beside_good_tasks(kind, harm):
    with ContainerExecutor(2, isolation=kind) as made:
        good_ones, bad = [], []
        for number in range(10):
            good_ones.append(made.submit(good, number))
            if number % 3 == 0:
                bad.append(made.submit(harm))
        assert [each.result() for each in good_ones] == [2 * number for number in range(10)]
        if (kind, harm) == ("fork", kill_all):  # PID 1 of a pid namespace can't be killed from inside
            assert [each.result() for each in bad] == [None] * 4
            return
        for each in bad:
            with pytest.raises(WorkerLost) as caught:
                each.result()
            assert caught.value.cause in ("exit", "signal")
        assert isinstance(bad[0].exception(), cf.BrokenExecutor)


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_time_is_up(kind):
    with ContainerExecutor(1, isolation=kind, timeout=0.5) as made:
        future = made.submit(time.sleep, 1000)
        with pytest.raises(TaskTimeout, match=r"0\.5 seconds"):
            future.result()
        assert future.cause == "timeout"
        assert isinstance(future.exception(), TimeoutError)
        assert made.submit(good, 1).result() == 2


GARBAGE = (
    b"x",
    b"d" + (2**63).to_bytes(8, "little"),
    b"d" + (70_000).to_bytes(8, "little") + b"x" * 70_000,
    b"d" + (10).to_bytes(8, "little") + b"\xff" * 10,
    b"p" + (4).to_bytes(8, "little") + b"cos\n",
    b"f" + (4).to_bytes(8, "little") + b"0000",
    b"?" + (0).to_bytes(8, "little"),
    b"d" + (14).to_bytes(8, "little") + b"\x06\0\0\0\0\0\0\0[[[[[[",
)


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_garbage_in_the_place_of_a_result(kind):
    """One pool takes all of it, with a good task after each piece."""
    with ContainerExecutor(1, isolation=kind) as made:
        wrong = []
        for content in GARBAGE:
            told = made.submit(send_garbage, content).exception()
            if not isinstance(told, TaskError) or made.submit(good, 1).result() != 2:
                wrong.append((content, told))
        assert wrong == []


def test_result_runs_no_code_in_the_caller(fresh):
    with pytest.raises(TaskError):
        fresh.submit(pickle_bomb).result()
    assert not os.path.exists("/tmp/containerkit-bomb")


def test_unsealed_memory_is_refused(fresh):
    def send_unsealed():
        import socket

        fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, 100_000)
        for number in range(3, 100):
            try:
                sock = socket.socket(fileno=os.dup(number))
                sock.getsockname()
            except OSError:
                continue
            socket.send_fds(sock, [b"d" + (100_000).to_bytes(8, "little")], [fd])
            time.sleep(0.2)
            os._exit(0)

    with pytest.raises(TaskError, match="not sealed"):
        fresh.submit(send_unsealed).result()


@pytest.mark.parametrize("kind", ISOLATIONS)
def test_what_a_task_leaves_running_ends(kind):
    with ContainerExecutor(1, isolation=kind) as made:
        assert made.submit(leave_children).result() == "left"
        assert made.submit(good, 1).result() == 2


@pytest.mark.root
def test_fork_bomb():
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")

    def bomb():
        while True:
            with contextlib.suppress(OSError):
                os.fork()

    with ContainerExecutor(2, limits=Limits(pids=30), timeout=1) as made:
        bad = made.submit(bomb)
        assert list(made.map(good, range(10))) == [2 * number for number in range(10)]
        with pytest.raises((TaskTimeout, TaskError)):
            bad.result()


@pytest.mark.root
def test_memory_hog_beside_good_tasks():
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")

    with ContainerExecutor(2, limits=Limits(memory="60M")) as made:
        bad = [made.submit(bytearray, 10**9) for _ in range(2)]
        assert list(made.map(good, range(6))) == [2 * number for number in range(6)]
        for each in bad:
            with pytest.raises(OutOfMemory):
                each.result()
            assert each.cause == "oom"


def test_zygote_that_was_lost_is_replaced(fresh):
    assert fresh.submit(good, 1).result() == 2
    zygote = fresh._zygote
    os.kill(zygote._process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while zygote.alive:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    results = []
    for number in range(6):
        try:
            results.append(fresh.submit(good, number).result())
        except (WorkerLost, SetupError):  # the ready interpreters have ended with it
            continue
    assert results[-1] == 10


def test_zygote_that_can_fork_no_more_makes_room_for_another(fresh):
    with ContainerExecutor(2) as made:
        assert made.submit(good, 1).result() == 2
        slow = [made.submit(time.sleep, 1) for _ in range(2)]
        time.sleep(0.5)
        old = made._zygote
        while made._ready:
            made._ready.popleft().close()
        old._fresh = fresh._zygote._fresh  # like another user's: its containers can't be entered
        assert [each.result() for each in slow] == [None, None]
        assert list(made.map(good, range(10))) == [2 * number for number in range(10)]
        assert made._zygote is not old


def test_owner_that_is_killed_leaves_nothing():
    code = (
        "from containerkit.executor import ContainerExecutor\n"
        "import time, os\n"
        "made = ContainerExecutor(2)\n"
        "fs = [made.submit(time.sleep, 4321) for _ in range(2)]\n"
        "time.sleep(1)\n"
        "print(made._zygote._process.pid, *(w for w in os.popen('pgrep -P %d' % made._zygote._process.pid).read().split()), flush=True)\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        pids = [int(each) for each in child.stdout.readline().split()]
        child.kill()
    assert len(pids) >= 3
    until = time.monotonic() + 5
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(running, pids))


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- Invalid values


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"isolation": "none"}, "isolation"),
        ({"results": "json"}, "results"),
        ({"timeout": -1}, "timeout"),
        ({"initializer": 5}, "initializer"),
        ({"no_new_privs": False}, "confinement"),
        ({"namespaces": Namespaces(pid="host")}, "pid namespace"),
        ({"hostnmae": "x"}, "hostnmae"),
        ({"preload": "numpy"}, "preload"),
    ],
)
def test_refused_before_anything_is_made(options, told):
    with pytest.raises(SpecError, match=told):
        ContainerExecutor(1, **options)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"python": "no-such-python"}, "no-such-python"), ({"preload": ["no_such_module"]}, "no_such")],
)
def test_zygote_that_does_not_start(options, told):
    with pytest.raises((SetupError, FileNotFoundError), match=told):
        ContainerExecutor(1, **options)


def test_zygote_sees_no_process_of_the_host(tmp_path):
    (tmp_path / "looks.py").write_text("import os\nseen = sorted(os.listdir('/proc'))\n")

    def look():
        import looks

        return looks.seen

    with ContainerExecutor(1, preload=["looks"], path=[tmp_path]) as made:
        assert made.submit(look).result() == []
        assert "self" in made.submit(os.listdir, "/proc").result()


def test_zygote_by_itself():
    program = "def main(sock):\n    sock.sendall(b'hello ' + sock.recv(100))\n"
    with Zygote(program) as zygote:
        for _ in range(3):
            forked = zygote.fork()
            assert isinstance(forked, executor.Forked)
            forked.sock.sendall(b"you")
            assert forked.sock.recv(100) == b"hello you"
            assert forked.end().returncode in (0, -signal.SIGKILL)
            forked.close()


def test_all_of_it_is_loaded_late():
    code = (
        "import sys, containerkit; print(*(name for name in sys.modules if 'executor' in name or 'concurrent' in name))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
    assert {executor.RemoteError, executor.TaskFuture} <= {getattr(executor, name) for name in executor.__all__}
