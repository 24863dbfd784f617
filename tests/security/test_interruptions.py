"""Signal handlers that raise at any moment: the operation is undone, and nothing is left behind.

No process inside causes this, but a program that embeds the library can, with a timeout of its own or Ctrl-C.
"""

import contextlib
import dis
import gc
import inspect
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from examples import examples

from containerkit import PIPE, Container, Limits, Namespaces, Network, StateError, popen, run
from containerkit.descriptors import close_all, keep
from containerkit.start import staging

pytestmark = pytest.mark.usefixtures("groups_found", "nothing_left")

ROUNDS = examples(ci=80, nightly=200)
"""How often each operation is interrupted at a random moment. Each step of a start is tried below, without chance."""


class InterruptError(Exception):
    """The exception of the handler."""


@pytest.fixture(scope="module")
def groups_found():
    """Find the place for control groups in advance, because a process does it only once."""
    if os.geteuid() == 0:
        run(["true"], limits=Limits(pids=20))


@pytest.fixture
def interrupt():
    """Return a function that runs an operation and raises in it after a delay. It returns whether it raised.

    It raises at most once. A signal that woke another thread may arrive in the next round, and undoing an interrupted
    start is not protected against another interruption.
    """
    due = []

    def ring(*_):
        if due:
            due.clear()
            raise InterruptError

    def within(delay_s, do):
        due.append(True)
        gc.disable()  # an exception of a handler in a function that runs at a collection is lost
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                do()
            finally:
                due.clear()
                signal.setitimer(signal.ITIMER_REAL, 0)
        except InterruptError:
            return True
        finally:
            gc.enable()
        return False

    former = signal.signal(signal.SIGALRM, ring)
    yield within
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


@pytest.fixture
def deadline():
    """End a test that hangs, and report where."""

    def ring(*_):
        pytest.fail("it hangs")

    former = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def a_run(_):
    run(["true"])


def a_first_run(_):
    """The first start makes the staging. For an unprivileged user it is made again when the machine's mounts change."""
    keeper = staging._keeper
    known = dict(keeper.kept)
    try:
        keeper.kept.clear()
        run(["true"])
    finally:  # objects are released only after the timer is off: an exception in a __del__ would be lost
        made.extend(keeper.kept.values())
        keeper.kept.update(known)


made = []


def a_command(container):
    container.run(["true"])


def a_piped_command(container):
    process = container.popen(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:  # a handler can run before the end of 'with' or before 'finally'
        process.communicate(b"x")
        process.close()
    except BaseException:
        process.close()
        raise


def a_fed_command(container):
    container.run(["cat"], input=b"x")


def a_life(_):
    container = Container()
    try:
        container.start()
        container.run(["true"])
        container.stop()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        container.stop()


@pytest.fixture
def copies(tmp_path):
    """Return functions that copy a tree into a container and out of it, and walk down and back in the same way."""
    place = tmp_path / "tree"
    for name in ("a", "b"):
        below = place / "/".join(name * 20)  # deeper than the number of directories that a walk keeps open
        below.mkdir(parents=True)
        (below / "file").write_bytes(b"x")
    numbers = itertools.count()

    def put(container):
        container.files.put(place, "/tmp/tree")

    def get(container):
        container.files.get("/tmp/got", tmp_path / f"got{next(numbers)}")

    return {"put": put, "get": get, "tree": place}


def typical_s(do):
    began = time.perf_counter()
    for _ in range(5):
        do()
    return (time.perf_counter() - began) / 5


# Between open() and "with" nobody holds a file but its last reference, which closes it, with a warning.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("kind", [a_run, a_first_run, a_command, a_fed_command, a_piped_command, a_life])
def test_interrupted_operation_leaves_nothing(kind, interrupt, left_of):
    moments = random.Random(kind.__name__)
    hits: list[bool] = []
    with Container() as container:
        kind(container)  # creates what is created only once

        def work():
            for number in range(ROUNDS):
                if number % 20 == 0:  # the load of the machine changes
                    span_s = typical_s(lambda: kind(container))
                hits.append(interrupt(max(1e-6, moments.random() * span_s), lambda: kind(container)))
                made.clear()

        assert {} == left_of(work)
        assert sum(hits) > ROUNDS / 4
        assert b"on\n" == container.run(["echo", "on"]).stdout
        began = time.monotonic()
    assert time.monotonic() - began < 20, "stop() waits for nobody who is gone"


# --- The same without chance: an exception at each step


CHECKED = {
    opcode for name, opcode in dis.opmap.items() if name.startswith(("CALL", "JUMP_BACKWARD", "POP_JUMP_BACKWARD"))
}
"""After these Python looks whether a handler is due, and where a function begins; after calls that C makes alone."""
STRIDE = 5
"""Every so many of them are tried: some hundred in each kind of start."""
STRIDE_ON_A_NETWORK = examples(ci=31, nightly=7)


class Interrupting:
    """A trace function that raises at one of the steps after which a handler could have run.

    That is stricter than Python is: a function of Python that returns to another is no such step, but counts here.
    """

    def __init__(self, number):
        self.left = number
        self.where = None
        self.last = {}

    def __call__(self, frame, event, _):
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
            if not frame.f_code.co_flags & inspect.CO_GENERATOR:  # nor is one asked for where a generator is closed
                self.count(frame)
        elif event == "opcode":
            before, self.last[frame] = self.last.get(frame), frame.f_lasti
            if before is not None and frame.f_code.co_code[before] in CHECKED:
                self.count(frame)
        elif event == "return":
            self.last.pop(frame, None)
        return self

    def count(self, frame):
        if frame.f_code.co_filename == __file__:  # what is here has no owner for what it was given
            return
        self.left -= 1
        if self.left == 0:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
            sys.settrace(None)
            raise InterruptError(self.where)


def interrupted_at(number, do):
    """Run an operation in which an exception is raised at a step. Return the trace function: its ``where`` is None if
    the operation has fewer steps."""
    former = sys.gettrace()
    interrupting = Interrupting(number)
    try:
        sys.settrace(interrupting)
        do()
    except InterruptError:
        pass
    finally:
        sys.settrace(former)
    return interrupting


def started_alone(_):
    born = []
    try:
        keep(born, lambda argv: popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE), ["cat"])
        born[0].communicate(b"x")
        born[0].close()
    except BaseException:
        for process in born:
            process.close()
        raise


def fed_alone(_):
    run(["cat"], input=b"x")


def limited_alone(_):
    run(["true"], limits=Limits(pids=20))


def started_in_a_container(container):
    born = []
    try:
        keep(born, lambda argv: container.popen(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE), ["cat"])
        born[0].communicate(b"x")
        born[0].close()
    except BaseException:
        for process in born:
            process.close()
        raise


def open_resources():
    """Return all descriptors, by number, and all children of this process."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    found = {name: target for name, target in found.items() if not target.startswith(f"/proc/{os.getpid()}/")}
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return found, set(file.read().split())


def stays(before):
    """Return new descriptors and children. Wait a little for the kernel to reap processes."""
    deadline = time.monotonic() + 20
    while True:
        descriptors, children = open_resources()
        left = {name: target for name, target in descriptors.items() if before[0].get(name) != target}
        if (not left and children <= before[1]) or time.monotonic() > deadline:
            return left, children - before[1]
        time.sleep(0.01)


by_root = pytest.mark.skipif(os.geteuid() != 0, reason="limits: root")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the instructions are those of Python 3.11")
@by_root
def test_group_of_an_interrupted_command_is_removed_with_its_container(groups_found):
    """While the container lives, the group may stay with its descriptors. The check for leaks comes afterwards."""
    with Container(limits=Limits(pids=50)) as container:
        container.run(["true"])
        for number in range(1, 10_000, 7 * STRIDE):
            if interrupted_at(number, lambda: container.run(["true"])).where is None:
                break
    assert number > 200


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the instructions are those of Python 3.11")
@pytest.mark.parametrize(
    "kind",
    [
        started_alone,
        fed_alone,
        pytest.param(limited_alone, marks=by_root),
        started_in_a_container,
        a_fed_command,
        a_command,
    ],
)
def test_start_interrupted_at_any_step_leaves_nothing(kind, groups_found):
    left = {}
    with Container() as container:
        for _ in range(3):
            kind(container)
        gc.disable()  # an exception in a function that runs at a collection is lost
        try:
            for number in range(random.Random(kind.__name__).randint(1, STRIDE), 10_000, STRIDE):
                before = open_resources()
                interrupting = interrupted_at(number, lambda: kind(container))
                if interrupting.where is None:
                    break
                if any(found := stays(before)):
                    left[interrupting.where] = found
        finally:
            gc.enable()
        assert {} == left
        assert number > 200, "the way is longer than that"
        assert b"on\n" == container.run(["echo", "on"]).stdout


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the instructions are those of Python 3.11")
@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="root, whose networks are made beside the start")
# The end of an object takes up an interrupted stop(), and a step may be in it.
@pytest.mark.filterwarnings("ignore:.*was never stopped:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_start_on_a_network_interrupted_at_any_step_releases_its_address():
    left = {}
    with Network("interrupted", internal=True).open() as net:

        def start():
            born = []
            try:
                keep(born, lambda wishes: Container(network=wishes).start(), net)
            finally:
                while born:
                    born.pop().stop()

        for _ in range(3):
            start()
        gc.disable()
        try:
            for number in range(1, 10_000, STRIDE_ON_A_NETWORK):
                before = open_resources()
                interrupting = interrupted_at(number, start)
                if interrupting.where is None:
                    break
                interrupting.last.clear()  # the frames, with what nobody else holds any more
                if any(found := (*stays(before), list(net._claims))):
                    left[interrupting.where] = found
        finally:
            gc.enable()
    assert {} == left
    assert number > 1000, "the way is longer than that"


IN_AUDIT_HOOK = """
import os, sys
from containerkit import run

class InterruptError(Exception):
    pass

def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], int):  # a file of a descriptor
        left.append(left.pop() - 1)
        if left == [0]:
            raise InterruptError

def there_is():
    return len(os.listdir("/proc/self/fd"))

run(["cat"], input=b"x")
left = [0]
sys.addaudithook(hook)
for number in range(1, 10):
    before = there_is()
    left[:] = [number]
    try:
        run(["cat"], input=b"x")
        break
    except InterruptError:
        left[:] = [0]
        assert there_is() == before, (number, before, there_is())
print("interrupted:", number - 1)
"""


def test_command_interrupted_in_an_audit_hook_leaves_nothing():
    """A hook of the program runs while C makes files of the ends of the pipes, and a signal handler in the hook."""
    done = subprocess.run([sys.executable, "-c", IN_AUDIT_HOOK], capture_output=True, text=True, timeout=60)
    assert ("", "interrupted: 3\n") == (done.stderr, done.stdout)


@pytest.mark.parametrize("kind", ["put", "get"])
def test_interrupted_copy_leaves_no_descriptor(kind, copies, interrupt):
    moments = random.Random(kind)
    with Container() as container:
        container.files.put(copies["tree"], "/tmp/got")
        hits = []
        copies[kind](container)
        before = os.listdir("/proc/self/fd")
        for number in range(ROUNDS):
            if number % 20 == 0:
                span_s = typical_s(lambda: copies[kind](container))
            hits.append(interrupt(max(1e-6, moments.random() * span_s), lambda: copies[kind](container)))
        assert before == os.listdir("/proc/self/fd")
        assert sum(hits) > ROUNDS / 4
        copies[kind](container)


def test_descriptor_has_an_owner_from_the_moment_it_is_made(interrupt):
    """A handler can run between a call and the assignment of its result, but not before a list has the result."""
    named: list[int] = []
    kept: list[int] = []

    def bare():
        for _ in range(100_000):
            fd = os.open("/dev/null", os.O_RDONLY)
            named[:] = [fd]
            del named[:]
            os.close(fd)

    def owned():
        for _ in range(100_000):
            keep(kept, os.open, "/dev/null", os.O_RDONLY)
            close_all(kept)

    def numbers():
        return {int(name) for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}

    def left_by(do):
        before = numbers()
        for _ in range(500):
            assert interrupt(0.0003, do)
            close_all(kept)
        left = numbers() - before
        for fd in left:
            os.close(fd)
        return left

    assert len(left_by(bare)) > 20, "the control"
    assert set() == left_by(owned)


@pytest.mark.parametrize("delay_ms", [0.3, 1, 2, 20])
def test_container_of_an_interrupted_command_is_stopped_while_the_error_propagates(interrupt, delay_ms):
    """The end of ``with`` runs while the error and the objects in its frames are still referenced."""

    def work():
        with Container() as container:
            signal.setitimer(signal.ITIMER_REAL, delay_ms / 1000)
            container.run(["sleep", "30"])

    began = time.monotonic()
    for _ in range(20):
        assert interrupt(30, work)
    assert time.monotonic() - began < 20


def test_handler_may_stop_the_container_of_a_running_command(deadline):
    container = Container().start()
    former = signal.signal(signal.SIGUSR1, lambda *_: container.stop())
    try:
        threading.Timer(0.2, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)).start()
        done = container.run(["sh", "-c", "echo begun; sleep 30"])
    finally:
        signal.signal(signal.SIGUSR1, former)
    assert (-signal.SIGKILL, b"begun\n") == (done.returncode, done.stdout)
    with pytest.raises(StateError):
        container.run(["true"])


# --- Containers in the pid namespace of another one


def in_its_pid_namespace(container, **more):
    return Container(namespaces=Namespaces(pid=container.namespace("pid")), **more)


def test_container_whose_pid_namespace_another_shares_is_stopped_first(deadline):
    """The kernel ends PID 1 only after all others in its namespace are reaped, and we must reap those."""
    first = Container().start()
    second = in_its_pid_namespace(first).start()
    sleeper = second.popen(["sleep", "100"])
    began = time.monotonic()
    first.stop()
    assert time.monotonic() - began < 20
    assert -signal.SIGKILL == sleeper.wait()
    assert "stopped" == second.state
    second.stop()


@pytest.mark.several_ids
def test_container_is_stopped_although_another_in_its_pid_namespace_is_frozen(deadline):
    first = Container().start()
    second = in_its_pid_namespace(first, limits=Limits(pids=20)).start()
    sleeper = second.popen(["sleep", "100"])
    second.pause()
    first.stop()
    assert -signal.SIGKILL == sleeper.wait()
    second.stop()


def test_pidfd_of_init_stays_open_until_its_container_is_released(deadline):
    """Otherwise a thread that starts a command could join another object with the same descriptor number."""
    first = Container().start()
    second = in_its_pid_namespace(first).start()
    pidfd = second.fileno()
    of_init = os.fstat(pidfd)
    first.stop()  # reaps the init of the second, which is not stopped
    assert "stopped" == second.state
    assert os.path.samestat(of_init, os.fstat(pidfd))
    with pytest.raises(StateError):
        second.run(["true"])
    second.stop()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(pidfd)


def test_container_is_stopped_while_others_keep_starting_in_its_pid_namespace(deadline):
    first = Container().start()
    errors = []

    def work():
        try:
            while True:
                with in_its_pid_namespace(first) as guest:
                    guest.run(["true"])
        except (StateError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    first.stop()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(threads) == len(errors)
