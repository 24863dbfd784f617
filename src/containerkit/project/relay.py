"""Relays the streams of a command to those of a client, whose descriptors the client has sent."""

from __future__ import annotations

import os
import select
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.project.output import Tap
    from containerkit.project.replica import Replica

__all__ = ["attach", "relay"]

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


def attach(replica: Replica, fds: Sequence[int], connection: int, keys: bytes) -> int | None:
    """Pass on the output of a container's command to a client, and its input to the command.

    Args:
        replica: the container, which is running.
        fds: the client's standard input (-1: nothing is passed on), output and error output.
        connection: the socket to the client, which sends nothing more.
        keys: what detaches when it is typed; empty for nothing.

    Returns:
        The exit status of the command; None if the client has detached or gone before its end.
    """
    stdin, *outputs = fds
    with replica.output.tapped() as tap:
        wake, woken = os.pipe()
        typing = threading.Thread(target=_type_in, args=(replica, stdin, (connection, wake), keys, tap), daemon=True)
        typing.start()
        before = replica.exits
        try:
            for stream, data in tap:
                left = data
                while left:
                    left = left[os.write(outputs[stream == "stderr"], left) :]
        finally:
            os.close(woken)
            typing.join()
            os.close(wake)
        return replica.exit_code if replica.exits > before else None


def _type_in(replica: Replica, stdin: int, ends: tuple[int, int], keys: bytes, tap: Tap) -> None:
    """Pass on input until the client detaches or goes, or the output has ended."""
    poll = select.poll()
    for fd in ends:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    if stdin >= 0:
        poll.register(stdin, select.POLLIN)
    terminal = stdin >= 0 and os.isatty(stdin)
    known, typed = None, b""
    while True:
        events = {fd for fd, _ in poll.poll(_LOOK_S * 1000 if terminal else None)}
        if terminal and (now := _size(stdin)) != known:
            known = now
            with suppress(OSError):
                replica.resize(*now)
        if stdin in events:
            data = _read(stdin)
            if not data:
                poll.unregister(stdin)
            typed += data
            if keys and keys in typed:
                events |= {ends[0]}
            held = _held(typed, keys)
            _type(replica, typed[: len(typed) - held].partition(keys)[0] if keys else typed)
            typed = typed[len(typed) - held :] if held else b""
        if events & {*ends}:
            tap.end()
            return


def _held(typed: bytes, keys: bytes) -> int:
    """Return how many of the last bytes may be the beginning of the keys."""
    return next((count for count in range(len(keys) - 1, 0, -1) if typed.endswith(keys[:count])), 0)


def _type(replica: Replica, data: bytes) -> None:
    fd = replica.stdin
    while data and fd is not None:
        _, ready, _ = select.select([], [fd], [], 1)
        if ready:
            data = data[_write(fd, data) :]
        elif replica.status != "running":
            return


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
