"""The standard streams of a process that is being started."""

from __future__ import annotations

import io
import os
import stat
from errno import EIO
from functools import partial
from operator import itemgetter

from containerkit.descriptors import close_all, keep
from containerkit.errors import SpecError, telling_of_descriptors
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Final

__all__ = ["DEVNULL", "PIPE", "STDOUT", "End", "Streams", "Text", "require_open", "window_size"]

PIPE: Final = -1
STDOUT: Final = -2
DEVNULL: Final = -3
"""The same values as in :mod:`subprocess`, which takes long to import."""

_CHUNK: Final = 65536


class Text(NamedTuple):
    """How the bytes of a stream are decoded."""

    encoding: str
    errors: str

    @classmethod
    def of(cls, text: Any, encoding: str | None, errors: str | None) -> Text | None:
        """Return the decoding that arguments of :class:`subprocess.Popen` request; None for bytes.

        Raises:
            SpecError: the encoding or the error handler is unknown.
        """
        if not (text or encoding or errors):
            return None
        import codecs

        try:
            codecs.lookup(encoding or "utf-8")
            codecs.lookup_error(errors or "strict")
        except (LookupError, TypeError, ValueError) as error:
            raise SpecError(f"encoding: {error}") from None
        return cls(encoding or "utf-8", errors or "strict")

    def decode(self, raw: bytes, *, cut: bool) -> str:
        """Return bytes as text. If they were cut off, the cut may be inside a character."""
        text = raw.decode(self.encoding, "replace" if cut and self.errors == "strict" else self.errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")


class End:
    """The caller's end of a stream: a raw file, which becomes buffered or text on first use.

    Args:
        buffered: whether the file is buffered.
        text: how its bytes are decoded; None for bytes.

    It has no ``__del__``, in which an exception of a signal handler would be lost.
    """

    __slots__ = ("_buffered", "_files", "text")

    def __init__(self, *, buffered: bool, text: Text | None) -> None:
        self._files: list[IO[Any]] = []
        self._buffered = buffered
        self.text = text

    def take_over(self, kind: type[io.FileIO], descriptors: list[int | None], mode: str) -> None:
        """Make a file that owns the last descriptor of a list."""
        # All in C, as in keep(), so that exactly one owner closes it at any moment. But while the file is made,
        # audit hooks of the program run, where a signal handler can raise: only then is it taken out of the list.
        made = zip(map(kind, descriptors[-1:], (mode,)), map(descriptors.pop, (-1,)), strict=False)
        self._files.extend(map(itemgetter(0), made))

    @property
    def file(self) -> IO[Any]:
        """The file. It is a closed one if the end was closed before the first use."""
        files = self._files
        if not files:
            keep(files, io.FileIO, os.devnull)
            files[0].close()
        if self.closed:
            return files[-1]
        if self._buffered and len(files) == 1:
            keep(files, io.BufferedWriter if files[0].writable() else io.BufferedReader, files[0])
        if self.text is not None and not isinstance(files[-1], io.TextIOWrapper):
            wrapper = partial(io.TextIOWrapper, write_through=True)
            keep(files, wrapper, files[-1], self.text.encoding, self.text.errors)
        return files[-1]

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._files or self._files[-1].closed

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._files[-1].fileno()

    def flush(self) -> None:
        """Flush a file. A pipe that nobody reads any more is not an error."""
        try:
            if not self.closed:
                self._files[-1].flush()
        except BrokenPipeError:
            return

    def close(self) -> None:
        """Close it. A pipe that nobody reads any more is not an error."""
        try:
            if self._files:
                self._files[-1].close()
        except (BrokenPipeError, BlockingIOError):
            return


class _TerminalOutput(io.FileIO):
    """The output of a process to its terminal. If the other side is closed, this is the end and not an error.

    Source: n_tty_read() in drivers/tty/n_tty.c: EIO after a hangup.
    """

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer; 0 at the end."""
        try:
            return super().readinto(buffer)
        except OSError as error:
            if error.errno != EIO:
                raise
            return 0

    def read(self, size: int | None = -1) -> Any:
        """Read once, or to the end. Return None if nothing is available and the file does not block."""
        if size is None or size < 0:
            return self.readall()
        buffer = bytearray(size)
        count = self.readinto(buffer)
        return None if count is None else bytes(buffer[:count])

    def readall(self) -> Any:
        """Read to the end."""
        read = bytearray()
        while chunk := self.read(_CHUNK):
            read += chunk
        return None if chunk is None and not read else bytes(read)


class Streams:
    """The standard streams of a process that is being started: the child's ends and the caller's ends.

    Made by :meth:`open`. Call :meth:`close_child` after the child has its copies, or :meth:`close` if the start failed.
    A signal handler may raise at any moment, so each descriptor always has an owner.
    """

    def __init__(
        self, child: list[int], own: list[int | None], temporary: list[int], *, terminal: bool = False
    ) -> None:
        self.child = child
        self.own = own
        self.terminal = terminal
        self._temporary = temporary
        self._pipes: list[tuple[int, int]] = []
        self._ends: dict[int, End | None] = {}

    @classmethod
    def open(cls, stdin: Any, stdout: Any, stderr: Any, owner: int | None = None) -> Streams:
        """Prepare the streams as :mod:`subprocess` does.

        Args:
            stdin, stdout, stderr: None to share the caller's, PIPE, DEVNULL, a descriptor or a file; for stderr
                also STDOUT.
            owner: the uid outside that owns new pipes, so that /dev/stdout can be opened inside by name.

        Raises:
            SpecError: a value is none of these.
            SetupError: no descriptor is free.
        """
        streams = cls([], [None, None, None], [])
        try:
            streams.add(stdin, stdout, stderr, owner)
        except BaseException:
            streams.close()
            raise
        return streams

    @telling_of_descriptors("open")  # returns no resource that a signal handler could lose
    def add(self, stdin: Any, stdout: Any, stderr: Any, owner: int | None = None) -> None:
        """Prepare the streams of a process that has none yet. The arguments are those of :meth:`open`.

        Raises:
            SpecError, SetupError: as for :meth:`open`. What was already opened is closed with the rest.
        """
        wishes = zip(("stdin", "stdout", "stderr"), (stdin, stdout, stderr), strict=True)
        for (
            name,
            wish,
        ) in wishes:  # all before the first pipe is opened, which may get the number of a closed descriptor
            if isinstance(wish, int) and not isinstance(wish, bool) and wish >= 0:
                require_open(wish, name)
        for number, wish in enumerate((stdin, stdout, stderr)):
            self._add(number, wish, owner)

    def add_terminal(self, opened: list[int]) -> None:
        """Take over the master and the slave of a terminal from a list, which is empty afterwards."""
        keep(opened, os.dup, opened[0])
        # Nothing is called from here on, so no signal handler can run before these have their owners.
        master, slave, copy = opened
        self.terminal = True
        self.child, self.own, self._temporary = [slave, slave, slave], [master, copy, None], [slave]
        del opened[:]

    def _add(self, number: int, wish: Any, owner: int | None) -> None:
        name = ("stdin", "stdout", "stderr")[number]
        if wish == PIPE and wish is not None and not isinstance(wish, bool):
            child = self._add_pipe(number)
            if owner is not None:
                os.fchown(child, owner, -1)
        elif wish == DEVNULL and not isinstance(wish, bool):
            child = keep(self._temporary, os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC)
        elif wish == STDOUT and number == 2:
            child = self.child[1]
        else:
            child = self._given(number, wish, name)
        if child <= 2:
            child = self._above(child)
        self.child.append(child)

    def _add_pipe(self, number: int) -> int:
        """Make a pipe, and return the child's end."""
        keep(self._pipes, os.pipe2, os.O_CLOEXEC)
        # Nothing is called from here on, so no signal handler can run before the ends have their owners.
        read, write = self._pipes[-1]
        child, own = (read, write) if number == 0 else (write, read)
        self.own[number] = own
        self._temporary += (child,)
        del self._pipes[-1]
        return child

    @staticmethod
    def _given(number: int, wish: Any, name: str) -> int:
        if wish is None:
            return number
        if isinstance(wish, int) and not isinstance(wish, bool) and wish >= 0:
            return wish
        if hasattr(wish, "fileno"):
            return int(wish.fileno())
        raise SpecError(f"{name}: {wish!r} is neither PIPE, DEVNULL, a descriptor nor a file")

    @property
    def has_files(self) -> bool:
        """Whether one of them is a regular file, a directory or a disk, which others can open."""
        kinds = (stat.S_IFMT(os.fstat(fd).st_mode) for fd in self.child)
        return any(kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFBLK) for kind in kinds)

    def _above(self, fd: int) -> int:
        """Copy a low descriptor to a number above the three standard streams."""
        import fcntl

        try:
            return keep(self._temporary, fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, 3)
        except OSError:  # the caller has closed its own stream, so the child gets none
            copy = keep(self._temporary, os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC)
        return copy if copy > 2 else keep(self._temporary, fcntl.fcntl, copy, fcntl.F_DUPFD_CLOEXEC, 3)

    def ends(self, text: Text | None) -> list[End | None]:
        """Return the caller's ends, which then own their descriptors. Repeated calls return the same ones."""
        while self.own:
            number = len(self.own) - 1
            end = self._ends[number] = End(buffered=not self.terminal, text=text)
            fd = self.own[-1]
            if fd is None or fd < 0:
                self._ends[number] = None if fd is None else end
                del self.own[-1]
            elif self.terminal and number == 1:
                end.take_over(_TerminalOutput, self.own, "rb")
            else:
                end.take_over(io.FileIO, self.own, "wb" if number == 0 else "rb")
        return [self._ends.get(number) for number in range(3)]

    def inputs(self) -> dict[str, int]:
        """Return the slots for the plan."""
        return dict(zip(("stdin", "stdout", "stderr"), self.child, strict=True))

    def close_child(self) -> None:
        """Close the child's ends."""
        close_all(self._temporary)

    def close(self) -> None:
        """Close everything."""
        self.close_child()
        while self._pipes:
            self._temporary += self._pipes[-1]
            del self._pipes[-1]
            self.close_child()
        while self.own:
            fd = self.own[-1]
            del self.own[-1]
            if fd is not None and fd >= 0:
                os.close(fd)
        for end in self._ends.values():
            if end is not None:
                end.close()


def require_open(fd: int, what: str) -> None:
    """Refuse a number that is not an open descriptor. In the child it could belong to the library.

    Raises:
        SpecError: it is not open.
    """
    try:
        os.fstat(fd)
    except OSError:
        raise SpecError(f"{what}: {fd} is not an open descriptor") from None


def window_size(size: Any) -> tuple[int, int]:
    """Return rows and columns.

    Raises:
        SpecError: the value is not two numbers from 0 to 65535.
    """
    numbers = tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(numbers) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n < 65536 for n in numbers):
        raise SpecError(f"pty: {size!r} is neither True nor a (rows, columns) pair of numbers from 0 to 65535")
    return numbers
