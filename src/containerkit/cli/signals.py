"""Signals that can be read from a descriptor, for code that waits for other things as well."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self

__all__ = ["FORWARDED", "Signals"]

FORWARDED: Final = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
        signal.SIGTERM,
    }
)
"""The signals that are forwarded to the command. It has its own session, so the terminal's signals do not reach it."""


class Signals:
    """Receives signals while it is entered. :meth:`read` returns those that arrived.

    A signal that was ignored when the program started (because of nohup, for example) stays ignored.

    Args:
        numbers: the signals to receive.
    """

    def __init__(self, numbers: frozenset[signal.Signals]) -> None:
        self.numbers = numbers
        self._before: dict[int, Any] = {}
        self._pipe = (-1, -1)
        self._wakeup = -1

    def __enter__(self) -> Self:
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # The handler itself does nothing: the interpreter writes the number into the pipe.
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in self.numbers:
            if signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, _ignore)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        for fd in self._pipe:
            os.close(fd)

    def fileno(self) -> int:
        """Return a descriptor that is readable when a signal has arrived."""
        return self._pipe[0]

    def read(self) -> list[int]:
        """Return the signals that have arrived since the last call, without waiting."""
        try:
            return list(os.read(self._pipe[0], 4096))
        except BlockingIOError:
            return []


def _ignore(number: int, frame: object) -> None:
    """Do nothing: the wakeup descriptor reports the signal."""
