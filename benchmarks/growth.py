"""The time of a start when its surroundings grow: the owner's memory, threads and descriptors, the machine's
mounts, other live containers, the number of binds, and earlier starts.

Each size has its own process, which is brought to that size once and then starts one container per request. The sizes
of one kind are measured in interleaved rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.floor import Floor
from benchmarks.measure import Ratio, Report, Rung, Series, interleave, main, options, ratio
from containerkit import Container, Mount, RootFS, run
from containerkit._native import calls
from containerkit._native import constants as k

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "heap MiB": ((50, 1024), (50, 1024, 4096, 8192)),
    "threads": ((0, 64), (0, 64, 512)),
    "descriptors": ((0, 4000), (0, 4000, 15000)),
    "host mounts": ((20, 1000), (20, 1000, 5000)),
    "live containers": ((0, 100), (0, 200, 1000)),
    "bind mounts": ((0, 16), (0, 16, 128)),
}
"""The sizes of each kind: the default, and with ``--full``."""

CHURN = (500, 20_000)


class Worker:
    """A process that was made large in one way, and starts a container on request."""

    def __init__(self, kind: str, size: int, directory: str) -> None:
        words = [sys.executable, "-m", "benchmarks.growth", "--worker", kind, str(size), directory]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=_environment()
        )
        self._answer()  # it has reached its size

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the worker has ended; stderr has the reason")
        return line

    def ask(self) -> float:
        """Make it start a container. Return the duration in microseconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        return int(self._answer()) / 1000

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}


# --- In the worker


def _grow(kind: str, size: int, directory: str, stack: ExitStack) -> Callable[[], object]:
    """Make this process large. Return a function that starts a container."""
    root = RootFS.dir(directory, readonly=True)
    start: Callable[[], object] = partial(run, ["/true"], rootfs=root, check=True)
    if kind == "heap MiB":
        heap = bytearray(size << 20)
        heap[::4096] = b"x" * len(heap[::4096])
        stack.callback(heap.clear)
    elif kind == "threads":
        over = threading.Event()
        stack.callback(over.set)
        for _ in range(size):
            threading.Thread(target=over.wait, daemon=True).start()
    elif kind == "descriptors":
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        for _ in range(size):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    elif kind == "host mounts":
        _mounts(size, stack)
    elif kind == "live containers":
        resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
        for _ in range(size):
            stack.enter_context(Container(root))
    elif kind == "bind mounts":
        binds = [Mount.bind("/usr", f"/tmp/{number}", readonly=True, recursive=False) for number in range(size)]
        start = partial(run, ["/bin/true"], mounts=binds, check=True)
    return start


def _mounts(count: int, stack: ExitStack) -> None:
    """Create this many mounts, in a mount namespace that only this process sees."""
    calls.unshare(k.CLONE_NEWNS)
    calls.mount("none", "/", None, k.MS_REC | k.MS_PRIVATE, None)
    place = stack.enter_context(tempfile.TemporaryDirectory(prefix="containerkit-mounts-"))
    calls.mount("tmpfs", place, "tmpfs", 0, None)
    stack.callback(calls.umount2, place, k.MNT_DETACH)
    for number in range(count):
        below = os.path.join(place, str(number))
        os.mkdir(below)
        calls.mount("tmpfs", below, "tmpfs", 0, None)


def work(kind: str, size: int, directory: str) -> None:
    """Run as a worker: answer each line with the nanoseconds of a start, until the input ends."""
    with ExitStack() as stack:
        start = _grow(kind, size, directory, stack)
        start()
        print("ready", flush=True)
        for _ in sys.stdin:
            began = time.perf_counter_ns()
            start()
            print(time.perf_counter_ns() - began, flush=True)


# --- Outside


def compare(kind: str, sizes: tuple[int, ...], directory: str, samples: int) -> dict[int, Series]:
    """Return the samples of each size."""
    with ExitStack() as stack:
        rungs = []
        for size in sizes:
            worker = Worker(kind, size, directory)
            stack.callback(worker.close)
            rungs.append(Rung(str(size), worker.ask))
        return {int(name): series for name, series in interleave(rungs, samples).items()}


def churn(directory: str, count: int) -> tuple[Ratio, int]:
    """Start this many containers in sequence. Return the last tenth over the first, and the leaked descriptors."""
    root = RootFS.dir(directory, readonly=True)
    run(["/true"], rootfs=root)
    before = len(os.listdir("/proc/self/fd"))
    taken = []
    for _ in range(count):
        began = time.perf_counter_ns()
        run(["/true"], rootfs=root)
        taken.append((time.perf_counter_ns() - began) / 1000)
    tenth = max(1, count // 10)
    return ratio(taken[-tenth:], taken[:tenth]), len(os.listdir("/proc/self/fd")) - before


def measure(asked: argparse.Namespace) -> Report:
    """Measure all kinds."""
    rows: list[tuple[str, ...]] = []
    ratios: dict[str, Ratio] = {}
    data: dict[str, object] = {}
    with Floor() as floor:
        for kind, (few, all_of_them) in SIZES.items():
            try:
                taken = compare(kind, all_of_them if asked.full else few, floor.directory, asked.samples)
            except RuntimeError as error:
                rows.append((f"{kind}: left out", "", str(error)))
                continue
            smallest, *others = taken
            rows.append((f"{kind}: {smallest}", f"{taken[smallest].median:,.0f}", ""))
            for size in others:
                found = ratio(taken[size].samples, taken[smallest].samples)
                ratios[f"{kind}: {size} / {smallest}"] = found
                rows.append((f"{kind}: {size}", f"{taken[size].median:,.0f}", str(found)))
            data[kind] = {str(size): series.summary() for size, series in taken.items()}
        count = CHURN[1] if asked.full else CHURN[0]
        found, left = churn(floor.directory, count)
        ratios[f"churn: last tenth of {count} / first"] = found
        rows.append((f"churn: {count} starts, last tenth over first; {left} descriptors left", "", str(found)))
    header = ("", "p50 us", "over the smallest")
    return Report("growth", "A start of run() as its surroundings grow", header, tuple(rows), {"kinds": data}, ratios)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    own = options(__doc__ or "", samples=60)
    own.add_argument("--full", action="store_true", help="the largest sizes as well: 8 GiB, 5,000 mounts, 1,000 alive")
    own.add_argument("--worker", nargs=3, metavar=("KIND", "SIZE", "DIRECTORY"), help=argparse.SUPPRESS)
    return own


if __name__ == "__main__":
    worker = parser().parse_args().worker
    if worker:
        work(worker[0], int(worker[1]), worker[2])
    else:
        main(measure, parser())
