"""Containers from many threads, many containers, and large or busy programs."""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from containerkit import Container, SetupError, run

pytestmark = pytest.mark.usefixtures("nothing_left")


def free_memory():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))


@contextlib.contextmanager
def chatter():
    """A second thread prints continuously, so it may hold locks of stdio and of the interpreter at any moment."""
    stop = threading.Event()
    count = [0]
    with open(os.devnull, "w", buffering=1) as sink:

        def talk():
            while not stop.is_set():
                print("all the while", count[0], file=sink)
                count[0] += 1

        thread = threading.Thread(target=talk)
        thread.start()
        try:
            yield count
        finally:
            stop.set()
            thread.join()


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_thousand_containers_one_after_another():
    for _ in range(50):
        run(["true"])
    before = resident()
    with chatter() as count:
        for number in range(1000):
            done = run(["sh", "-c", f"exit {number % 200}"])
            assert number % 200 == done.returncode
    assert count[0] > 1000
    assert resident() - before < 8 * 1024 * 1024


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_hundred_alive_at_once_from_sixteen_threads():
    alive = []
    lock = threading.Lock()

    def start(number):
        container = Container().start()
        with lock:
            alive.append(container)
        return container.run(["sh", "-c", f"echo {number}"], text=True).stdout

    with chatter() as count, ThreadPoolExecutor(16) as pool:
        try:
            said = list(pool.map(start, range(200)))
            assert [f"{number}\n" for number in range(200)] == said
            assert 200 == len({container.pid for container in alive})
            assert {"running"} == {container.state for container in alive}
            again = list(pool.map(lambda container: container.run(["true"]).returncode, alive))
            assert [0] * 200 == again
        finally:
            list(pool.map(lambda container: container.stop(), alive))
    assert count[0] > 1000


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_program_with_a_large_heap():
    """4 GB if the machine has enough memory. The time of a start must not depend on it."""
    size = min(4 * 1024**3, free_memory() // 3)
    if size < 256 * 1024**2:
        pytest.skip("less than 768 MB of memory is free")
    code = (
        "import sys, time, threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "import containerkit as c\n"
        "def measure():\n"
        "    times = []\n"
        "    for _ in range(60):\n"
        "        began = time.perf_counter(); c.run(['/bin/true']); times.append(time.perf_counter() - began)\n"
        "    return min(times)\n"
        "measure(); small = measure()\n"
        "heap = bytearray(int(sys.argv[1]))\n"
        "for at in range(0, len(heap), 4096): heap[at] = 1\n"
        "large = measure()\n"
        "with ThreadPoolExecutor(16) as pool: print(sum(pool.map(lambda _: c.run(['true']).returncode == 0, range(200))))\n"
        "print(large / small)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(size)], capture_output=True, text=True, check=True)
    good, ratio = done.stdout.split()
    assert "200" == good
    assert float(ratio) < 1.6  # a busy machine; the benchmarks hold the promised 1.1


def test_threads_that_end_leave_their_containers_alive():
    boxes = []
    thread = threading.Thread(target=lambda: boxes.append(Container().start()))
    thread.start()
    thread.join()
    process = []
    thread = threading.Thread(target=lambda: process.append(boxes[0].popen(["sleep", "30"])))
    thread.start()
    thread.join()
    time.sleep(0.1)
    try:
        assert None is process[0].poll()
        assert 0 == boxes[0].run(["true"]).returncode
    finally:
        boxes[0].stop()


def test_threads_that_end_give_back_their_stacks():
    def vms():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGESIZE")

    def many():
        for _ in range(30):
            thread = threading.Thread(target=run, args=(["true"],))
            thread.start()
            thread.join()

    many()
    before = vms()
    many()
    many()
    assert vms() - before < 4 * 1024 * 1024


def test_starts_from_threads_while_others_fork():
    """With plain subprocesses at the same time: they inherit no descriptor of a start, and do not wait for ours."""
    stop = threading.Event()
    seen = []

    def fork():
        while not stop.is_set():
            done = subprocess.run(["ls", "/proc/self/fd"], capture_output=True, text=True, check=True)
            seen.append(len(done.stdout.split()))

    thread = threading.Thread(target=fork)
    thread.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(lambda number: run(["sh", "-c", f"exit {number}"]).returncode, range(60)))
    finally:
        stop.set()
        thread.join()
    assert list(range(60)) == codes
    assert {4} == set(seen)


def test_first_start_from_many_threads_at_once():
    """Objects that are created once and kept are created only once."""
    code = (
        "import threading, os\n"
        "from containerkit import run\n"
        "barrier = threading.Barrier(16)\n"
        "def go(): barrier.wait(); assert run(['true']).returncode == 0\n"
        "threads = [threading.Thread(target=go) for _ in range(16)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "links = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{n}')]\n"
        "print(sum(l.startswith('mnt:') for l in links), sum('memfd:init' in l for l in links), sum('pidfd' in l for l in links))\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    staged, image, owner = map(int, done.stdout.split())
    assert (1, 1) == (image, owner)
    assert staged in (1, 2)
    assert "" == done.stderr


def children_go_to():
    return os.readlink("/proc/thread-self/ns/pid_for_children")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
def test_run_leaves_the_namespace_of_the_threads_children_as_it_was():
    own = children_go_to()
    with Container() as container, Container() as other:
        assert 0 == container.run(["true"]).returncode
        assert own == children_go_to()
        with pytest.raises(SetupError):
            container.run(["no such program"])
        assert own == children_go_to()
        with other.namespace("pid") as namespace, namespace.enter():
            theirs = children_go_to()
            assert own != theirs
            assert 0 == container.run(["true"]).returncode
            assert theirs == children_go_to()
        assert own == children_go_to()
    with Container() as stopped:
        stopped.run(["true"])
        os.kill(stopped.pid, 9)
        assert select.select([stopped], [], [], 20)[0]
        with pytest.raises(SetupError, match="the container has stopped"):
            stopped.run(["true"])
        assert own == children_go_to()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")
def test_runs_of_many_threads_in_many_containers_keep_apart():
    own = children_go_to()
    with contextlib.ExitStack() as stack:
        containers = [stack.enter_context(Container()) for _ in range(4)]
        places = [container.run(["readlink", "/proc/self/ns/pid"], text=True).stdout for container in containers]

        def work(number):
            at = number % len(containers)
            done = containers[at].run(["readlink", "/proc/self/ns/pid"], text=True, check=True)
            child = subprocess.run(["readlink", "/proc/self/ns/pid"], capture_output=True, text=True, check=True)
            return places[at] == done.stdout, child.stdout.replace("\n", "") == own

        with ThreadPoolExecutor(8) as pool:
            assert {(True, True)} == set(pool.map(work, range(200)))
    assert 4 == len(set(places))
