"""The promised speed of containerkit, as ratios that one run measures. SPECIFICATION.md describes them.

A promise is broken if even the lower end of the measured interval is above it, so noise alone breaks none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from benchmarks.measure import Ratio


@attrs.frozen
class Promise:
    """A promised figure.

    Attributes:
        benchmark: the module that measures it.
        ratio: the name of the ratio in its report.
        held: the promised maximum.
        goal: the intended maximum; the same if it has been reached.
    """

    benchmark: str
    ratio: str
    held: float
    goal: float

    @property
    def reached(self) -> bool:
        """Whether the promised maximum is already the goal."""
        return self.held <= self.goal


PROMISES = (
    Promise("latency", "run(), host root / C twin, host root", 1.3, 1.15),
    Promise("latency", "run(), directory / C twin, directory", 1.3, 1.15),
    Promise("latency", "template, ready, static libc / vfork+exec, static libc", 1.8, 1.6),
    Promise("latency", "template, pooled net, static libc / vfork+exec, static libc", 4.0, 1.6),
    Promise("latency", "exec in a live container, static libc / vfork+exec, static libc", 2.5, 1.5),
    Promise("latency", "with Container(), whole, static libc / vfork+exec, static libc", 6.5, 3.0),
    Promise("latency", "run(), directory / unshare", 0.9, 1.0),
    Promise("latency", "run(), directory / bwrap", 0.55, 0.25),
    Promise("latency", "run(), directory / crun", 0.3, 0.25),
    Promise("latency", "run(), directory / runc", 0.09, 0.04),
    Promise("latency", "template, ready / bwrap", 0.2, 0.25),
    Promise("latency", "template, ready / crun", 0.1, 0.25),
    Promise("latency", "template, ready / runc", 0.03, 0.04),
    Promise("growth", "heap MiB: 1024 / 50", 1.1, 1.05),
    Promise("growth", "heap MiB: 4096 / 50", 1.1, 1.05),
    Promise("growth", "heap MiB: 8192 / 50", 1.1, 1.05),
    Promise("growth", "threads: 64 / 0", 1.1, 1.05),
    Promise("growth", "host mounts: 1000 / 20", 1.1, 1.05),
    Promise("growth", "host mounts: 5000 / 20", 1.1, 1.05),
    Promise("growth", "live containers: 100 / 0", 1.1, 1.1),
    Promise("growth", "live containers: 1000 / 0", 1.6, 1.1),
    Promise("density", "descriptors per idle container", 2.0, 2.0),
    Promise("density", "threads per idle container", 0.0, 0.0),
    Promise("imports", "import containerkit / bare interpreter", 2.0, 2.0),
    Promise("imports", "Container, RootFS, run / bare interpreter", 12.0, 8.0),
)


def broken(ratios: Mapping[str, Ratio], promises: Iterable[Promise] = PROMISES) -> list[str]:
    """Return a line for each broken promise. Ratios that were not measured break nothing."""
    lines = []
    for promise in promises:
        found = ratios.get(promise.ratio)
        if found is not None and found.low > promise.held:
            lines.append(f"{promise.ratio}: {found}, promised is at most {promise.held:g}")
    return lines


def verdicts(ratios: Mapping[str, Ratio], promises: Iterable[Promise] = PROMISES) -> list[tuple[str, ...]]:
    """Return a row for each promise: its ratio, the measured value, the promised maximum, the goal."""
    rows: list[tuple[str, ...]] = []
    for promise in promises:
        found = ratios.get(promise.ratio)
        state = "not measured" if found is None else "broken" if found.low > promise.held else "held"
        rows.append((promise.ratio, str(found or ""), f"{promise.held:g}", f"{promise.goal:g}", state))
    return rows
