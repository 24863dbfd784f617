"""Interpreters for agents: the time to the first result, to the next one, and for 100 MB in both directions."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from functools import partial
from subprocess import DEVNULL, run
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Report, Rung, interleave, main, options, ratio
from containerkit.interpreter import Interpreter

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

FIRST, NEXT, BACK = "interpreter, first result", "interpreter, next result", "snapshot and rollback of 100 MB"
AFTER_OTHERS = "interpreter, next result after other work"
"""With cold caches: after the other rungs."""
BARE = "/usr/bin/python3 -c, no container"
KERNEL_FIRST, KERNEL_NEXT = "ipykernel, first result", "ipykernel, next result"
GOALS_MS = {FIRST: 60, NEXT: 0.2, BACK: 20}
"""What each should take at most."""

LARGE = "large = bytearray(100 << 20)\nfor place in range(0, len(large), 4096):\n    large[place] = 1"


def timed(do: Callable[[], object]) -> float:
    """Return how long a call takes, in microseconds."""
    began = time.perf_counter_ns()
    do()
    return (time.perf_counter_ns() - began) / 1000


def first() -> float:
    """Make an interpreter and get its first result. Its end is not measured."""
    began = time.perf_counter_ns()
    interpreter = Interpreter()
    assert interpreter.run_code("1 + 1").text == "2"
    took = (time.perf_counter_ns() - began) / 1000
    interpreter.close()
    return took


def following(interpreter: Interpreter) -> float:
    """Get a result at once after another."""
    interpreter.run_code("1 + 1")
    return timed(lambda: interpreter.run_code("1 + 1"))


def there_and_back(interpreter: Interpreter) -> float:
    began = time.perf_counter_ns()
    snapshot = interpreter.snapshot()
    interpreter.rollback(snapshot)
    took = (time.perf_counter_ns() - began) / 1000
    snapshot.close()
    return took


def kernel_rungs(stack: contextlib.ExitStack) -> list[Rung]:
    """Return the rungs of ipykernel without a container, if it is installed."""
    if importlib.util.find_spec("ipykernel") is None or importlib.util.find_spec("jupyter_client") is None:
        return []
    from jupyter_client.manager import start_new_kernel

    def evaluate(client: Any) -> None:
        client.execute_interactive("1 + 1", store_history=False, output_hook=lambda _: None, timeout=30)

    def begin() -> float:
        began = time.perf_counter_ns()
        manager, client = start_new_kernel()
        evaluate(client)
        took = (time.perf_counter_ns() - began) / 1000
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        return took

    manager, client = start_new_kernel()
    stack.callback(partial(manager.shutdown_kernel, now=True))
    stack.callback(client.stop_channels)
    return [Rung(KERNEL_FIRST, begin, 0.2), Rung(KERNEL_NEXT, lambda: timed(partial(evaluate, client)))]


def measure(asked: argparse.Namespace) -> Report:
    """Measure all rungs, including those of other programs."""
    with contextlib.ExitStack() as stack:
        interpreter = stack.enter_context(Interpreter())
        large = stack.enter_context(Interpreter())
        large.run_code(LARGE)
        bare = partial(run, ["/usr/bin/python3", "-c", "1 + 1"], stdin=DEVNULL, check=True)
        rungs = [
            Rung(BARE, lambda: timed(bare)),
            Rung(FIRST, first),
            Rung(NEXT, lambda: following(interpreter)),
            Rung(AFTER_OTHERS, lambda: timed(lambda: interpreter.run_code("1 + 1"))),
            Rung(BACK, lambda: there_and_back(large)),
            *kernel_rungs(stack),
        ]
        taken = interleave(rungs, asked.samples)
    rows = [
        (
            name,
            f"{series.median / 1000:.2f}",
            f"{series.quantile(0.95) / 1000:.2f}",
            str(GOALS_MS.get(name, "")),
        )
        for name, series in taken.items()
    ]
    pairs = ((FIRST, BARE), (FIRST, KERNEL_FIRST), (AFTER_OTHERS, KERNEL_NEXT))
    ratios = {
        f"{one} / {two}": ratio(taken[one].samples, taken[two].samples)
        for one, two in pairs
        if one in taken and two in taken
    }
    data = {"agents": {name: series.summary() for name, series in taken.items()}, "goals_ms": GOALS_MS}
    header = ("", "p50 ms", "p95 ms", "at most")
    return Report(
        "agents", f"Interpreters in containers, Python {sys.version.split()[0]}", header, tuple(rows), data, ratios
    )


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    return options(__doc__ or "", samples=30)


if __name__ == "__main__":
    main(measure, parser())
