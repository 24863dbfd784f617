"""What blocks is done by threads of a pool of its own; a cancellation waits until it is through."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["call", "in_thread", "settled", "undone"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

_SHORT: Final = max(4, min(16, (os.cpu_count() or 1) + 4))
"""Threads for starts and ends, each of which takes milliseconds: more would only get into each other's way."""

_LONG: Final = 32
"""Threads for what may take long, such as a pull."""

_pools: dict[str, ThreadPoolExecutor] = {}


def _pool(name: str, size: int) -> ThreadPoolExecutor:
    """Return one of the pools. They are not the loop's own, whose few threads another may keep busy."""
    if name not in _pools:
        _pools[name] = ThreadPoolExecutor(size, thread_name_prefix=f"containerkit {name}")
    return _pools[name]


# A forked child has none of the threads.
os.register_at_fork(after_in_child=_pools.clear)


def in_thread(do: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> asyncio.Future[Result]:
    """Start or end something in a thread.

    Returns:
        A future, which is not to be cancelled: hand it to :func:`settled`, or await :func:`undone`.
    """
    return asyncio.get_running_loop().run_in_executor(_pool("aio", _SHORT), partial(do, *args, **kwargs))


async def settled(work: asyncio.Future[Result]) -> asyncio.CancelledError | None:
    """Wait until something is through, whatever comes; return the cancellation that came meanwhile.

    The caller raises it once all is in order. What a thread does can't be stopped, and what it made must have an owner.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def undone(work: asyncio.Future[Result], undo: Callable[[Result], object] | None = None) -> Result:
    """Return the result of something in a thread, or take it back where a cancellation came meanwhile.

    Args:
        work: from :func:`in_thread`.
        undo: takes back what it made, in a thread (default: there is nothing to take back).

    Raises:
        CancelledError: once it is taken back.
    """
    cancelled = await settled(work)
    if cancelled is None:
        return work.result()
    if work.exception() is None and undo is not None:
        taken_back = in_thread(undo, work.result())
        await settled(taken_back)
        taken_back.result()
    raise cancelled


async def call(do: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """Call something of the library that blocks, in a thread: images, builds, pools of networks, checkpoints.

    ::

        image = await aio.call(Image.get, "alpine:3.20")
        root = await aio.call(image.rootfs)

    Args:
        do: what is called.
        args, kwargs: its arguments.

    A cancellation is seen once the call is through, since nothing stops a thread: its result is then lost. Of those 32
    may be under way at a time, the others wait.

    Raises:
        CancelledError: the task was cancelled; the call is through.
    """
    loop = asyncio.get_running_loop()
    return await undone(loop.run_in_executor(_pool("aio calls", _LONG), partial(do, *args, **kwargs)))
