"""The standard streams of a process to be."""

from __future__ import annotations

import os
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

from containerkit.errors import SpecError

__all__ = ["Streams", "require_open", "window_size"]


class Streams:
    """The standard streams of a process to be: what the child gets, and what the caller keeps.

    Made by :meth:`open`; :meth:`close_child` once the child has its copies, :meth:`close` when it never came to be.
    """

    def __init__(
        self, child: list[int], own: list[int | None], temporary: list[int], *, terminal: bool = False
    ) -> None:
        self.child = child
        self.own = own
        self.terminal = terminal
        self._temporary = temporary

    @classmethod
    def open(cls, stdin: Any, stdout: Any, stderr: Any, owner: int | None = None) -> Streams:
        """Prepare the streams as :mod:`subprocess` does.

        Args:
            stdin, stdout, stderr: None to share the caller's, PIPE, DEVNULL, a descriptor or a file; for stderr
                also STDOUT.
            owner: who shall own new pipes, a uid outside, so that /dev/stdout can be opened inside by its name.

        Raises:
            SpecError: none of these.
            OSError: no more descriptors.
        """
        wishes = zip(("stdin", "stdout", "stderr"), (stdin, stdout, stderr), strict=True)
        for name, wish in wishes:  # all before the first pipe is opened: it may get the number of one that is closed
            if isinstance(wish, int) and not isinstance(wish, bool) and wish >= 0:
                require_open(wish, name)
        streams = cls([], [None, None, None], [])
        try:
            for number, wish in enumerate((stdin, stdout, stderr)):
                streams._add(number, wish, owner)
        except BaseException:
            streams.close()
            raise
        return streams

    @classmethod
    def of_terminal(cls, master: int, slave: int) -> Streams:
        """Return the streams of a process on a terminal; both descriptors are taken over."""
        return cls([slave, slave, slave], [master, None, None], [slave], terminal=True)

    def _add(self, number: int, wish: Any, owner: int | None) -> None:
        name = ("stdin", "stdout", "stderr")[number]
        if wish == PIPE and wish is not None and not isinstance(wish, bool):
            read, write = os.pipe2(os.O_CLOEXEC)
            child, own = (read, write) if number == 0 else (write, read)
            self._temporary.append(child)
            self.own[number] = own
            if owner is not None:
                os.fchown(child, owner, -1)
        elif wish == DEVNULL and not isinstance(wish, bool):
            child = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            self._temporary.append(child)
        elif wish == STDOUT and number == 2:
            child = self.child[1]
        else:
            child = self._given(number, wish, name)
        if child <= 2:
            child = self._above(child)
        self.child.append(child)

    @staticmethod
    def _given(number: int, wish: Any, name: str) -> int:
        if wish is None:
            return number
        if isinstance(wish, int) and not isinstance(wish, bool) and wish >= 0:
            return wish
        if hasattr(wish, "fileno"):
            return int(wish.fileno())
        raise SpecError(f"{name}: {wish!r} is neither PIPE, DEVNULL, a descriptor nor a file")

    def _above(self, fd: int) -> int:
        """Copy a low descriptor out of the way of the three that the child puts its streams on."""
        import fcntl

        try:
            copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError:  # the caller has closed its own: the child gets nothing there
            copy = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            if copy <= 2:
                copy, low = fcntl.fcntl(copy, fcntl.F_DUPFD_CLOEXEC, 3), copy
                os.close(low)
        self._temporary.append(copy)
        return copy

    def inputs(self) -> dict[str, int]:
        """Return the slots for the plan."""
        return dict(zip(("stdin", "stdout", "stderr"), self.child, strict=True))

    def close_child(self) -> None:
        """Close the child's ends."""
        while self._temporary:
            os.close(self._temporary.pop())

    def close(self) -> None:
        """Close everything."""
        self.close_child()
        for number, fd in enumerate(self.own):
            if fd is not None:
                os.close(fd)
                self.own[number] = None


def require_open(fd: int, what: str) -> None:
    """Refuse a number that is no open descriptor: in the child it may be one of the library's own.

    Raises:
        SpecError: it is not open.
    """
    try:
        os.fstat(fd)
    except OSError:
        raise SpecError(f"{what}: {fd} is no open descriptor") from None


def window_size(size: Any) -> tuple[int, int]:
    """Return rows and columns.

    Raises:
        SpecError: not two numbers from 0 to 65535.
    """
    numbers = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 65536 for n in numbers):
        raise SpecError(f"pty: {size!r} is neither True nor a (rows, columns) pair of numbers from 0 to 65535")
    return numbers
