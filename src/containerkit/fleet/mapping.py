"""Runs a command for each of many items. Results are in order; a progress bar is optional."""

from __future__ import annotations

import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from containerkit.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from containerkit.fleet.future import FleetFuture
    from containerkit.process.result import CompletedProcess

__all__ = ["mapped"]

Item = TypeVar("Item")


def mapped(
    submit: Callable[[Item], FleetFuture[Any]], items: Iterable[Item], *, buffersize: int | None, progress: bool
) -> Iterator[CompletedProcess[Any]]:
    """Submit a task for each item, and return the results in order.

    Args:
        submit: submits the task of an item.
        items: the items.
        buffersize: how many tasks may be running or have unread results; None for all.
        progress: show a bar.

    Raises:
        SpecError: a buffer size that is not a number above 0.
        UnsupportedError: ``progress``, and rich is not installed.
    """
    if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int) or buffersize < 1):
        raise SpecError(f"buffersize: {buffersize!r:.100} is not a number of tasks, 1 or more")
    if progress:
        _need_rich()
    try:
        total: int | None = len(items)  # type: ignore[arg-type] # some have no length, which is caught
    except TypeError:
        total = None
    left = iter(items)
    flying: deque[FleetFuture[Any]] = deque()
    try:
        for item in left:
            flying.append(submit(item))
            if buffersize is not None and len(flying) >= buffersize:
                break
    except BaseException:
        _cancel(flying)
        raise
    if total is None and buffersize is None:
        total = len(flying)
    return _results(submit, left, flying, _bar(total) if progress else None)


def _results(
    submit: Callable[[Item], FleetFuture[Any]], left: Iterator[Item], flying: deque[FleetFuture[Any]], bar: Any
) -> Iterator[CompletedProcess[Any]]:
    try:
        with _shown(bar, flying) as watch:
            while flying:
                result = flying[0].result()
                flying.popleft()
                for item in left:
                    flying.append(watch(submit(item)))
                    break
                yield result
    finally:
        _cancel(flying)


def _cancel(flying: Iterable[FleetFuture[Any]]) -> None:
    for future in flying:
        future.cancel()


def _need_rich() -> None:
    try:
        import rich.progress  # noqa: F401 - to fail early
    except ImportError as error:
        raise UnsupportedError("import", 2, "rich", "pip install rich, or omit progress") from error


def _bar(total: int | None) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, disable=not console.is_terminal)
    return bar, bar.add_task("containers", total=total)


@contextmanager
def _shown(
    bar: tuple[Any, Any] | None, flying: Iterable[FleetFuture[Any]]
) -> Iterator[Callable[[FleetFuture[Any]], FleetFuture[Any]]]:
    """Show a bar that counts tasks when they are done. Yields a function that adds a future to the count."""
    if bar is None:
        yield lambda future: future
        return
    shown, task = bar

    def counted(future: FleetFuture[Any]) -> FleetFuture[Any]:
        future.add_done_callback(lambda _: shown.advance(task))
        return future

    with shown:
        for future in flying:
            counted(future)
        yield counted
