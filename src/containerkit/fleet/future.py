"""The future of a task of a fleet."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.process.result import Cause, Usage

__all__ = ["FleetCause", "FleetFuture"]

Result = TypeVar("Result")
FleetCause: TypeAlias = "Cause | Literal['lost', 'error', 'cancelled']"


class FleetFuture(Future[Result]):
    """The future of a task: a :class:`concurrent.futures.Future` that can be cancelled at any time.

    Attributes:
        node: the name of the node that runs it, or ran it last; None before one has begun.
        attempts: how many times it was submitted to the engine, at least 1.
        usage: the resource usage of the command; None until it is done, and if it is unknown.
        cause: why it ended: that of its :class:`~containerkit.CompletedProcess`, or ``"lost"``, ``"cancelled"``, or
            ``"error"`` if the command could not be started; None until it is done.
    """

    node: str | None = None
    attempts: int = 0
    usage: Usage | None = None
    cause: FleetCause | None = None

    def __init__(self) -> None:
        super().__init__()
        self._gone = threading.Event()
        self._call_off: Callable[[bool], bool] | None = None

    def cancel(self, *, force: bool = False) -> bool:
        """Cancel it, even if it is running: its container is killed on its node. Returns at once; see :meth:`gone`.

        Args:
            force: if the node does not answer within 3 seconds, kill the worker: with Ray its process, with Dask the
                whole worker and everything else that it runs (default False).

        Returns:
            Whether it is cancelled; False if it was already done.
        """
        if self._call_off is None:
            return super().cancel()
        return self._call_off(force)

    def running(self) -> bool:
        """Return whether a node has begun it, and it is not done."""
        return self.node is not None and not self.done()

    def gone(self, timeout: float | None = None) -> bool:
        """Wait until nothing of it is running on any node. Returns at once if it is done, and soon if it was cancelled.

        Args:
            timeout: in seconds (default: no limit).

        Returns:
            Whether nothing is running.
        """
        return self._gone.wait(timeout)

    def settle_cancelled(self) -> None:
        """Become cancelled, and wake those who wait."""
        super().cancel()
        self.set_running_or_notify_cancel()

    def settle_gone(self) -> None:
        """Record that nothing of it is running any more."""
        self._gone.set()

    def cancelled_by(self, call_off: Callable[[bool], bool]) -> None:
        """Set the function that cancels it. Its argument is ``force``."""
        self._call_off = call_off
