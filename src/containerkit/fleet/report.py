"""The outcomes of the tasks of a fleet, as data and as a table."""

from __future__ import annotations

import threading
from collections import Counter
from statistics import median
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from containerkit.fleet.engine import Outcome

__all__ = ["Books", "NodeReport", "Report"]


@attrs.frozen(kw_only=True)
class NodeReport:
    """The work of one node.

    Attributes:
        name: its name.
        began: the number of attempts that it began.
        lost: the number of them that were lost with it.
        busy_s: the total time of its tasks, in seconds.
    """

    name: str
    began: int
    lost: int
    busy_s: float


@attrs.frozen(kw_only=True)
class Report:
    """The outcomes of the tasks of a fleet so far. ``str(report)`` is a table.

    Attributes:
        tasks: the number of submitted tasks.
        succeeded: the number that ended with status 0.
        pending: the number that are not done.
        retried: the number of attempts beyond the first of each task.
        failures: the number that did not succeed, by cause as in ``FleetFuture.cause``.
        wait_median_s, wait_max_s: seconds from the submission of an attempt until a node began it; None if none began.
        nodes: the nodes that began any attempt, by name.
    """

    tasks: int
    succeeded: int
    pending: int
    retried: int
    failures: dict[str, int]
    wait_median_s: float | None
    wait_max_s: float | None
    nodes: tuple[NodeReport, ...]

    def __str__(self) -> str:
        failed = ", ".join(f"{number} {cause}" for cause, number in sorted(self.failures.items())) or "none"
        lines = [
            f"tasks      {self.tasks}: {self.succeeded} succeeded, {sum(self.failures.values())} did not",
            f"others     {self.pending} pending, {self.retried} retried",
            f"failures   {failed}",
        ]
        if self.wait_median_s is not None and self.wait_max_s is not None:
            lines.append(f"waits      median {self.wait_median_s:.3f} s, longest {self.wait_max_s:.3f} s")
        if self.nodes:
            width = max(len("node"), *(len(node.name) for node in self.nodes))
            lines += ["", f"{'node':{width}}  {'began':>6}  {'lost':>6}  {'busy s':>9}"]
            lines += [f"{each.name:{width}}  {each.began:6}  {each.lost:6}  {each.busy_s:9.2f}" for each in self.nodes]
        return "\n".join(lines)


class Books:
    """Keeps count of tasks and attempts. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tasks = 0
        self._succeeded = 0
        self._retried = 0
        self._failures: Counter[str] = Counter()
        self._waits: list[float] = []
        self._began: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._busy: dict[str, float] = {}

    def submitted(self) -> None:
        """Count a task."""
        with self._lock:
            self._tasks += 1

    def refused(self) -> None:
        """Remove a task from the count that the engine did not accept."""
        with self._lock:
            self._tasks -= 1

    def began(self, node: str, waited_s: float) -> None:
        """Count an attempt that a node begins."""
        with self._lock:
            self._began[node] += 1
            self._waits.append(waited_s)

    def ended(self, node: str, outcome: Outcome) -> None:
        """Count an attempt that has ended."""
        with self._lock:
            if outcome.lost and node:
                self._lost[node] += 1
            if outcome.run_s is not None:
                self._busy[node] = self._busy.get(node, 0.0) + outcome.run_s

    def retried(self) -> None:
        """Count an attempt beyond the first."""
        with self._lock:
            self._retried += 1

    def settled(self, cause: str | None) -> None:
        """Count a task that is done; ``cause`` is None if it succeeded."""
        with self._lock:
            if cause is None:
                self._succeeded += 1
            else:
                self._failures[cause] += 1

    def report(self) -> Report:
        """Return the counts."""
        with self._lock:
            done = self._succeeded + sum(self._failures.values())
            return Report(
                tasks=self._tasks,
                succeeded=self._succeeded,
                pending=self._tasks - done,
                retried=self._retried,
                failures=dict(self._failures),
                wait_median_s=median(self._waits) if self._waits else None,
                wait_max_s=max(self._waits, default=None),
                nodes=tuple(
                    NodeReport(
                        name=name, began=self._began[name], lost=self._lost[name], busy_s=self._busy.get(name, 0.0)
                    )
                    for name in sorted(self._began)
                ),
            )
