"""Relays the terminal of a command to the terminal of a client, whose descriptors the client has sent."""

from __future__ import annotations

import os
import select
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["relay"]

_CHUNK: Final = 65536
_LOOK_S: Final = 0.25
"""The size of the client's terminal is looked at so often: its changes are signalled to the client only."""


def relay(process: Any, stdin: int, stdout: int, connection: int) -> None:
    """Relay until the command ends, or kill it when the client has gone.

    Args:
        process: started with a terminal.
        stdin, stdout: the client's terminal, in raw mode.
        connection: the socket to the client, which sends nothing more.
    """
    master = process.stdin.fileno()
    os.set_blocking(master, False)
    known, pending, reading = _size(stdin), b"", True
    poll = select.poll()
    for fd in (master, process.fileno(), connection):
        poll.register(fd, select.POLLIN | select.POLLHUP)
    while True:
        if reading and not pending:
            poll.register(stdin, select.POLLIN)
        events = {fd for fd, _ in poll.poll(_LOOK_S * 1000)}
        if connection in events:
            process.kill_all()
            return
        if stdin in events:
            pending = _read(stdin)
            poll.unregister(stdin)  # until the command has taken it
            reading = bool(pending)
        if pending:
            pending = pending[_write(master, pending) :]
        if master in events and not _passed(master, stdout):
            poll.unregister(master)  # all its users have closed it
        if process.fileno() in events:
            while _passed(master, stdout):
                pass
            return
        if (now := _size(stdin)) != known:
            known = now
            with suppress(OSError):
                process.resize(*now)


def _passed(master: int, stdout: int) -> bool:
    """Pass on what there is to show; return whether there was something."""
    data = _read(master)
    while data:
        data = data[_write(stdout, data) :]
        if not data:
            return True
    return False


def _quiet(call: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return call()
    except OSError:  # nothing there now, or closed
        return otherwise


def _read(fd: int) -> bytes:
    found: bytes = _quiet(lambda: os.read(fd, _CHUNK), b"")
    return found


def _write(fd: int, data: bytes) -> int:
    count: int = _quiet(lambda: os.write(fd, data), 0)
    return count


def _size(fd: int) -> tuple[int, int]:
    columns, rows = _quiet(lambda: os.get_terminal_size(fd), (80, 24))
    return rows, columns
