"""Draw a report as SVG and PNG, if matplotlib is installed (``pip install containerkit[bench]``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.measure import Report

COLOURS = {"floor": "#8c8c8c", "containerkit": "#1f6fb4", "peer": "#d9822b"}


def draw(report: Report, directory: str) -> list[str]:
    """Draw the ``bars`` or ``lines`` in a report's data. Return the paths of the files.

    Without matplotlib nothing is drawn.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    height = 1.5 + 0.24 * len(report.data.get("bars", ())) if "bars" in report.data else 5.5
    figure, axes = plt.subplots(figsize=(10, height), layout="constrained")
    axes.set_axisbelow(True)
    if "bars" in report.data:
        _bars(axes, report.data["bars"])
    elif "lines" in report.data:
        _lines(axes, report.data["lines"])
    else:
        plt.close(figure)
        return []
    axes.set_title(report.title.partition(" (")[0], fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    paths = [os.path.join(directory, f"{report.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _bars(axes: Any, bars: list[dict[str, Any]]) -> None:
    """Draw medians as bars on a logarithmic axis, with a whisker to the 95th percentile and the median next to it."""
    for group, colour in COLOURS.items():
        places = [number for number, bar in enumerate(bars) if bar["group"] == group]
        middle = [bars[number]["p50_us"] for number in places]
        upper = [max(0.0, bars[number]["p95_us"] - bars[number]["p50_us"]) for number in places]
        errors = [[0.0] * len(places), upper]
        axes.barh(places, middle, xerr=errors, color=colour, ecolor="#444444", error_kw={"lw": 1}, label=group)
    axes.set_yticks(range(len(bars)), [bar["name"] for bar in bars], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds from the call to reaped: median, whisker to the 95th percentile")
    axes.invert_yaxis()
    for number, bar in enumerate(bars):
        axes.text(max(bar["p50_us"], bar["p95_us"]) * 1.08, number, f"{bar['p50_us']:,.0f}", va="center", fontsize=8)
    axes.margins(x=0.12, y=0.01)
    axes.legend(loc="upper right")


def _lines(axes: Any, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        axes.plot(line["x"], line["y"], marker="o", label=line["name"])
    axes.set_xlabel(lines[0].get("x_label", ""))
    axes.set_ylabel(lines[0].get("y_label", ""))
    axes.set_ylim(bottom=0)
    axes.legend()
