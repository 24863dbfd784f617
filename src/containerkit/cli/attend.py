"""Stay with a command until it ends: forward signals to it."""

from __future__ import annotations

import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.cli.signals import Signals
    from containerkit.process.process import Process

__all__ = ["Attendant"]


class Attendant:
    """Waits for a process and forwards the signals that arrive.

    Args:
        process: the process.
        signals: entered already.
        timeout: seconds after which :meth:`stay` gives up. Default: never.
        stop_signal: the signal to send instead of SIGTERM. Default: SIGTERM itself.
    """

    def __init__(
        self,
        process: Process[Any],
        signals: Signals,
        timeout: float | None = None,
        *,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        self.process = process
        self.stop_signal = stop_signal
        self.signals = signals
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.poll = select.poll()
        self.poll.register(process.fileno(), select.POLLIN)
        self.poll.register(signals.fileno(), select.POLLIN)

    def attend(self) -> bool:
        """Wait for the end of the process, and kill it after the timeout.

        Returns:
            False if the timeout expired.
        """
        in_time = self.stay()
        if not in_time:
            self.process.kill()
        self.process.wait()
        return in_time

    def stay(self) -> bool:
        """Wait until the process ends.

        Returns:
            False if the timeout expired first.
        """
        ended = self.process.fileno()
        while True:
            events = self.poll.poll(self._milliseconds())
            for fd, event in events:
                if fd == self.signals.fileno():
                    for number in self.signals.read():
                        self.take(number)
                elif fd != ended:
                    self.serve(fd, event)
            if any(fd == ended for fd, _ in events):
                self.finish()
                return True
            if self.deadline is not None and time.monotonic() >= self.deadline:
                self.finish()
                return False

    def _milliseconds(self) -> float | None:
        if self.deadline is None:
            return None
        return max(0.0, (self.deadline - time.monotonic()) * 1000 + 0.5)

    def take(self, number: int) -> None:
        """Handle a signal."""
        self.process.send_signal(self.stop_signal if number == signal.SIGTERM else number)

    def serve(self, fd: int, event: int) -> None:
        """Handle an event of another descriptor."""

    def finish(self) -> None:
        """Finish the work after the process has ended or was given up."""
