"""Reads the logs of a detached container, which its keeper writes.

They are ``log.1``, ``log.2``, ...: when one is full, a new one is begun and the oldest is removed. A line is
``TIME STREAM F TEXT``, an incomplete one ``TIME STREAM P TEXT``.

Source: the Kubernetes CRI log format; inotify(7).
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from itertools import chain

from containerkit.errors import SetupError, SpecError, StateError
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from datetime import datetime, timedelta  # imported late: commands that are given no time do without it
    from typing import Final

    Moment = datetime | timedelta | float | int | str
    """A time: with time zone, before now, in seconds since 1970, or as text such as ``10m`` or
    ``2026-01-02T03:04:05Z``."""

__all__ = ["LogLine", "last_log", "moment", "read", "steps"]

_IN_CREATE, _IN_MODIFY, _IN_CLOEXEC = 0x100, 0x2, 0o2000000
_CHUNK: Final = 1 << 18
_LONGEST_LINE: Final = 1 << 20
_LONGEST_WAIT_S: Final = 0.25
"""The interval in which a follower checks whether the container is still running, in seconds."""


class LogLine(NamedTuple):
    """A line of a command's output, or a piece of one.

    Attributes:
        time: when the keeper read it, in UTC, as RFC 3339 with nanoseconds.
        stream: ``"stdout"`` or ``"stderr"``; a terminal has only the former.
        text: the bytes, with the newline if the line is complete.
    """

    time: str
    stream: str
    text: bytes

    def __str__(self) -> str:
        """The text; bytes that are not UTF-8 are replaced."""
        return self.text.decode("utf-8", "replace")


def numbers(directory: str) -> list[int]:
    """Return the numbers of the logs in a directory, the oldest first."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    return sorted(int(name[4:]) for name in names if name.startswith("log.") and name[4:].isdecimal())


def last_log(directory: str) -> int:
    """Return the number of the current log; 1 if there is none yet."""
    return max(numbers(directory), default=1)


def moment(value: Moment, what: str) -> str:
    """Return a time in the format of the logs.

    Raises:
        SpecError: it is not a time.
    """
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    if isinstance(value, str):
        value = _parsed(value, what)
    if isinstance(value, timedelta):
        value = now - value
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        value = datetime.fromtimestamp(value, UTC)
    if not isinstance(value, datetime):
        raise SpecError(f"{what}: {value!r:.100} is not a time")
    if value.tzinfo is None:
        value = value.astimezone()
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def duration_s(text: str, what: str) -> float:
    """Return the seconds of ``1h30m``, ``90s``, ``500ms``.

    Raises:
        SpecError: it is not a duration.
    """
    import re

    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise SpecError(f"{what}: {text!r:.100} is not a duration such as 90s, 10m, 1h30m")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _parsed(text: str, what: str) -> datetime | timedelta | float:
    from datetime import datetime, timedelta

    if text[-1:] in ("s", "m", "h", "d"):
        return timedelta(seconds=duration_s(text, what))
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"{what}: {text!r:.100} is neither a time such as 2026-01-02T03:04:05Z nor a duration"
        ) from None


def read(
    directory: str,
    *,
    since: str = "",
    until: str = "~",
    tail: int | None = None,
    follow: Callable[[], bool] | None = None,
    pieces: bool = False,
) -> Iterator[LogLine]:
    """Yield the content of the logs in a directory.

    Args:
        directory: the directory.
        since, until: only output in this period, as returned by :func:`moment`.
        tail: at most so many of the existing lines, the latest.
        follow: returns whether more may come, which is then waited for. Default: only the existing lines.
        pieces: yield incomplete lines when they arrive. Default: only whole lines, up to 1 MiB.

    Raises:
        SetupError: a log can't be read, or there are no inotify instances left.
    """
    for each in steps(directory, since=since, until=until, tail=tail, follow=follow, pieces=pieces):
        if isinstance(each, LogLine):
            yield each
        else:
            select.select([each], [], [], _LONGEST_WAIT_S)


def steps(
    directory: str,
    *,
    since: str = "",
    until: str = "~",
    tail: int | None = None,
    follow: Callable[[], bool] | None = None,
    pieces: bool = False,
) -> Generator[LogLine | int, None, None]:
    """Yield the lines of :func:`read`, and where it would wait a descriptor that is readable when there is more.

    The caller must continue after 0.25 s in any case, because the descriptor does not report the end of the container.

    Args:
        directory, since, until, tail, follow, pieces: as for :func:`read`.

    Raises:
        SetupError: as for :func:`read`.
    """
    joined = _Joined(pieces=pieces)
    logs = _Logs(directory, joined.forget)
    try:
        if follow is not None:
            logs.watch()
        there = joined.add(logs.more())
        for line in _last(there if follow is not None else chain(there, joined.rest()), tail):
            if since <= line.time <= until:
                yield line
        while follow is not None:
            goes_on = follow()  # called before the logs are read, so that no output before the end is missed
            for line in joined.add(logs.more()):
                if line.time > until:
                    return
                if since <= line.time:
                    yield line
            if not goes_on:
                break
            yield logs.inotify
            logs.take_news()
        yield from (line for line in joined.rest() if since <= line.time <= until)
    finally:
        logs.close()


class _Joined:
    """Joins the pieces of lines, separately for each stream."""

    def __init__(self, *, pieces: bool) -> None:
        self._pieces = pieces
        self._begun: dict[str, LogLine] = {}

    def add(self, lines: Iterator[LogLine]) -> Iterator[LogLine]:
        """Yield the lines that these pieces complete."""
        for line in lines:
            begun = None if self._pieces else self._begun.pop(line.stream, None)
            found = line if begun is None else begun._replace(text=begun.text + line.text)
            if self._pieces or found.text.endswith(b"\n") or len(found.text) > _LONGEST_LINE:
                yield found
            else:
                self._begun[line.stream] = found

    def forget(self) -> None:
        """Discard the incomplete lines, whose ends are lost."""
        self._begun.clear()

    def rest(self) -> Iterator[LogLine]:
        """Yield the incomplete lines."""
        yield from sorted(self._begun.values())
        self._begun.clear()


def _last(lines: Iterator[LogLine], tail: int | None) -> Iterator[LogLine]:
    if tail is None:
        return lines
    from collections import deque

    return iter(deque(lines, maxlen=tail))


class _Logs:
    """The logs in a directory, read from the oldest on.

    Args:
        directory: the directory.
        skipped: is called when logs have been removed before they were read.
    """

    def __init__(self, directory: str, skipped: Callable[[], None]) -> None:
        self._directory, self._skipped = directory, skipped
        self._number = min(numbers(directory), default=1)
        self._fd = -1
        self._rest = b""
        self.inotify = -1

    def watch(self) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        self.inotify = libc.inotify_init1(_IN_CLOEXEC | os.O_NONBLOCK)
        directory = os.fsencode(self._directory)
        if self.inotify < 0 or libc.inotify_add_watch(self.inotify, directory, _IN_CREATE | _IN_MODIFY) < 0:
            number = ctypes.get_errno()
            hint = "raise fs.inotify.max_user_instances or max_user_watches"
            raise SetupError("inotify_init1", number, self._directory, hint)

    def take_news(self) -> None:
        """Read and discard the events of inotify."""
        with suppress(BlockingIOError):
            os.read(self.inotify, 65536)

    def more(self) -> Iterator[LogLine]:
        """Yield the unread lines. An incomplete one is read again the next time, because the keeper may undo it."""
        while self._open():
            if self._rest:
                os.lseek(self._fd, -len(self._rest), os.SEEK_CUR)
                self._rest = b""
            while chunk := os.read(self._fd, _CHUNK):
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                yield from map(_line, lines)
            if not self._next():
                return

    def _open(self) -> bool:
        while self._fd < 0:
            try:
                self._fd = os.open(f"{self._directory}/log.{self._number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                found = numbers(self._directory)
                later = [number for number in found if number > self._number]
                if self._number in found:  # the keeper has begun this one in the meantime, perhaps also a later one
                    continue
                if not later:
                    return False
                self._number = later[0]  # the keeper has removed this one in the meantime
                self._skipped()
            except OSError as error:
                raise SetupError("open", error.errno or 0, f"{self._directory}/log.{self._number}") from None
        return True

    def _next(self) -> bool:
        """Continue with the next log when this one is full and read to its end."""
        later = [number for number in numbers(self._directory) if number > self._number]
        if not later:
            return False
        if os.lseek(self._fd, 0, os.SEEK_CUR) < os.fstat(self._fd).st_size:
            return True  # it may have been written to before the next one was begun
        self._rest = b""
        os.close(self._fd)
        if later[0] > self._number + 1:
            self._skipped()
        self._fd, self._number = -1, later[0]
        return True

    def close(self) -> None:
        for fd in (self._fd, self.inotify):
            if fd >= 0:
                os.close(fd)
        self._fd = self.inotify = -1


def _line(raw: bytes) -> LogLine:
    try:
        time, stream, mark, text = raw.split(b" ", 3)
        return LogLine(time.decode("ascii"), stream.decode("ascii"), text + b"\n" if mark == b"F" else text)
    except ValueError:
        raise StateError(f"the log contains an invalid line: {raw!r:.100}") from None
