"""Containers for asyncio, modelled on CPython's test_asyncio/test_subprocess, with a cancellation at every await."""

import asyncio
import collections.abc
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from image_registry import REGISTRY, registry
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

import containerkit
from containerkit import (
    DEVNULL,
    PIPE,
    STDOUT,
    Attach,
    Container,
    ContainerTimeout,
    ExitError,
    Limits,
    Network,
    SpecError,
    StateError,
    aio,
)
from containerkit.image import Image, Store

pytestmark = pytest.mark.usefixtures("nothing_left")

CAT = ["python3", "-c", "import sys; sys.stdout.write(sys.stdin.read())"]
FOREVER = ["sleep", "1000"]
SHORT_S = 0.2
MARK = f"020417{os.getpid()}"  # unique among simultaneous runs


@pytest.fixture(scope="module", autouse=True)
def warm():
    """Create the objects that a process creates once and keeps."""
    if os.geteuid() == 0:
        with Container(limits=Limits(memory="100M")):
            pass
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(aio.run(["true"]))


def uvloop_factory():
    uvloop = pytest.importorskip("uvloop")
    return uvloop.new_event_loop


LOOPS = {"asyncio": lambda: asyncio.new_event_loop, "uvloop": uvloop_factory}


@pytest.fixture(params=LOOPS)
def go(request):
    """Return a function that runs a coroutine in a loop of one kind."""
    factory = LOOPS[request.param]()

    def run(coroutine):
        with asyncio.Runner(loop_factory=factory, debug=False) as runner:
            return runner.run(coroutine)

    return run


def alive(marker):
    """Return the processes of this machine whose arguments contain a text."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if marker.encode() in file.read() and int(pid) != os.getpid():
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# --- run


@pytest.mark.parametrize("text", [True, False])
def test_run_returns_what_the_blocking_one_does(go, text):
    given = "line\n" * 50_000
    command = ["sh", "-c", "cat; echo told >&2; exit 3"]
    options = {"text": text, "input": given if text else given.encode()}
    done, same = go(aio.run(command, **options)), containerkit.run(command, **options)
    assert (same.args, same.returncode, same.stdout, same.stderr, same.cause) == (
        done.args, done.returncode, done.stdout, done.stderr, done.cause,
    )  # fmt: skip
    assert done.duration_s > 0


def test_run_in_a_container(go):
    async def main():
        async with aio.AsyncContainer() as c:
            first, second = await asyncio.gather(c.run(["echo", "one"], text=True), c.run(["echo", "two"], text=True))
            return first.stdout + second.stdout

    assert go(main()) == "one\ntwo\n"


@pytest.mark.several_ids
def test_run_with_the_users_of_the_container(go):
    done = go(aio.run(["id", "-un"], text=True, user="nobody"))
    assert done.stdout == "nobody\n"


def test_run_in_a_terminal(go):
    done = go(aio.run(["sh", "-c", "stty size; tty"], text=True, pty=(11, 22)))
    assert done.stdout.splitlines() == ["11 22", "/dev/pts/0"]


@pytest.mark.parametrize("where", ["alone", "container"])
def test_run_timeout_kills_and_keeps_what_was_said(go, where):
    async def main():
        command, options = ["sh", "-c", "echo early; sleep 1000"], {"text": True, "timeout": SHORT_S}
        if where == "alone":
            return await aio.run(command, **options)
        async with aio.AsyncContainer() as c:
            return await c.run(command, **options)

    with pytest.raises(ContainerTimeout) as caught:
        go(main())
    assert caught.value.stdout == "early\n"
    assert caught.value.result.cause == "timeout"


@pytest.mark.parametrize("limit", [0, 1, 70_000])
def test_run_ends_what_writes_too_much(go, limit):
    done = go(aio.run(["yes"], output_limit_bytes=limit))
    assert done.cause == "output"
    assert len(done.stdout) == limit
    assert done.returncode == -signal.SIGKILL


def test_run_of_as_much_as_is_allowed_goes_on(go):
    done = go(aio.run(["sh", "-c", f"printf 12345; sleep {SHORT_S}; exit 7"], output_limit_bytes=5))
    assert (b"12345", 7, "exit") == (done.stdout, done.returncode, done.cause)


def test_run_check(go):
    with pytest.raises(ExitError, match="told") as caught:
        go(aio.run(["sh", "-c", "echo told >&2; exit 5"], check=True))
    assert caught.value.returncode == 5


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["true"], {"timeout": -1}),
        (["true"], {"tiemout": 1}),
        (["true"], {"input": "text"}),
        (["true"], {"input": b"x", "stdin": DEVNULL}),
        ("true", {}),
        (["true"], {"init": 1}),
    ],
)
def test_run_refuses(go, argv, options):
    with pytest.raises(SpecError):
        go(aio.run(argv, **options))


def test_missing_program(go):
    with pytest.raises(FileNotFoundError):
        go(aio.run(["no-such-program"]))


def test_input_that_nobody_reads(go):
    done = go(aio.run(["true"], input=b"x" * 1_000_000))
    assert done.returncode == 0


def test_output_without_capture(go, capfd):
    done = go(aio.run(["echo", "shared"], capture_output=False))
    assert (done.stdout, capfd.readouterr().out) == (None, "shared\n")


@pytest.mark.root
def test_run_reports_memory(go):
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")
    code = "x = bytearray(200_000_000)"
    done = go(aio.run(["python3", "-S", "-c", code], limits=Limits(memory="50M")))
    assert done.cause == "oom"
    assert done.usage.memory_limit_bytes == 50 * 2**20


# --- popen


def test_popen_talks(go):
    async def main():
        async with aio.popen(CAT, stdin=PIPE, stdout=PIPE) as p:
            p.stdin.write(b"some data")
            await p.stdin.drain()
            p.stdin.close()
            return await p.stdout.read(), await p.wait()

    assert go(main()) == (b"some data", 0)


def test_popen_is_awaited_or_entered(go):
    async def main():
        opening = aio.popen(["true"])
        assert isinstance(opening, aio.Opening)
        async with await opening as p:
            assert isinstance(p, aio.AsyncProcess)
            assert p.args == ["true"]
            return repr(p)

    assert go(main()).startswith("<AsyncProcess ")


def test_popen_lines_as_they_come(go):
    async def main():
        async with aio.popen(["sh", "-c", f"echo one; sleep {SHORT_S}; echo two"], stdout=PIPE) as p:
            return [(line, time.monotonic()) async for line in p.stdout]

    (first, sooner), (second, later) = go(main())
    assert (b"one\n", b"two\n") == (first, second)
    assert later - sooner > SHORT_S / 2


def test_communicate(go):
    async def main():
        p = await aio.popen(CAT, stdin=PIPE, stdout=PIPE, stderr=PIPE)
        try:
            out, err = await p.communicate(b"data" * 100_000)
        finally:
            await p.aclose()
        return out, err, p.returncode

    assert go(main()) == (b"data" * 100_000, b"", 0)


def test_communicate_ignores_a_broken_pipe(go):
    async def main():
        async with aio.popen(["true"], stdin=PIPE, stdout=PIPE) as p:
            return await p.communicate(b"x" * 5_000_000)

    assert go(main()) == (b"", None)


def test_communicate_ends_with_the_process(go):
    async def main():
        async with (
            aio.AsyncContainer() as c,
            c.popen(["sh", "-c", "echo said; setsid sleep 1000 & exit 0"], stdout=PIPE) as p,
        ):
            return await asyncio.wait_for(p.communicate(), 5)

    assert go(main())[0] == b"said\n"


def test_stderr_of_stdout(go):
    async def main():
        async with aio.popen(["sh", "-c", "echo a; echo b >&2"], stdout=PIPE, stderr=STDOUT) as p:
            return await p.stdout.read()

    assert go(main()) == b"a\nb\n"


def test_line_that_is_too_long(go):
    async def main():
        async with aio.popen(["sh", "-c", "head -c 5000 /dev/zero"], stdout=PIPE, line_limit_bytes=100) as p:
            with pytest.raises(ValueError, match="limit"):
                await p.stdout.readline()
            return len(await p.stdout.read()) <= 5000

    assert go(main())


@pytest.mark.parametrize(("send", "number"), [("kill", signal.SIGKILL), ("terminate", signal.SIGTERM)])
def test_signals(go, send, number):
    async def main():
        async with aio.AsyncContainer() as c, c.popen(FOREVER) as p:
            getattr(p, send)()
            return await p.wait(), p.cause

    assert go(main()) == (-number, "signal")


def test_wait_of_several_tasks_and_again(go):
    async def main():
        async with aio.popen(["sh", "-c", "exit 4"]) as p:
            first = await asyncio.gather(p.wait(), p.wait(), p.wait())
            return [*first, await p.wait(), p.returncode]

    assert go(main()) == [4] * 5


def test_wait_that_is_cancelled_leaves_it_alone(go):
    async def main():
        async with aio.popen(["sh", "-c", f"sleep {3 * SHORT_S}; exit 6"]) as p:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(p.wait(), SHORT_S)
            return p.returncode, await p.wait()

    assert go(main()) == (None, 6)


def test_exception_kills_it(go):
    async def main():
        async with aio.AsyncContainer() as c:
            with pytest.raises(RuntimeError, match="mine"):
                async with c.popen(FOREVER) as p:
                    raise RuntimeError("mine")
            return p.returncode

    assert go(main()) == -signal.SIGKILL


def test_popen_refuses(go):
    for options in ({"encoding": "no such"}, {"line_limit_bytes": 0}, {"stdin": "nothing"}, {"timeout": 5}):
        with pytest.raises(SpecError):
            go(opened(options))


async def opened(options):
    await aio.popen(["true"], **options)


def test_popen_of_text(go):
    script = "printf 'Gr\\303'; sleep 0.05; printf '\\274n\\r\\nzwei\\n'; read x; echo \"$x\" >&2; printf rest"

    async def main():
        async with aio.AsyncContainer() as c:
            async with c.popen(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as p:
                assert isinstance(p, aio.AsyncTextProcess)
                first = [await p.stdout.readline(), await p.stdout.read(2), await p.stdout.readline()]
                assert first == ["Gr\u00fcn\n", "zw", "ei\n"]
                p.stdin.write("\u00e4\n")
                await p.stdin.drain()
                assert [line async for line in p.stderr] == ["\u00e4\n"]
                assert [line async for line in p.stdout] == ["rest"]
                assert p.stdout.at_eof()
                assert await p.stdout.readline() == await p.stdout.read() == ""
            async with c.popen(CAT, stdin=PIPE, stdout=PIPE, encoding="utf-16") as p:
                assert await p.communicate("\u20ac\n") == ("\u20ac\n", None)
            async with c.popen(CAT, stdin=PIPE, stdout=PIPE, text=True) as p:
                with pytest.raises(SpecError, match="must be str"):
                    await p.communicate(b"bytes")
            async with c.popen(["printf", "\\377\\n"], stdout=PIPE, text=True) as p:
                with pytest.raises(UnicodeDecodeError):
                    await p.stdout.readline()
            async with c.popen(["printf", "\\377"], stdout=PIPE, errors="replace") as p:
                assert await p.stdout.read() == "\ufffd"
            async with c.popen(["head", "-c", "5000", "/dev/zero"], stdout=PIPE, text=True, line_limit_bytes=100) as p:
                with pytest.raises(ValueError, match="line_limit_bytes"):
                    await p.stdout.readline()

    go(main())


def test_popen_in_a_terminal(go):
    async def main():
        async with aio.popen(["sh", "-c", "read x; echo got $x"], pty=True) as p:
            p.stdin.write(b"line\n")
            return await p.stdout.read()

    assert go(main()).replace(b"\r", b"").splitlines()[-1] == b"got line"


def test_forgotten_container_is_warned_about_and_stopped():
    async def main():
        await aio.popen(["sleep", "1234.5"])

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        asyncio.run(main())
    assert any("never waited for" in str(each.message) for each in told)
    assert alive("1234.5") == []


# --- Containers


def test_life_of_a_container(go):
    async def main():
        c = aio.AsyncContainer(id="some-name")
        states = [c.state]
        async with c:
            states.append(c.state)
            assert c.pid == c.container.pid
            waiting = asyncio.ensure_future(c.wait())
            await asyncio.sleep(SHORT_S)
            assert not waiting.done()
            await c.stop()
            await waiting
        return [*states, c.state, c.id]

    assert go(main()) == ["created", "running", "stopped", "some-name"]


@pytest.mark.root
def test_pause(go):
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")

    async def main():
        async with aio.AsyncContainer() as c:
            await c.pause()
            paused = c.state
            await c.resume()
            return paused, c.state

    assert go(main()) == ("paused", "running")


def test_stop_with_patience_blocks_nobody(go):
    async def main():
        async with aio.AsyncContainer() as c:
            p = await c.popen(["sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done"], stdout=PIPE)
            await p.stdout.readline()
            ticks = 0
            stopping = asyncio.ensure_future(c.stop(grace_s=3 * SHORT_S))
            while not stopping.done():
                ticks += 1
                await asyncio.sleep(SHORT_S / 10)
            await stopping
            await p.aclose()
        return ticks

    assert go(main()) > 5


def test_container_of_another_making(go):
    async def main():
        with Container.prepare() as template:
            async with aio.AsyncContainer.of(template.container()) as c:
                assert (await c.run(["true"])).returncode == 0
            with Container() as sync:
                async with aio.AsyncContainer.of(sync) as c:
                    await c.run(["true"])
                return sync.state

    assert go(main()) == "stopped"


def test_files(go, tmp_path):
    async def main():
        async with aio.AsyncContainer() as c:
            await c.files.write("/tmp/a", "text")
            (tmp_path / "b").write_text("other")
            await c.files.put(tmp_path / "b", "/tmp/b")
            await c.files.get("/tmp/b", tmp_path / "c")
            assert isinstance(c.files, aio.AsyncFiles)
            assert await c.files.exists("/tmp/a")
            return (
                await c.files.read("/tmp/a"),
                await c.files.read_text("/tmp/b"),
                sorted(await c.files.listdir("/tmp")),
                (tmp_path / "c").read_text(),
            )

    assert go(main()) == (b"text", "other", ["a", "b"], "other")


@pytest.mark.root
def test_stats_events_and_limits(go):
    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")

    async def main():
        async with aio.AsyncContainer(limits=Limits(memory="200M")) as c:
            assert (await c.stats()).memory.limit_bytes == 200 * 2**20
            await c.update(Limits(memory="60M"))
            told = []

            async def watch():
                with c.events(["oom_kill"]) as events:
                    async for event in events:
                        told.append(event.kind)
                        return

            async def count():
                return [each async for each in c.every(SHORT_S)]

            watching, counting = asyncio.ensure_future(watch()), asyncio.ensure_future(count())
            await asyncio.sleep(SHORT_S)
            done = await c.run(["python3", "-S", "-c", "x = bytearray(200_000_000)"])
            await asyncio.wait_for(watching, 10)
            await asyncio.sleep(2 * SHORT_S)
        assert (await counting)[0].memory.limit_bytes == 60 * 2**20
        return told, done.cause

    assert go(main()) == (["oom_kill"], "oom")


def test_container_without_a_group_refuses(go):
    async def main():
        async with aio.AsyncContainer() as c:
            with pytest.raises(StateError, match="Limits"):
                c.events()
            with pytest.raises(SpecError):
                await anext(c.every(0))
            with pytest.raises(StateError, match="Limits"):
                await c.stats()

    go(main())


def test_call_is_seen_through(go):
    seen = []

    def slow():
        time.sleep(SHORT_S)
        seen.append("through")
        return threading.current_thread().name

    async def main():
        name = await aio.call(slow)
        task = asyncio.ensure_future(aio.call(slow))
        await asyncio.sleep(SHORT_S / 4)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return name, list(seen)

    name, through = go(main())
    assert name.startswith("containerkit")
    assert through == ["through", "through"]


# --- Images


@pytest.fixture(scope="module")
def pulled_from(tmp_path_factory):
    """A registry with an image. Return the image's name there."""
    if REGISTRY is None or not os.path.exists(BUSYBOX):
        pytest.skip("needs Debian's packages docker-registry and busybox-static")
    made = tmp_path_factory.mktemp("registry")
    busybox_root(made / "root")
    with registry(made / "registry") as host:
        Image.from_directory(made / "root", store=Store(made / "store")).push(f"{host}/library/small:1")
        yield f"{host}/library/small:1"


def test_pull(go, tmp_path, pulled_from):
    async def main():
        store = Store(tmp_path / "store")
        steps = []
        image = await aio.pull(pulled_from, store=store, progress=steps.append)
        assert steps
        return image.digest, [each.digest for each in await aio.call(Image.list, store)]

    pulled, listed = go(main())
    assert listed == [pulled]


def test_pull_that_is_cancelled_ends(go, tmp_path, pulled_from):
    async def main():
        store = Store(tmp_path / "store")
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(
            aio.pull(
                pulled_from, store=store, progress=lambda _: (loop.call_soon_threadsafe(task.cancel), time.sleep(0.2))
            )
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        return Image.list(store)

    assert go(main()) == []


# --- Cancelling


class Cancelling(collections.abc.Coroutine):
    """A coroutine whose task is cancelled at a certain wait, and again at the following ones.

    Args:
        coroutine: the coroutine.
        at: the number of the wait, from 1.
        times: the number of cancellations.
    """

    def __init__(self, coroutine, at, times):
        self.coroutine, self.at, self.times = coroutine, at, times
        self.waits = 0
        self.task = None

    def send(self, value):
        return self._look(self.coroutine.send(value))

    def throw(self, *error):
        return self._look(self.coroutine.throw(*error))

    def close(self):
        return self.coroutine.close()

    def __await__(self):
        raise NotImplementedError

    def _look(self, awaited):
        self.waits += 1
        if self.at <= self.waits < self.at + self.times:
            asyncio.get_running_loop().call_soon(self.task.cancel)
        return awaited


async def in_container():
    async with aio.AsyncContainer() as c:
        await c.run(["sh", "-c", f"exec sleep 0.{MARK}"], input=b"x" * 200_000)
        async with c.popen(["sleep", f"0.{MARK}"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as p:
            await p.communicate(b"given")
        await c.files.write("/tmp/x", "y")


async def talking():
    p = await aio.popen(["sleep", f"0.{MARK}"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    await p.communicate(b"given")


async def talking_in_text():
    async with aio.popen(["sh", "-c", f"echo said; exec sleep 0.{MARK}"], stdin=PIPE, stdout=PIPE, text=True) as p:
        with contextlib.suppress(BrokenPipeError):  # on a busy machine the command has ended by then
            p.stdin.write("heard")
            await p.stdin.drain()
        assert [line async for line in p.stdout] == ["said\n"]


async def in_all_states():
    async with aio.AsyncContainer(limits=Limits(memory="100M", pids=20)) as c, c.popen(["sleep", f"9.{MARK}"]) as p:
        await c.stats()
        async for _ in c.every(0.001):
            break
        with c.events(["oom_kill"]) as events, contextlib.suppress(TimeoutError):
            await asyncio.wait_for(anext(events), 0.01)
        await c.update(Limits(memory="100M", pids=30))
        await c.pause()
        await c.resume()
        await c.run(["echo", "logged"], stdout=c.log)
        await c.logs()
        await c.files.listdir("/tmp")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(c.wait(), 0.01)
        await c.stop()
        await p.wait()


async def in_a_network():
    async with aio.OpenNetwork(Network("cancelled", internal=True)) as net, aio.AsyncContainer(network=net) as c:
        await c.run(["sleep", f"0.{MARK}"])


SCENES = {
    "run": lambda: aio.run(["sleep", f"0.{MARK}"]),
    "run, looked up inside": lambda: aio.run(["sleep", f"0.{MARK}"], user="nobody"),
    "run that is over its time": lambda: aio.run(["sleep", f"9.{MARK}"], timeout=0.01),
    "popen": talking,
    "container": in_container,
    "popen of text": talking_in_text,
}
SCENES_OF_ROOT = {"states": in_all_states, "network": in_a_network}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    "scene", [pytest.param(name, marks=[pytest.mark.several_ids] if "looked" in name else []) for name in SCENES]
)
def test_cancellation_at_every_await(go, scene, times):
    assert go(cancelled_at_each(SCENES[scene], times, late="time" in scene)) >= 2


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
@pytest.mark.parametrize("scene", SCENES_OF_ROOT)
def test_cancellation_at_every_await_of_a_container(go, scene, left_of):
    cancelled = []
    left = left_of(lambda: cancelled.append(go(cancelled_at_each(SCENES_OF_ROOT[scene], 1))))
    assert left == {}
    assert cancelled[0] >= 4


async def cancelled_at_each(make, times, *, late=False):
    """Cancel a task at its first wait, another at its second, and so on. Return how many were cancelled."""
    cancelled = at = 0
    while True:
        at += 1
        body = Cancelling(make(), at, times)
        body.task = asyncio.get_running_loop().create_task(body)
        try:
            await body.task
        except asyncio.CancelledError:
            cancelled += 1
        except ContainerTimeout:
            assert late
        assert alive(MARK) == []  # dead and reaped before CancelledError is raised
        if body.waits < at:
            return cancelled


def test_cancellation_by_a_group_of_tasks(go):
    async def failing():
        await asyncio.sleep(SHORT_S)
        raise RuntimeError("mine")

    async def main():
        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for _ in range(10):
                    group.create_task(aio.run(["sleep", f"31.9{MARK}"]))
                group.create_task(failing())
        return alive(f"31.9{MARK}")

    assert go(main()) == []


def test_timeout_of_asyncio(go):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(SHORT_S):
                await aio.run(["sleep", f"31.8{MARK}"])
        return alive(f"31.8{MARK}")

    assert go(main()) == []


def test_interrupt_ends_all():
    mark = f"314.{os.getpid()}"
    code = (
        "import asyncio; from containerkit import aio\n"
        "async def main():\n"
        "    print('up', flush=True)\n"
        f"    await asyncio.gather(*(aio.run(['sleep', '{mark}']) for _ in range(5)))\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=PIPE, stderr=PIPE) as child:
        child.stdout.readline()
        wait_for(lambda: len(alive(mark)) >= 6)  # with the program itself
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=60)
    assert b"KeyboardInterrupt" in err
    wait_for(lambda: alive(mark) == [])


# --- Cost


def test_those_that_wait_take_no_thread_each(go):
    async def main():
        before = threading.active_count()
        tasks = [asyncio.ensure_future(aio.run(["sleep", "1"])) for _ in range(100)]
        await asyncio.sleep(0.7)
        during = threading.active_count()
        done = await asyncio.gather(*tasks)
        return during - before, {each.returncode for each in done}

    more, codes = go(main())
    assert more <= 16
    assert codes == {0}


def test_import_is_cheap():
    code = "import sys, containerkit; before = set(sys.modules); import containerkit.aio; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["containerkit.aio"]


def test_import_of_the_package_loads_none_of_it():
    code = "import sys, containerkit; print(*(name for name in sys.modules if 'aio' in name or 'asyncio' in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


# --- Networks


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root")
def test_networks(go):
    async def main():
        wanted = aio.OpenNetwork(Network("aio", internal=True))
        async with wanted as net:
            with pytest.raises(StateError):
                await wanted.__aenter__()
            server = aio.AsyncContainer(network=Attach(net, aliases=["db"]))
            async with server, aio.AsyncContainer(network=net) as client:
                found = await client.run(["getent", "ahostsv4", "db"], text=True, check=True)
                assert found.stdout.split()[0] in net.addresses(server.container)
        assert net.closed
        opening = asyncio.ensure_future(wanted.__aenter__())
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        async with wanted as net:  # nothing of the other is left
            assert not net.closed

    go(main())
    with pytest.raises(SpecError):
        aio.OpenNetwork("app")
