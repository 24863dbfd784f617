"""Starts per second from several threads and from asyncio, and whether the kernel's cleanup keeps up with them.

A worker of the kernel removes a network namespace after its last process has ended. If starts are faster than this,
dead namespaces accumulate. The peak of this backlog is reported next to the rate.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import attrs

from benchmarks.commands import spawn
from benchmarks.floor import Floor
from benchmarks.measure import Ratio, Report, main, options, quantile
from benchmarks.peers import PEERS
from containerkit import Container, Namespaces, RootFS, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

THREADS = (1, 2, 4, 8, 16)
NETWORKS = ("fresh net", "template, pooled net", "template, stock of nets", "template, ready")
COMPARED = ("bwrap", "crun")
OURS = "template, ready, 4 threads"
READY = 64
WATCH_S = 0.1
FLOOR_SAMPLES = 50


@attrs.frozen(kw_only=True)
class Load:
    """The result of starting at full speed for some time.

    Attributes:
        name: the name of the load.
        rate: starts per second.
        backlog: the largest number of additional network namespaces, or None if they can't be counted.
        cleaned_s: seconds until they were gone.
    """

    name: str
    rate: float
    backlog: int | None
    cleaned_s: float


def network_namespaces() -> int | None:
    """Return the number of network namespaces, including dead ones that still exist. Source: slabinfo(5)."""
    try:
        with open("/proc/slabinfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("net_namespace "):
                    return int(line.split()[1])
    except OSError:
        return None
    return None


def from_threads(start: Callable[[], object], threads: int, seconds: float) -> int:
    """Start from several threads for some seconds. Return the number of starts."""
    counts = [0] * threads
    end = time.monotonic() + seconds

    def work(number: int) -> None:
        while time.monotonic() < end:
            start()
            counts[number] += 1

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts)


def from_asyncio(start: Callable[[], object], tasks: int, seconds: float) -> int:
    """Do the same from tasks of one event loop, which wait in threads."""

    async def work(end: float) -> int:
        count = 0
        while time.monotonic() < end:
            await asyncio.to_thread(start)
            count += 1
        return count

    async def all_of_them() -> int:
        end = time.monotonic() + seconds
        return sum(await asyncio.gather(*(work(end) for _ in range(tasks))))

    return asyncio.run(all_of_them())


def run_load(name: str, drive: Callable[[float], int], seconds: float) -> Load:
    """Run a load and measure what it leaves behind."""
    before = network_namespaces()
    peak = before or 0
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(WATCH_S):
            peak = max(peak, network_namespaces() or 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    count = drive(seconds)
    took = time.monotonic() - began
    over.set()
    watcher.join()
    began = time.monotonic()
    while before is not None and (network_namespaces() or 0) > before + 8 and time.monotonic() < began + 30:
        time.sleep(WATCH_S)
    return Load(
        name=name,
        rate=count / took,
        backlog=None if before is None else peak - before,
        cleaned_s=time.monotonic() - began,
    )


def peers(root: str, scratch: str) -> list[tuple[str, Callable[[], object]]]:
    """Return the programs that are installed and work here, each with a call that starts it and waits for its end."""
    found: list[tuple[str, Callable[[], object]]] = []
    numbers = itertools.count()

    def start(words: list[str], *, named: bool) -> None:
        spawn([*words[:-1], f"bench-{os.getpid()}-{next(numbers)}"] if named else words)

    for peer in PEERS:
        if peer.name not in COMPARED or not peer.installed:
            continue
        call = partial(start, peer.words(root, scratch), named=peer.name == "crun")
        try:
            call()
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            found.append((peer.name, call))
    return found


def measure(asked: argparse.Namespace) -> Report:
    """Run all loads in sequence."""
    with ExitStack() as stack:
        floor = stack.enter_context(Floor())
        root = RootFS.dir(floor.directory, readonly=True)
        first = stack.enter_context(Container(root, namespaces=Namespaces(user="host")))
        pool = stack.enter_context(first.namespace("network"))
        fresh = partial(run, ["/true"], rootfs=root)
        pooled = stack.enter_context(Container.prepare(root, namespaces=Namespaces(network=pool)))
        stock = stack.enter_context(Container.prepare(root, networks=64))
        ready = stack.enter_context(Container.prepare(root, ready=READY))
        starts = (fresh, *[partial(template.run, ["/true"]) for template in (pooled, stock, ready)])
        loads = []
        for net, start in zip(NETWORKS, starts, strict=True):
            start()
            loads += [
                run_load(f"{net}, {threads} threads", partial(from_threads, start, threads), asked.seconds)
                for threads in THREADS
            ]
            loads.append(run_load(f"{net}, asyncio, 4 tasks", partial(from_asyncio, start, 4), asked.seconds))
        for name, start in peers(floor.directory, stack.enter_context(tempfile.TemporaryDirectory())):
            loads += [
                run_load(f"{name}, {threads} threads", partial(from_threads, start, threads), asked.seconds)
                for threads in THREADS
            ]
        spawn_us = quantile(sorted(floor.spawn(floor.true) for _ in range(FLOOR_SAMPLES)), 0.5)
    return _report(loads, spawn_us)


def _lines(loads: list[Load]) -> list[dict[str, object]]:
    """Return the lines to draw: the rate for each number of threads."""
    labels = {"x_label": "threads", "y_label": "starts per second"}
    rates = {load.name: load.rate for load in loads}
    return [
        {"name": net, "x": THREADS, "y": [rates[f"{net}, {threads} threads"] for threads in THREADS], **labels}
        for net in (*NETWORKS, *COMPARED)
        if f"{net}, {THREADS[0]} threads" in rates
    ]


def _report(loads: list[Load], spawn_us: float) -> Report:
    rows = [
        (
            load.name,
            f"{load.rate:,.0f}",
            f"{1e6 / load.rate / spawn_us:.2f}",
            "?" if load.backlog is None else str(load.backlog),
            f"{load.cleaned_s:.1f}",
        )
        for load in loads
    ]
    ratios = {}
    for load in loads:
        value = 1e6 / load.rate / spawn_us
        ratios[f"seconds per start, {load.name} / vfork+exec"] = Ratio(value, value, value)
    rates = {load.name: load.rate for load in loads}
    for name in COMPARED:
        if f"{name}, 4 threads" in rates:
            value = rates[OURS] / rates[f"{name}, 4 threads"]
            ratios[f"starts per second, {OURS} / {name}"] = Ratio(value, value, value)
    header = ("", "starts/s", "s per start / vfork+exec", "dead namespaces", "cleaned after s")
    data = {"loads": [attrs.asdict(load) for load in loads], "spawn_us": spawn_us, "lines": _lines(loads)}
    return Report("throughput", "Starts per second, sustained", header, tuple(rows), data, ratios)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    own = options(__doc__ or "", samples=1)
    own.add_argument("--seconds", type=float, default=20.0, help="how long each load lasts (default 20)")
    return own


if __name__ == "__main__":
    main(measure, parser())
