"""Runs the benchmarks: ``python -m benchmarks`` all of them, ``--only NAME`` some, ``--check`` holds the promises."""

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

NAMES = ("latency", "growth", "density", "imports", "throughput", "steps")
CHECKED = ("latency", "growth", "density", "imports")
BRIEFLY = {"density": ["--containers", "100"], "throughput": ["--seconds", "2"]}


def options() -> argparse.ArgumentParser:
    """Return the options of the whole."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=NAMES, metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--samples", type=int, help="samples of each rung (default: what each benchmark takes)")
    parser.add_argument("--output", default="", metavar="FOLDER", help="write JSON, and plots if matplotlib is there")
    parser.add_argument("--brief", action="store_true", help="smaller loads, for a look in between")
    parser.add_argument("--check", action="store_true", help="fail when a promised ratio is broken")
    return parser


def arguments(module: ModuleType, asked: argparse.Namespace) -> argparse.Namespace:
    """Return the options for one benchmark."""
    words = BRIEFLY.get(module.__name__.rpartition(".")[2], []) if asked.brief or asked.check else []
    if asked.samples:
        words = [*words, "--samples", str(asked.samples)]
    chosen: argparse.Namespace = module.parser().parse_args(words)
    return chosen


def main() -> int:
    """Run what is asked for; return 1 when a promise is broken."""
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
