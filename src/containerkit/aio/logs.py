"""The output of detached containers, for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from containerkit.aio.calling import call
from containerkit.aio.waiting import readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from containerkit.detached.container import Detached
    from containerkit.detached.logs import LogLine, Moment

__all__ = ["logs"]

_AT_A_TIME: Final = 1000
_LONGEST_WAIT_S: Final = 0.25
"""The interval of checks whether the container is still running, in seconds."""


async def logs(
    container: Detached,
    *,
    follow: bool = False,
    since: Moment | None = None,
    until: Moment | None = None,
    tail: int | None = None,
    pieces: bool = False,
) -> AsyncIterator[LogLine]:
    """Yield the output of a detached container's command: ``async for line in aio.logs(c, follow=True):``.

    Waiting for more occupies no thread.

    Args:
        container: the result of :func:`containerkit.containers` or ``detach``.
        follow, since, until, tail, pieces: as for :meth:`Detached.logs`.

    Raises:
        SpecError, SetupError: as there.
    """
    steps = container.log_steps(follow=follow, since=since, until=until, tail=tail, pieces=pieces)
    try:
        while True:
            lines, inotify, ended = await call(_taken, steps)
            for line in lines:
                yield line
            if ended:
                return
            if inotify >= 0:
                try:
                    async with asyncio.timeout(_LONGEST_WAIT_S):
                        await readable(inotify)
                except TimeoutError:
                    continue
    finally:
        steps.close()


def _taken(steps: Iterator[LogLine | int]) -> tuple[list[LogLine], int, bool]:
    """Return the next lines, the descriptor to wait for or -1, and whether that is all."""
    lines: list[LogLine] = []
    for each in steps:
        if isinstance(each, int):
            return lines, each, False
        lines.append(each)
        if len(lines) == _AT_A_TIME:
            return lines, -1, False
    return lines, -1, True
