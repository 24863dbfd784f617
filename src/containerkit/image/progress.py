"""Progress of transfers: a callback for programs, bars on a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol, TextIO

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Progress", "ProgressEvent", "silent", "terminal_progress"]


Action = Literal["download", "upload", "unpack", "build"]
Status = Literal["running", "done", "exists"]


@attrs.frozen(kw_only=True)
class ProgressEvent:
    """One step of a transfer.

    Attributes:
        action: ``download``, ``upload``, ``unpack`` or ``build``.
        subject: the digest, or the instruction of a build.
        done_bytes: the number of bytes done.
        total_bytes: the total number, or 0 if it is unknown.
        status: ``running``, ``done``, or ``exists`` if nothing had to be done.
    """

    action: Action
    subject: str
    done_bytes: int = 0
    total_bytes: int = 0
    status: Status = "running"


class Progress(Protocol):
    """A callback for progress. Several threads call it often, so it must be quick and must not raise."""

    def __call__(self, event: ProgressEvent, /) -> None:
        """Handle one event."""


def silent(_: ProgressEvent) -> None:
    """Ignore an event."""


@contextmanager
def terminal_progress(stream: TextIO | None = None) -> Iterator[Progress]:
    """Show bars on a terminal. On anything else, print nothing.

    Args:
        stream: the output. Default: the standard error.

    Yields:
        The callback for ``progress=``.
    """
    stream = stream or sys.stderr
    if not stream.isatty():
        yield silent
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Bars
    except ImportError:
        yield _Lines(stream)
        return
    columns = (TextColumn("{task.description:<22}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(file=stream)) as bars:
        tasks: dict[tuple[str, str], object] = {}
        lock = threading.Lock()

        def show(event: ProgressEvent, /) -> None:
            with lock:
                key = (event.action, event.subject)
                label = f"{event.action} {_short(event.subject)}"
                if key not in tasks:
                    tasks[key] = bars.add_task(label, total=event.total_bytes or None)
                done = event.total_bytes if event.status != "running" else event.done_bytes
                bars.update(tasks[key], completed=done)  # type: ignore[arg-type] # a TaskID, a name that is imported with rich alone

        yield show


class _Lines:
    """One line for each finished step, if rich is not installed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, event: ProgressEvent, /) -> None:
        if event.status != "running":
            self._stream.write(f"{event.action} {_short(event.subject)}: {event.status}\n")


def _short(subject: str) -> str:
    return subject.partition(":")[2][:12] if subject.startswith("sha") else subject[:40]
