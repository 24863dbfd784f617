"""``logs`` shows the output of a detached container."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from containerkit.cli.commands import complain
from containerkit.cli.detached import Verb
from containerkit.detached import store
from containerkit.detached.known import KEEPER_KILLED, Known
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from containerkit.detached.logs import LogLine

__all__ = ["copy", "logs"]

_BATCH: Final = 1 << 16


def _define_logs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONTAINER", help="its name or id")
    parser.add_argument("-f", "--follow", action="store_true", help="wait for more output, until it has ended")
    parser.add_argument("--since", metavar="TIME", help="show only output since then: 10m, or 2026-01-02T03:04:05Z")
    parser.add_argument("--until", metavar="TIME", help="show only output before then")
    parser.add_argument("-n", "--tail", metavar="NUMBER", help="show at most so many lines, the latest (default: all)")
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin each line with its time")


def _logs(options: argparse.Namespace) -> int:
    tail = None if options.tail in (None, "all") else _number(options.tail)
    # The class that starts containers takes longer to import than most logs to read.
    one = Known(store.find(options.name))
    times = {"since": options.since, "until": options.until}
    # Without times a line can be shown piece by piece.
    pieces = options.follow and not options.timestamps and tail is None
    lines = one.logs(follow=options.follow, tail=tail, pieces=pieces, **times)
    if options.timestamps:
        lines = (line._replace(text=f"{line.time} ".encode() + line.text) for line in lines)
    copy(lines, at_once=options.follow)
    with suppress(StateError):  # with --rm the record is gone after its end
        status, _, end = one.looked_at()
        if status == "dead":
            complain(f"{options.name}: {KEEPER_KILLED}: its last output may be missing")
        if end is not None and (lost := int(end["lost"])):
            complain(f"{options.name}: {lost} bytes of its output are lost: the filesystem of the logs was full")
    return 0


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SpecError(f"--tail: {text!r} is not a number") from None


def copy(lines: Iterable[LogLine], *, at_once: bool) -> None:
    """Write the lines of stdout to stdout, and those of stderr to stderr.

    Args:
        lines: the output.
        at_once: whether to write each line as it arrives.
    """
    kept: list[bytes] = []
    stream, size = "stdout", 0
    for line in lines:
        if line.stream != stream or size > _BATCH:
            _write(stream, kept)
            stream, size = line.stream, 0
        kept.append(line.text)
        size += len(line.text)
        if at_once:
            _write(stream, kept)
            size = 0
    _write(stream, kept)


def _write(stream: str, kept: list[bytes]) -> None:
    file = sys.stderr.buffer if stream == "stderr" else sys.stdout.buffer
    file.write(b"".join(kept))
    file.flush()
    kept.clear()


logs = Verb(_define_logs, _logs)
