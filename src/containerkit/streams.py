"""The standard streams of a process to be."""

from __future__ import annotations

import os
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, Any, NamedTuple

from containerkit.errors import SpecError

__all__ = ["End", "Streams", "Text", "require_open", "window_size"]


class Text(NamedTuple):
    """How the bytes of a stream are text."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: Any, encoding: str | None, errors: str | None) -> Text | None:
        """Return what the arguments of :class:`subprocess.Popen` ask for; None for bytes.

        Raises:
            SpecError: nobody knows the encoding, or what to do with errors.
        """
        if not (text or encoding or errors):
            return None
        import codecs

        try:
            codecs.lookup(encoding or "utf-8")
            codecs.lookup_error(errors or "strict")
        except (LookupError, TypeError) as error:
            raise SpecError(f"encoding: {error}") from None
        return cls(encoding or "utf-8", errors or "strict")

    def decode(self, raw: bytes, *, cut: bool) -> str:
        """Return bytes as text; where they were cut off that may be in the midst of a character."""
        text = raw.decode(self.encoding, "replace" if cut and self.errors == "strict" else self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")


class End:
    """The caller's end of a stream: a descriptor, of which a file is made when somebody asks for it.

    Attributes:
        text: how its bytes are text; None for bytes.
    """

    __slots__ = ("_fd", "_file", "_mode", "text")

    def __init__(self, fd: int, mode: str, text: Text | None) -> None:
        self._fd = fd
        self._file: IO[Any] | None = None
        self._mode = mode
        self.text = text

    @property
    def file(self) -> IO[Any]:
        """The file; a closed one where the end was closed before anybody asked."""
        if self._file is None:
            self._file = self._made(self._fd) if self._fd >= 0 else self._made(os.open(os.devnull, os.O_RDWR))
            if self._fd < 0:
                self._file.close()
        return self._file

    def _made(self, fd: int) -> IO[Any]:
        mode, _, unbuffered = self._mode.partition(" ")
        file: IO[Any] = os.fdopen(fd, mode, buffering=0 if unbuffered else -1)
        if self.text is None:
            return file
        from io import TextIOWrapper

        return TextIOWrapper(file, encoding=self.text.encoding, errors=self.text.errors, write_through=True)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._fd < 0 if self._file is None else self._file.closed

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd if self._file is None else self._file.fileno()

    def flush(self) -> None:
        """Write what a file still holds back; a pipe that nobody reads any more is no error."""
        if self._file is not None:
            try:
                self._file.flush()
            except BrokenPipeError:
                return

    def close(self) -> None:
        """Close it; a pipe that nobody reads any more is no error."""
        if self._file is None:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
            return
        try:
            self._file.close()
        except (BrokenPipeError, BlockingIOError):
            return

    def __del__(self) -> None:
        if self._file is None and self._fd >= 0:
            os.close(self._fd)


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

    def ends(self, text: Text | None) -> list[End | None]:
        """Return the caller's ends, which own their descriptors from now on."""
        own, self.own = self.own, [None, None, None]
        if self.terminal:
            master = own[0]
            assert master is not None
            return [End(master, "wb unbuffered", text), End(os.dup(master), "rb unbuffered", text), None]
        return [None if fd is None else End(fd, mode, text) for fd, mode in zip(own, ("wb", "rb", "rb"), strict=True)]

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
