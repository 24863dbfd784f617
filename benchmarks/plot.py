"""Draws a report as SVG and PNG, where matplotlib is there (``pip install containerkit[bench]``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.measure import Report

COLOURS = {"floor": "#8c8c8c", "containerkit": "#1f6fb4", "peer": "#d9822b"}


def draw(report: Report, folder: str) -> list[str]:
    """Draw what the report has to draw (``bars`` or ``lines`` in its data); return the paths of the files.

    Without matplotlib nothing is drawn.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return []
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    if "bars" in report.data:
        _bars(axes, report.data["bars"])
    elif "lines" in report.data:
        _lines(axes, report.data["lines"])
    else:
        plt.close(figure)
        return []
    axes.set_title(report.title, fontsize=10, loc="left")
    axes.grid(alpha=0.3)
    paths = [os.path.join(folder, f"{report.name}.{kind}") for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150)
    plt.close(figure)
    return paths


def _bars(axes: Any, bars: list[dict[str, Any]]) -> None:
    """Medians as bars on a logarithmic axis, with a whisker to the 95th percentile."""
    names = [bar["name"] for bar in bars]
    middle = [bar["p50_us"] for bar in bars]
    upper = [max(0.0, bar["p95_us"] - bar["p50_us"]) for bar in bars]
    axes.barh(names, middle, xerr=[[0.0] * len(bars), upper], color=[COLOURS[bar["group"]] for bar in bars], height=0.7)
    axes.set_xscale("log")
    axes.set_xlabel("microseconds from the call to reaped: median, whisker to the 95th percentile")
    axes.invert_yaxis()
    for number, value in enumerate(middle):
        axes.text(value, number, f" {value:,.0f}", va="center", fontsize=8)


def _lines(axes: Any, lines: list[dict[str, Any]]) -> None:
    for line in lines:
        axes.plot(line["x"], line["y"], marker="o", label=line["name"])
    axes.set_xlabel(lines[0].get("x_label", ""))
    axes.set_ylabel(lines[0].get("y_label", ""))
    axes.set_ylim(bottom=0)
    axes.legend()
