"""Relay the terminal of a command to the caller's own."""

from __future__ import annotations

import os
import select
import signal
import termios

from containerkit.cli import terminal
from containerkit.cli.attend import Attendant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from containerkit.cli.signals import Signals
    from containerkit.cli.terminal import RawMode
    from containerkit.process.process import Process

__all__ = ["Relay"]

_CTRL_D: Final = b"\4"
_CHUNK: Final = 65536
_AHEAD: Final = 65536
"""The number of bytes of input that are buffered for the command."""


class Relay(Attendant):
    """Relays the terminal of a process to the caller's streams.

    Keys are passed on unchanged, so Ctrl-C and Ctrl-Z act inside. The size follows the caller's terminal.

    Args:
        process: started with a terminal.
        signals: entered already, including SIGWINCH, SIGCONT and SIGTSTP.
        raw: the caller's terminal, entered already.
        timeout, stop_signal: as for :class:`Attendant`.
    """

    def __init__(
        self,
        process: Process[Any],
        signals: Signals,
        raw: RawMode,
        timeout: float | None = None,
        *,
        stop_signal: int = signal.SIGTERM,
    ) -> None:
        super().__init__(process, signals, timeout, stop_signal=stop_signal)
        assert process.stdin is not None
        self.raw = raw
        self.master: int = process.stdin.fileno()
        self.waiting = b""
        self.reading = True
        self.at_line_start = True
        self.ended_by_line: bool | None = None  # in which mode of the terminal the end of the input was typed last
        os.set_blocking(self.master, False)
        self._watch()

    def _watch(self) -> None:
        """Register the events that are needed: input while the buffer has room, output while input is waiting."""
        if self.master >= 0:
            self.poll.register(self.master, select.POLLIN | (select.POLLOUT if self.waiting else 0))
        if self.reading and self.master >= 0 and len(self.waiting) < _AHEAD:
            self.poll.register(0, select.POLLIN)
        else:
            _forget(self.poll, 0)

    def serve(self, fd: int, event: int) -> None:
        """Move bytes."""
        if fd == 0:
            self._read_input()
        elif fd == self.master:
            if event & select.POLLOUT:
                self._feed()
            if event & ~select.POLLOUT and not self._show():
                self._hang_up()
            elif not self.reading:  # it may have shown a prompt, for which it has changed the mode
                self._end_input()
        self._watch()

    def _read_input(self) -> None:
        try:
            data = os.read(0, _CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: the terminal is gone, or this job stays in the background forever
            data = b""
        if not data:
            self.reading = False
            self._end_input()
            return
        self.at_line_start = data.endswith((b"\n", b"\r"))
        self.waiting += data
        self._feed()

    def _end_input(self) -> None:
        """Type what ends the input, again if the mode of the terminal has changed: that may discard what was typed."""
        modes: list[Any] = termios.tcgetattr(self.master)
        by_line = bool(modes[3] & termios.ICANON)
        if by_line != self.ended_by_line:
            self.ended_by_line = by_line
            self.waiting += self._end_of_file(modes) if by_line else _CTRL_D
            self._feed()

    def _end_of_file(self, modes: list[Any]) -> bytes:
        """Return what ends the input of a terminal: within a line Ctrl-D must be sent twice. Source: termios(3)."""
        key: bytes = modes[6][termios.VEOF]
        return key if self.at_line_start else key * 2

    def _feed(self) -> None:
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(self.master, self.waiting) :]
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has the other side open
            self.waiting = b""

    def _show(self) -> bool:
        """Pass on the output. Return False if there will be no more."""
        try:
            data = os.read(self.master, _CHUNK)
        except BlockingIOError:
            return True
        except OSError:  # EIO: the last process inside has closed it
            return False
        return bool(data) and _show_all(data)

    def take(self, number: int) -> None:
        """Handle a signal: those of the terminal here, all others are forwarded."""
        if number == signal.SIGWINCH:
            self._resize()
        elif number == signal.SIGTSTP:
            self.raw.restore()
            os.kill(os.getpid(), signal.SIGSTOP)  # continues with SIGCONT
        elif number == signal.SIGCONT:
            self.raw.set()
            self._resize()
        elif number == signal.SIGHUP:
            self._hang_up()
        else:
            super().take(number)

    def _resize(self) -> None:
        if self.master >= 0:
            self.process.resize(*terminal.size())

    def _hang_up(self) -> None:
        """Close the terminal. The kernel sends SIGHUP to processes inside that still use it. Source: pty(7)."""
        if self.master < 0:
            return
        _forget(self.poll, self.master)
        self.master = -1
        for file in (self.process.stdin, self.process.stdout):
            assert file is not None
            file.close()

    def finish(self) -> None:
        """Pass on the rest of the output. Output of processes that the command left running is dropped."""
        while self.master >= 0:
            try:
                data = os.read(self.master, _CHUNK)
            except OSError:  # there is no more output
                return
            if not data or not _show_all(data):
                return


def _forget(poll: select.poll, fd: int) -> None:
    try:
        poll.unregister(fd)
    except KeyError:
        return


def _show_all(data: bytes) -> bool:
    """Write to stdout. Return False if the caller's terminal is gone."""
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:  # the caller's stream is non-blocking, so wait here
            select.select([], [1], [])
        except BrokenPipeError:
            raise
        except OSError:  # EIO
            return False
    return True
