"""The attempts at a task, one after the other, and the result of its future."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import ContainerTimeout, ExitError
from containerkit.fleet.errors import FleetError
from containerkit.fleet.future import FleetFuture

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.fleet.engine import Attempt, Engine, Outcome, StreamName, Task
    from containerkit.fleet.future import FleetCause
    from containerkit.fleet.report import Books
    from containerkit.options import Listener
    from containerkit.process.result import CompletedProcess
    from containerkit.process.stdio import Text

__all__ = ["Flight"]

_PAUSES_S: Final = (0.0, 0.5, 2.0, 5.0)
"""The delays before the attempts after the first, in seconds, because a repeated loss may have a lasting cause."""


class Flight:
    """A task and its attempts.

    It is the watcher of all attempts. Each one has ended before another begins.

    Args:
        engine: makes the attempts.
        task: the task. Each attempt has its id with a number.
        retries: the maximum number of further attempts.
        books: counts the outcomes.
        listeners: receive the lines of the command.
        text: the encoding of its output; None for bytes.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task,
        *,
        retries: int,
        books: Books,
        listeners: dict[StreamName, Listener],
        text: Text | None,
    ) -> None:
        self.future: FleetFuture[Any] = FleetFuture()
        self.future.cancelled_by(self.call_off)
        self._engine = engine
        self._task = task
        self._left = retries
        self._books = books
        self._listeners: dict[StreamName, Callable[[Any], object]] = dict(listeners)
        self._text = text
        self._lock = threading.Lock()
        self._attempt: Attempt | None = None
        self._cancelled: bool | None = None
        self._problem: BaseException | None = None
        self._settled = False
        self._submitted = 0.0

    # --- Attempts

    def launch(self) -> None:
        """Make an attempt.

        Raises:
            SpecError, FleetError: the engine does not accept it.
        """
        future = self.future
        future.attempts += 1
        number = future.attempts
        if number > 1:
            self._books.retried()
        self._submitted = time.monotonic()
        attempt = self._engine.submit(attrs.evolve(self._task, id=f"{self._task.id}-{number}"), self)
        with self._lock:
            if future.attempts != number or future.done():
                force = self._cancelled
                if force is None:
                    return  # it has ended already
            else:
                self._attempt = attempt
                force = self._cancelled
        if force is not None:
            attempt.cancel(force=force)

    def _launch_again(self) -> None:
        try:
            if self._cancelled is None:
                self.launch()
                return
            self.future.settle_gone()
        except Exception as error:  # noqa: BLE001 - raised again by the future
            self._settle(None, error, "error")

    def call_off(self, force: bool) -> bool:  # noqa: FBT001 - the future's own callback
        """Cancel it; see :meth:`FleetFuture.cancel`."""
        with self._lock:
            first = self._cancelled is None
            if first and self._settled:
                return False
            self._cancelled = force or bool(self._cancelled)
            attempt = self._attempt
        if first:
            self.future.cause = "cancelled"
            self._books.settled("cancelled")
            self.future.settle_cancelled()
        if attempt is not None:
            attempt.cancel(force=force)
        return True

    # --- As the watcher of its attempts

    def began(self, node: str) -> None:
        """Handle its start by a node."""
        self.future.node = node
        self._books.began(node, time.monotonic() - self._submitted)

    def wrote(self, stream: StreamName, data: str | bytes) -> None:
        """Pass a line on to the listeners."""
        listener = self._listeners.get(stream)
        if listener is None or self._problem is not None or self.future.done():
            return
        try:
            listener(self._text.decode(data, cut=False) if self._text is not None and isinstance(data, bytes) else data)
        except BaseException as error:  # noqa: BLE001 - ends the command, as in run()
            self._problem = error
            attempt = self._attempt
            if attempt is not None:
                attempt.cancel()

    def ended(self, outcome: Outcome) -> None:
        """Handle the end of an attempt. Make another if it was lost and retries are left."""
        future = self.future
        self._books.ended(future.node or "", outcome)
        with self._lock:
            self._attempt = None
            again = outcome.lost and self._left > 0 and self._cancelled is None and self._problem is None
            self._left -= again
        if again:
            pause = _PAUSES_S[min(future.attempts - 1, len(_PAUSES_S) - 1)]
            if not pause:
                self._launch_again()
                return
            timer = threading.Timer(pause, self._launch_again)
            timer.daemon = True
            timer.start()
            return
        if self._problem is not None:
            self._settle(None, self._problem, "error")
            return
        cause: FleetCause = "lost" if outcome.lost else "error"
        if outcome.result is not None:
            cause = outcome.result.cause
        elif isinstance(outcome.error, (ContainerTimeout, ExitError)):
            cause = "timeout" if isinstance(outcome.error, ContainerTimeout) else outcome.error.cause
        self._settle(outcome.result, outcome.error, cause)

    def _settle(self, result: CompletedProcess[Any] | None, error: BaseException | None, cause: FleetCause) -> None:
        """Set the result of the future, unless it was cancelled. The outcome is counted before."""
        future = self.future
        with self._lock:
            first, self._settled = not self._settled, True
            cancelled = self._cancelled is not None
        if first and not cancelled:
            future.usage = None if result is None else result.usage
            future.cause = cause
            if error is None and result is None:
                error = FleetError(f"task {self._task.id}: the engine reported neither a result nor an error")
            failed = error is not None or (result is not None and result.returncode != 0)
            self._books.settled(cause if failed else None)
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)
        future.settle_gone()
