"""Run the benchmarks: ``python -m benchmarks`` all of them, ``--only NAME`` some, ``--check`` checks the promises."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from benchmarks import machine, plot, promises
from benchmarks.measure import table

if TYPE_CHECKING:
    from types import ModuleType

    from benchmarks.measure import Ratio

NAMES = ("latency", "growth", "density", "imports", "throughput", "steps", "python", "agents", "commands")
CHECKED = ("latency", "growth", "density", "imports")
BRIEFLY = {"density": ["--containers", "100"], "throughput": ["--seconds", "2"]}


def options() -> argparse.ArgumentParser:
    """Return the command line options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--samples", type=int, help="samples of each rung (default: that of each benchmark)")
    parser.add_argument("--output", default="", metavar="DIR", help="write JSON, and plots if matplotlib is installed")
    parser.add_argument("--brief", action="store_true", help="use smaller loads, for a quick check")
    parser.add_argument("--check", action="store_true", help="fail if a promised ratio is broken")
    return parser


def arguments(module: ModuleType, asked: argparse.Namespace) -> argparse.Namespace:
    """Return the options for one benchmark."""
    words = BRIEFLY.get(module.__name__.rpartition(".")[2], []) if asked.brief or asked.check else []
    if asked.samples:
        words = [*words, "--samples", str(asked.samples)]
    chosen: argparse.Namespace = module.parser().parse_args(words)
    return chosen


def main() -> int:
    """Run the selected benchmarks. Return 1 if a promise is broken."""
    asked = options().parse_args()
    facts = machine.describe()
    print(machine.one_line(facts), end="\n\n")
    ratios: dict[str, Ratio] = {}
    for name in asked.only or (CHECKED if asked.check else NAMES):
        module = import_module(f"benchmarks.{name}")
        report = module.measure(arguments(module, asked))
        print(report.text(), flush=True)
        ratios |= report.ratios
        if asked.output:
            print("written:", report.write(asked.output, facts), *plot.draw(report, asked.output), end="\n\n")
    print(table(promises.verdicts(ratios), ("promise", "measured", "at most", "goal", "")))
    failures = promises.broken(ratios)
    for line in failures:
        print(f"broken: {line}", file=sys.stderr)
    return 1 if failures and asked.check else 0


if __name__ == "__main__":
    sys.exit(main())
