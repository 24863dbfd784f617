"""The output of a project's containers line by line, and their events, for any number of readers."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

__all__ = ["Happening", "Journal", "LogLine"]

_LINES: Final = 200_000
_LONGEST: Final = 16_384


class LogLine(NamedTuple):
    """One line.

    Attributes:
        time: when it was read, in seconds since 1970.
        service: the service's name.
        container: the container's name.
        stream: ``"stdout"`` or ``"stderr"``.
        text: without its newline. Bytes that are not UTF-8 are replaced. Lines longer than 16 KiB are split.
    """

    time: float
    service: str
    container: str
    stream: str
    text: str


class Happening(NamedTuple):
    """An event of a container.

    Attributes:
        time: when it happened, in seconds since 1970.
        service: the service's name.
        container: the container's name.
        action: what happened, in Docker's words, such as ``start``, ``die``, ``health_status: healthy``.
        attributes: more about it, such as ``exitCode``.
    """

    time: float
    service: str
    container: str
    action: str
    attributes: dict[str, str]


_Entry = TypeVar("_Entry", LogLine, Happening)


class Journal(Generic[_Entry]):
    """The latest 200,000 lines or events, in memory. Older ones are dropped."""

    def __init__(self) -> None:
        self._lines: deque[_Entry] = deque(maxlen=_LINES)
        self._count = 0
        self._kept: dict[str, deque[tuple[int, int]]] = {}
        self._bytes: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def add(self, lines: list[_Entry], most_bytes: int | None = None) -> None:
        """Add lines, and wake the readers that follow.

        Args:
            lines: of one container.
            most_bytes: keep at most so many bytes of that container's latest lines (default: no limit).
        """
        with self._changed:
            if most_bytes is not None:
                self._limit(lines, most_bytes)
            self._lines.extend(lines)
            self._count += len(lines)
            self._changed.notify_all()

    def _limit(self, lines: list[_Entry], most_bytes: int) -> None:
        """Count a container's bytes in the journal, and hide its oldest lines above the limit."""
        for number, line in enumerate(lines, self._count):
            kept = self._kept.setdefault(line.container, deque(maxlen=_LINES))
            size = len(line[-1]) + 1
            kept.append((number, size))
            total = self._bytes.get(line.container, 0) + size
            while total > most_bytes:
                gone, length = kept.popleft()
                total -= length
                self._first[line.container] = gone + 1
            self._bytes[line.container] = total

    def close(self) -> None:
        """End the journal, and with it the loops of readers that follow."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def read(
        self,
        services: Collection[str] = (),
        *,
        follow: bool = False,
        since: float = 0.0,
        until: float | None = None,
        tail: int | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[_Entry]:
        """Iterate over the lines, oldest first.

        Args:
            services: the services to include (default: all).
            follow: wait for more, until the project has ended (default False).
            since: seconds since 1970; older lines are left out.
            until: seconds since 1970; later lines are left out, and nothing is waited for after it (default: no end).
            tail: at most so many of the existing lines, the latest (default: all).
            stop: called twice a second while it waits; the iteration ends if it returns True.
        """

        def wanted(line: _Entry) -> bool:
            late = until is not None and line.time > until
            return line.time >= since and not late and (not services or line.service in services)

        def ended() -> bool:
            return self._closed or stop() or (until is not None and time.time() > until)

        with self._changed:
            at = self._count
            there = [
                line
                for number, line in enumerate(self._lines, at - len(self._lines))
                if wanted(line) and number >= self._first.get(line.container, 0)
            ]
        yield from there if tail is None else there[len(there) - min(tail, len(there)) :]
        while follow:
            with self._changed:
                while at == self._count and not ended():
                    self._changed.wait(0.5)
                if at == self._count:
                    return
                new = [self._lines[index] for index in range(-min(self._count - at, len(self._lines)), 0)]
                at = self._count
            yield from filter(wanted, new)


class Splitter:
    """Splits the bytes that are read from one stream into lines."""

    def __init__(self, service: str, container: str, stream: str) -> None:
        self._whose = (service, container, stream)
        self._rest = b""

    def feed(self, data: bytes) -> list[LogLine]:
        """Return the lines that are complete. Empty data is the end of the stream: also return the rest."""
        *whole, rest = (self._rest + data).split(b"\n")
        if not data and rest:
            whole, rest = [*whole, rest], b""
        while len(rest) > _LONGEST:
            whole, rest = [*whole, rest[:_LONGEST]], rest[_LONGEST:]
        self._rest = rest
        now = time.time()
        return [LogLine(now, *self._whose, raw.decode("utf-8", "replace").removesuffix("\r")) for raw in whole]
