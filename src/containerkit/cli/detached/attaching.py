"""``attach`` shows the output of a detached container and passes on standard input."""

from __future__ import annotations

import os
import select
import signal
import struct
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

from containerkit.cli import terminal
from containerkit.cli.detached import Verb
from containerkit.cli.detached.output import copy
from containerkit.detached.container import find
from containerkit.detached.known import shell_status
from containerkit.detached.stdin import end_input, stdin_of
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from containerkit.detached.container import Detached

__all__ = ["attach", "watch"]


def _define_attach(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONTAINER", help="its name or id")
    parser.add_argument("--no-stdin", action="store_true", help="do not pass on standard input")
    parser.add_argument(
        "--detach-keys", metavar="KEYS", default="ctrl-p,ctrl-q", help="the keys that detach (default: ctrl-p,ctrl-q)"
    )
    parser.add_argument(
        "--end-stdin", action="store_true", help="close the command's standard input at the end of ours"
    )
    parser.add_argument("--logs", action="store_true", help="also show its earlier output")


def keys_of(text: str) -> bytes:
    """Return the bytes of ``ctrl-p,ctrl-q``, or empty bytes for an empty text.

    Raises:
        SpecError: the text does not name keys.
    """
    found = bytearray()
    for part in text.split(",") if text else ():
        letter = part.removeprefix("ctrl-")
        if len(letter) != 1 or not letter.isascii() or (part != letter and not 0x40 <= ord(letter.upper()) <= 0x5F):
            raise SpecError(f"--detach-keys {text!r}: must be single letters, or ctrl-LETTER, with commas between")
        found.append(ord(letter) if part == letter else ord(letter.upper()) & 0x1F)
    return bytes(found)


def _attach(options: argparse.Namespace) -> int:
    one, keys = find(options.name), keys_of(options.detach_keys)
    if one.status not in ("running", "paused"):
        raise StateError(f"{one!r}: it does not run; 'containerkit logs {options.name}' shows its output")
    return watch(one, typing=not options.no_stdin, before=options.logs, keys=keys, ends=options.end_stdin)


def watch(one: Detached, *, typing: bool, before: bool, keys: bytes = b"\x10\x11", ends: bool = False) -> int:
    """Show the output of a container until its end, and return its exit status.

    Args:
        one: the container.
        typing: pass on standard input.
        before: also show earlier output.
        keys: the bytes of the keys that detach; empty for none.
        ends: close the command's standard input at the end of ours.
    """
    tty, is_removed = one.keeping.tty, one.keeping.remove
    with ExitStack() as stack:
        stdin = stdin_of(one) if typing and one.status in ("running", "paused") else None
        hands_on = _Typing(stdin, keys, (lambda: end_input(one)) if ends else None)
        stack.callback(hands_on.close)
        if stdin is not None and tty:
            stack.enter_context(terminal.RawMode(0))
            _resize(stdin)
            former = signal.signal(signal.SIGWINCH, lambda *_: _resize(stdin))
            stack.callback(signal.signal, signal.SIGWINCH, former)
        handler = signal.signal(signal.SIGURG, _let_go)
        stack.callback(signal.signal, signal.SIGURG, handler)
        try:
            lines = one.logs(follow=True, tail=None if before else 0, pieces=True)
            hands_on.start()
            copy(lines, at_once=True)
        except _DetachKeys:
            return 0
    try:
        return shell_status(one.wait())
    except StateError:
        if not is_removed:
            raise
        return 0  # its keeper was faster, and with the record the status is gone


def _resize(fd: int) -> None:
    import fcntl
    import termios

    rows, columns = terminal.size()
    with suppress(OSError):
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))


class _DetachKeys(Exception):  # noqa: N818 - not an error
    """The keys that detach were typed."""


def _let_go(*_: object) -> None:
    raise _DetachKeys


class _Typing(threading.Thread):
    """Passes on what is typed, until the keys that detach.

    Args:
        fd: the command's standard input, or its terminal; None for none.
        keys: the bytes of the keys that detach.
        ended: called at the end of the input; None for nothing.
    """

    def __init__(self, fd: int | None, keys: bytes, ended: Callable[[], None] | None) -> None:
        super().__init__(daemon=True)
        self._ended = ended
        self._fd = fd
        self._keys = keys
        self._matched = 0

    def run(self) -> None:
        """Read keys and write them."""
        with suppress(OSError):
            while self._fd is not None and (typed := os.read(0, 4096)):
                if self._hand_on(typed):
                    os.kill(os.getpid(), signal.SIGURG)  # wakes the main thread, which waits for output
                    return
        if self._fd is not None and self._ended is not None:
            self.close()  # the command reads the end of file once all writers are closed
            with suppress(StateError):  # it has ended in the meantime
                self._ended()

    def close(self) -> None:
        """Close the command's standard input. May be called twice."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _hand_on(self, typed: bytes) -> bool:
        passed = bytearray()
        for key in typed:
            if self._keys and key == self._keys[self._matched]:
                self._matched += 1
                if self._matched == len(self._keys):
                    self._write(passed)
                    return True
                continue
            passed += self._keys[: self._matched]
            self._matched = 0
            if self._keys and key == self._keys[0]:
                self._matched = 1
            else:
                passed.append(key)
        self._write(passed)
        return False

    def _write(self, passed: bytearray) -> None:
        """Write all of it. A terminal does not block, because the keeper reads from it."""
        while self._fd is not None and passed:
            select.select([], [self._fd], [])
            with suppress(BlockingIOError):
                del passed[: os.write(self._fd, passed)]


attach = Verb(_define_attach, _attach)
