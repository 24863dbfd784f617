"""Take samples that can be compared, and compute how certain the comparison is.

All rungs of a benchmark are measured in rounds. Each round measures every rung once, in random order, so that temporary
load of the machine affects all of them equally. A comparison is the ratio of two medians of one run, with its 95 %
interval, which is found by resampling whole rounds (the bootstrap). It is never a bare number of milliseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
from typing import TYPE_CHECKING, Any

import attrs

from benchmarks import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

RESAMPLES = 1000
WARM_UP = 3


@attrs.frozen
class Rung:
    """One thing to measure.

    Attributes:
        name: its name in tables and promises.
        call: performs it once and returns the duration in microseconds.
        per_round: how often it is measured in a round; less than one for slow things.
    """

    name: str
    call: Callable[[], float]
    per_round: float = 1.0


@attrs.frozen
class Series:
    """The samples of one rung, in microseconds."""

    name: str
    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        return quantile(sorted(self.samples), 0.5)

    def quantile(self, share: float) -> float:
        return quantile(sorted(self.samples), share)

    def summary(self) -> dict[str, object]:
        ordered = sorted(self.samples)
        named = {f"p{share}_us": round(quantile(ordered, share / 100), 1) for share in (50, 95, 99)}
        return {**named, "samples": len(ordered), "samples_us": [round(sample, 1) for sample in self.samples]}


@attrs.frozen
class Ratio:
    """The median of one series divided by the median of another, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the quantile of an ordered series, interpolated between neighbours."""
    at = (len(ordered) - 1) * share
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def ratio(one: Sequence[float], two: Sequence[float], *, seed: int = 1) -> Ratio:
    """Return the ratio of the medians. Series of equal length come from the same rounds and are resampled together."""
    source = random.Random(seed)
    paired = len(one) == len(two)
    values: list[float] = []
    for _ in range(RESAMPLES):
        rounds = source.choices(range(len(one)), k=len(one))
        others = rounds if paired else source.choices(range(len(two)), k=len(two))
        above = quantile(sorted(one[number] for number in rounds), 0.5)
        values.append(above / quantile(sorted(two[number] for number in others), 0.5))
    values.sort()
    value = quantile(sorted(one), 0.5) / quantile(sorted(two), 0.5)
    return Ratio(value, quantile(values, 0.025), quantile(values, 0.975))


def interleave(
    rungs: Iterable[Rung], samples: int, *, seed: int | None = None, tell: Callable[[str], None] | None = None
) -> dict[str, Series]:
    """Measure all rungs in rounds, each in random order. A rung that fails in its warm-up is left out.

    Args:
        rungs: the rungs.
        samples: the number of rounds.
        seed: the seed of the order. Default: a different one each time.
        tell: called with a line for each rung that is left out.
    """
    source = random.Random(seed)
    alive: list[Rung] = []
    for rung in rungs:
        try:
            for _ in range(WARM_UP):
                rung.call()
        except Exception as error:  # noqa: BLE001 - a failure of one rung must not stop the others
            (tell or _to_stderr)(f"{rung.name}: left out: {error}")
        else:
            alive.append(rung)
    taken: dict[str, list[float]] = {rung.name: [] for rung in alive}
    for number in range(samples):
        for rung in source.sample(alive, len(alive)):
            if int((number + 1) * rung.per_round) > int(number * rung.per_round):
                taken[rung.name].append(rung.call())
    return {name: Series(name, tuple(values)) for name, values in taken.items() if values}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Return rows as a table, the first column aligned left, the others right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]]
        )
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


@attrs.frozen
class Report:
    """The result of a benchmark.

    Attributes:
        name: the name of the benchmark.
        title: the title of the table.
        header, rows: the table.
        data: all data, for the JSON file.
        ratios: the ratios that are compared with promises, by name.
    """

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    data: Mapping[str, Any]
    ratios: dict[str, Ratio] = attrs.field(factory=dict)

    def text(self) -> str:
        return f"{self.title}\n\n{table(self.rows, self.header)}\n"

    def write(self, directory: str, facts: dict[str, object]) -> str:
        """Write the report as JSON below ``directory``. Return the path."""
        os.makedirs(directory, exist_ok=True)
        path = os.path.join(directory, f"{self.name}.json")
        ratios = {name: attrs.asdict(value) for name, value in self.ratios.items()}
        content = {"benchmark": self.name, "machine": facts, **self.data, "ratios": ratios}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        return path


def options(description: str, *, samples: int) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--samples", type=int, default=samples, help=f"samples of each rung (default {samples})")
    parser.add_argument("--output", default="", metavar="DIR", help="write JSON, and plots if matplotlib is installed")
    return parser


def main(measure: Callable[[argparse.Namespace], Report], parser: argparse.ArgumentParser) -> None:
    """Run one benchmark from its command line. Print the table to stdout, and write files on request."""
    asked = parser.parse_args()
    facts = machine.describe()
    print(machine.one_line(facts), end="\n\n")
    report = measure(asked)
    print(report.text())
    if asked.output:
        from benchmarks import plot

        print("written:", report.write(asked.output, facts), *plot.draw(report, asked.output))
