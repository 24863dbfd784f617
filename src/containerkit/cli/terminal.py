"""The caller's own terminal: its size, and its raw mode while it shows another terminal."""

from __future__ import annotations

import os
import signal
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Final, Self

__all__ = ["RawMode", "in_foreground", "is_wanted", "size"]

_STREAMS: Final = (0, 1, 2)
_DEFAULT_SIZE: Final = (24, 80)


def is_wanted() -> bool:
    """Return whether a command gets a terminal by default: all three streams are a terminal that this job may use.

    If a stream is redirected, the three must stay separate. A job in the background would be stopped if it changed the
    modes of the terminal.
    """
    return all(map(os.isatty, _STREAMS)) and in_foreground()


def in_foreground() -> bool:
    """Return whether this process may change its terminal. Source: tcgetpgrp(3)."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def size() -> tuple[int, int]:
    """Return the rows and columns of the caller's terminal, or 24 and 80 if they are unknown."""
    for fd in _STREAMS:
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return _DEFAULT_SIZE


class RawMode:
    """Passes each key on unchanged until it is left. Every way to leave it restores the modes.

    Args:
        fd: a terminal. For anything else this does nothing.
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
        # Not TCSAFLUSH: input that was typed in advance belongs to the command.
        termios.tcsetattr(self.fd, termios.TCSADRAIN, [iflag, oflag, cflag, lflag, ispeed, ospeed, characters])

    def restore(self) -> None:
        """Restore the modes. May be called twice, and after the terminal is gone."""
        if self._modes is None:
            return
        # In the background the kernel would stop us here, and leave the shell with a raw terminal.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTTOU])
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, self._modes)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
