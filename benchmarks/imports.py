"""The time to import the package, in addition to starting the interpreter."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from subprocess import run
from typing import TYPE_CHECKING

from benchmarks.measure import Report, Rung, interleave, main, options, ratio

if TYPE_CHECKING:
    import argparse

BARE = "bare interpreter"
CODE = {
    BARE: "pass",
    "import containerkit": "import containerkit",
    "Container, RootFS, run": "from containerkit import Container, RootFS, run",
    "import attrs": "import attrs",
    "import subprocess": "import subprocess",
    "import asyncio": "import asyncio",
    "import containerkit.aio": "import containerkit.aio",
    "from containerkit.aio import run": "from containerkit.aio import run",
}
BUDGET_MS = {"import containerkit": 10, "Container, RootFS, run": 60, "import containerkit.aio": 50}
"""The maximum cost of an import in addition to the interpreter."""


def interpret(code: str, path: str) -> float:
    """Run a separate interpreter until it ends. Return the duration in microseconds."""
    environment = {**os.environ, "PYTHONPATH": path}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    began = time.perf_counter_ns()
    run([sys.executable, "-c", code], env=environment, check=True)
    return (time.perf_counter_ns() - began) / 1000


def measure(asked: argparse.Namespace) -> Report:
    """Measure all imports. Another module's import is included for comparison."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    taken = interleave([Rung(name, partial(interpret, code, path)) for name, code in CODE.items()], asked.samples)
    bare = taken[BARE]
    rows = []
    for name, series in taken.items():
        over_ms = (series.median - bare.median) / 1000
        budget = BUDGET_MS.get(name)
        rows.append((name, f"{series.median / 1000:.1f}", f"{over_ms:.1f}", str(budget) if budget else ""))
    ratios = {f"{name} / {BARE}": ratio(taken[name].samples, bare.samples) for name in BUDGET_MS if name in taken}
    data = {"imports": {name: series.summary() for name, series in taken.items()}, "budget_ms": BUDGET_MS}
    header = ("", "p50 ms", "over bare", "budget")
    return Report("imports", "Starting the interpreter and importing (milliseconds)", header, tuple(rows), data, ratios)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    return options(__doc__ or "", samples=50)


if __name__ == "__main__":
    main(measure, parser())
