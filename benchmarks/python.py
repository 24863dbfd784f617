"""Interfaces for Python programs: asyncio, executors compared with those of the standard library, pytest."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from subprocess import DEVNULL
from subprocess import run as run_plainly
from typing import TYPE_CHECKING

from benchmarks.measure import Ratio, Report, Rung, Series, interleave, main, options, ratio
from containerkit import aio, run
from containerkit.executor import ContainerExecutor

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

WORKERS = 2
TASKS = 100
"""How many tasks a sample of the rate is."""

COMPARISONS = (
    ("aio.run", "run"),
    ("task, worker", "task, ProcessPoolExecutor"),
    ("task, container", "task, ProcessPoolExecutor, fresh"),
    ("100 tasks, container", "100 tasks, fork"),
)
PLAIN = "def test_it(n): assert n >= 0\n"
SUITE = f"import pytest\n@pytest.mark.container\n@pytest.mark.parametrize('n', range({TASKS}))\n{PLAIN}"


def timed(call: Callable[[], object]) -> float:
    """Return how long a call took, in microseconds."""
    began = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - began) / 1000


async def awaited() -> float:
    """Return how long ``aio.run`` took, in a loop that runs already."""
    began = time.perf_counter_ns()
    await aio.run(["true"])
    return (time.perf_counter_ns() - began) / 1000


async def longest_block(commands: int) -> float:
    """Return the longest that the loop was kept from its next round while commands were started, in microseconds.

    On a busy machine this is mostly the time in which other processes have the processor.
    """
    longest = 0
    tasks = [asyncio.ensure_future(aio.run(["true"])) for _ in range(commands)]
    while not all(task.done() for task in tasks):
        began = time.perf_counter_ns()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter_ns() - began)
    return longest / 1000


def rungs(stack: ExitStack) -> list[Rung]:
    """Return the rungs. The stack closes their resources."""
    loop = stack.enter_context(asyncio.Runner())
    found = [
        Rung("run", lambda: timed(lambda: run(["true"]))),
        Rung("aio.run", lambda: loop.run(awaited())),
        Rung("aio.run, longest block", lambda: loop.run(longest_block(1))),
        Rung("20 aio.run, longest block", lambda: loop.run(longest_block(20)), 0.2),
    ]
    executors: dict[str, Executor] = {
        kind: stack.enter_context(ContainerExecutor(WORKERS, isolation=kind))
        for kind in ("container", "fork", "worker")
    }
    executors["ProcessPoolExecutor"] = stack.enter_context(ProcessPoolExecutor(WORKERS))
    fresh = ProcessPoolExecutor(WORKERS, mp_context=get_context("forkserver"), max_tasks_per_child=1)
    executors["ProcessPoolExecutor, fresh"] = stack.enter_context(fresh)
    if find_spec("loky") is not None:
        from loky import get_reusable_executor

        executors["loky"] = get_reusable_executor(max_workers=WORKERS)
    for name, executor in executors.items():
        few = 0.1 if name.endswith("fresh") else 1
        found.append(Rung(f"task, {name}", partial(_one, executor), few))
        if not name.endswith("fresh"):
            found.append(Rung(f"100 tasks, {name}", partial(_many, executor), 0.2))
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    found += [Rung("pytest, 100 tests, container", partial(_pytest, directory, SUITE), 0.05)]
    found += [
        Rung("pytest, 100 tests", partial(_pytest, directory, SUITE.replace("@pytest.mark.container\n", "")), 0.05)
    ]
    return found


def _one(executor: Executor) -> float:
    time.sleep(0.01)  # what a pool does after a task is not of the next one
    return timed(lambda: executor.submit(abs, -1).result())


def _many(executor: Executor) -> float:
    return timed(lambda: list(executor.map(abs, range(TASKS))))


def _pytest(directory: str, text: str) -> float:
    with open(os.path.join(directory, "test_it.py"), "w", encoding="utf-8") as file:
        file.write(text)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", directory]
    return timed(lambda: run_plainly(argv, stdout=DEVNULL, check=True, cwd=directory))


def measure(asked: argparse.Namespace) -> Report:
    """Measure all rungs, interleaved."""
    with ExitStack() as stack:
        taken = interleave(rungs(stack), asked.samples)
    rows = [(name, f"{series.median / 1000:.2f}", _rate(name, series)) for name, series in taken.items()]
    ratios: dict[str, Ratio] = {}
    for one, two in COMPARISONS:
        with suppress(KeyError):
            ratios[f"{one} / {two}"] = ratio(taken[one].samples, taken[two].samples)
    data = {"python": {name: series.summary() for name, series in taken.items()}}
    header = ("", "p50 ms", "a second")
    return Report("python", "For Python programs (milliseconds)", header, tuple(rows), data, ratios)


def _rate(name: str, series: Series) -> str:
    return f"{TASKS / series.median * 1e6:.0f}" if name.startswith("100 tasks") else ""


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    return options(__doc__ or "", samples=60)


if __name__ == "__main__":
    main(measure, parser())
