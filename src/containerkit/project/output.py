"""What the command of a container writes: into the journal of the project, and to those who are attached."""

from __future__ import annotations

import os
import selectors
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from containerkit.project.journal import Splitter
from containerkit.project.shapes import size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from containerkit.process.process import Process
    from containerkit.project.journal import Journal, LogLine

__all__ = ["Output", "Tap"]

_CHUNK: Final = 65536
_BEHIND: Final = 1 << 24
"""How many bytes wait for one who is attached and does not read. More end the attachment, not the container."""


class Tap:
    """The output from now on, for one reader: pairs of the stream's name and bytes, until :meth:`end`."""

    def __init__(self) -> None:
        self._left: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._ended = False
        self._changed = threading.Condition()

    def feed(self, stream: str, data: bytes) -> None:
        """Add output."""
        with self._changed:
            self._bytes += len(data)
            self._ended = self._ended or self._bytes > _BEHIND
            if not self._ended:
                self._left.append((stream, data))
            self._changed.notify_all()

    def end(self) -> None:
        """End the iteration, after what was fed before. May be called twice, in any thread."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        while True:
            with self._changed:
                while not self._left and not self._ended:
                    self._changed.wait()
                if not self._left:
                    return
                stream, data = self._left.popleft()
                self._bytes -= len(data)
            yield stream, data


class Output:
    """The output of one container.

    Args:
        service, container: their names.
        logging: the service's key of this name.
        journal: the lines of the project.
    """

    def __init__(self, service: str, container: str, logging: Mapping[str, Any], journal: Journal[LogLine]) -> None:
        self._whose = (service, container)
        self._journal = None if logging.get("driver") == "none" else journal
        options = logging.get("options", {})
        size = size_of(options["max-size"]) if "max-size" in options else None
        self._most_bytes = None if size is None else size * int(options.get("max-file", "1"))
        self._taps: list[Tap] = []

    def say(self, text: str) -> None:
        """Add a line of this library's own, such as an error."""
        self._keep(Splitter(*self._whose, "stderr").feed(f"{text}\n".encode()))

    @contextmanager
    def tapped(self) -> Iterator[Tap]:
        """Yield the output from now on, until the command ends."""
        tap = Tap()
        self._taps.append(tap)
        try:
            yield tap
        finally:
            self._taps.remove(tap)

    def end(self) -> None:
        """End what is attached: the command has ended."""
        for tap in tuple(self._taps):
            tap.end()

    def follow(self, process: Process[Any], end: int) -> None:
        """Read the output of a process until it ends.

        Args:
            process: the process.
            end: its pidfd.
        """
        with selectors.DefaultSelector() as selector:
            for name, file in (("stdout", process.stdout), ("stderr", process.stderr)):
                if file is not None:
                    os.set_blocking(file.fileno(), False)
                    selector.register(file.fileno(), selectors.EVENT_READ, (name, Splitter(*self._whose, name)))
            selector.register(end, selectors.EVENT_READ, None)
            ended = False
            while True:
                events = selector.select(0 if ended else None)
                read = [key for key, _ in events if key.data is not None and self._take(selector, key)]
                ended = ended or any(key.fd == end for key, _ in events)
                if ended and not read:  # do not wait for its children, which may hold the output open
                    break
            for key in selector.get_map().values():
                if key.data is not None:
                    self._keep(key.data[1].feed(b""))

    def _keep(self, lines: list[LogLine]) -> None:
        if self._journal is not None:
            self._journal.add(lines, self._most_bytes)

    def _take(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> bool:
        try:
            data = os.read(key.fd, _CHUNK)
        except BlockingIOError:
            return False
        except OSError:  # the other side of the terminal is closed
            data = b""
        name, splitter = key.data
        for tap in tuple(self._taps) if data else ():
            tap.feed(name, data)
        self._keep(splitter.feed(data))
        if not data:
            selector.unregister(key.fd)
        return bool(data)
