"""The cost of an idle container: memory of the machine, and descriptors and threads of its owner."""

from __future__ import annotations

import gc
import os
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.floor import Floor
from benchmarks.measure import Ratio, Report, main, options, quantile
from containerkit import Container, Namespaces, RootFS

if TYPE_CHECKING:
    import argparse

SETTLE_S = 1.0
MEMORY = "KiB of memory per idle container"
MEMORY_WITHOUT_NET = "KiB of memory per idle container, joined net"
DESCRIPTORS = "descriptors per idle container"
THREADS = "threads per idle container"


def available_kib() -> int:
    """Return the memory that the kernel could still provide. Source: MemAvailable in proc_meminfo(5)."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1])
    raise RuntimeError("/proc/meminfo has no MemAvailable")


def _settled() -> int:
    """Return the same after a pause in which the kernel cleans up."""
    gc.collect()
    time.sleep(SETTLE_S)
    return available_kib()


def weigh(count: int, root: RootFS, namespaces: Namespaces) -> tuple[float, float, float]:
    """Return memory (KiB), descriptors and threads per container, for ``count`` containers at the same time."""
    with ExitStack() as stack:
        stack.enter_context(Container(root, namespaces=namespaces))  # excludes what is created only once
        memory, descriptors = _settled(), len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        for _ in range(count):
            stack.enter_context(Container(root, namespaces=namespaces))
        used = memory - _settled()
        opened = len(os.listdir("/proc/self/fd")) - descriptors
        return used / count, opened / count, (threading.active_count() - threads) / count


def _middle(weighed: list[tuple[float, float, float]]) -> tuple[float, ...]:
    """Return the median of each value, because other activity of the machine changes its free memory too."""
    return tuple(quantile(sorted(column), 0.5) for column in zip(*weighed, strict=True))


def measure(asked: argparse.Namespace) -> Report:
    """Measure containers with their own network namespace, and containers that share one."""
    with ExitStack() as stack:
        floor = stack.enter_context(Floor())
        root = RootFS.dir(floor.directory, readonly=True)
        first = stack.enter_context(Container(root, namespaces=Namespaces(user="host")))
        shared = stack.enter_context(first.namespace("network"))
        own = _middle([weigh(asked.containers, root, Namespaces()) for _ in range(asked.samples)])
        joined = _middle([weigh(asked.containers, root, Namespaces(network=shared)) for _ in range(asked.samples)])
    rows = [
        (name, f"{memory:.0f}", f"{descriptors:.2f}", f"{threads:.2f}")
        for name, (memory, descriptors, threads) in (("own network", own), ("joined network", joined))
    ]
    values = {
        MEMORY: own[0],
        MEMORY_WITHOUT_NET: joined[0],
        DESCRIPTORS: own[1],
        THREADS: own[2],
    }
    return Report(
        "density",
        f"Idle containers, each of {asked.containers}",
        ("", "KiB", "fds", "threads"),
        tuple(rows),
        {"containers": asked.containers, "values": values},
        {name: Ratio(value, value, value) for name, value in values.items()},
    )


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    own = options(__doc__ or "", samples=3)
    own.add_argument("--containers", type=int, default=500, help="how many exist at the same time (default 500)")
    return own


if __name__ == "__main__":
    main(measure, parser())
