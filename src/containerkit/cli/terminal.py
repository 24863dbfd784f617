"""The caller's own terminal: its size, and its raw mode while another terminal is shown on it."""

from __future__ import annotations

import os
import signal
import termios
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["RawMode", "in_foreground", "is_wanted", "size"]

_STREAMS: Final = (0, 1, 2)
_DEFAULT_SIZE: Final = (24, 80)


def is_wanted() -> bool:
    """Tell whether a command should get a terminal unasked: all three streams are one, and this job has it.

    With any stream redirected, the three must stay apart. A job in the background would be stopped for touching the
    terminal's modes.
    """
    return all(map(os.isatty, _STREAMS)) and in_foreground()


def in_foreground() -> bool:
    """Tell whether this process may change its terminal. Source: tcgetpgrp(3)."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Return the rows and columns of the caller's terminal; 24 and 80 where it has none that tells."""
    for fd in _STREAMS:
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return _DEFAULT_SIZE


class RawMode:
    """Hands each key on as it is, until it is left: every way out restores the modes.

    Args:
        fd: a terminal. For anything else nothing is done.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._modes: list[Any] | None = termios.tcgetattr(fd) if os.isatty(fd) else None

    def __enter__(self) -> Self:
        self.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.restore()

    def set(self) -> None:
        """Switch to raw mode. Source: termios(3), cfmakeraw."""
        if self._modes is None:
            return
        iflag, oflag, cflag, lflag, ispeed, ospeed, characters = self._modes
        off = termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR
        iflag &= ~(off | termios.ICRNL | termios.IXON)
        oflag &= ~termios.OPOST
        cflag = cflag & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        lflag &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        characters = list(characters)
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        # Not TCSAFLUSH: what was typed ahead belongs to the command.
        termios.tcsetattr(self.fd, termios.TCSADRAIN, [iflag, oflag, cflag, lflag, ispeed, ospeed, characters])

    def restore(self) -> None:
        """Switch back; harmless when repeated, or when the terminal is gone."""
        if self._modes is None:
            return
        # In the background the kernel would stop us for it, and the shell with a raw terminal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._modes)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
