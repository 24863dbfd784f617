"""Runs blocking calls in threads of a separate pool. A cancellation waits until the call has ended."""

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
"""The number of threads for starts and ends, which take milliseconds. More threads would only compete."""

_LONG: Final = 32
"""The number of threads for calls that may take long, such as a pull."""

_pools: dict[str, ThreadPoolExecutor] = {}


def _pool(name: str, size: int) -> ThreadPoolExecutor:
    """Return one of the pools. The loop's own pool is not used, because others may occupy its few threads."""
    if name not in _pools:
        _pools[name] = ThreadPoolExecutor(size, thread_name_prefix=f"containerkit {name}")
    return _pools[name]


# A forked child has none of the threads.
os.register_at_fork(after_in_child=_pools.clear)


def in_thread(do: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> asyncio.Future[Result]:
    """Start or end something in a thread.

    Returns:
        A future that must not be cancelled: pass it to :func:`settled` or :func:`undone`.
    """
    return asyncio.get_running_loop().run_in_executor(_pool("aio", _SHORT), partial(do, *args, **kwargs))


async def settled(work: asyncio.Future[Result]) -> asyncio.CancelledError | None:
    """Wait until a call has ended, even if cancelled. Return a cancellation that arrived in the meantime.

    The caller raises it after its cleanup. A thread can't be stopped, and its result must have an owner.
    """
    cancelled: asyncio.CancelledError | None = None
    while not work.done():
        try:
            await asyncio.wait((work,))
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def undone(work: asyncio.Future[Result], undo: Callable[[Result], object] | None = None) -> Result:
    """Return the result of a call in a thread, or undo it if a cancellation arrived in the meantime.

    Args:
        work: from :func:`in_thread`.
        undo: undoes the call, in a thread (default: nothing to undo).

    Raises:
        CancelledError: after the call was undone.
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
    """Call a blocking function of the library in a thread: images, builds, pools of networks, checkpoints.

    ::

        image = await aio.call(Image.get, "alpine:3.20")
        root = await aio.call(image.rootfs)

    Args:
        do: the function.
        args, kwargs: its arguments.

    A cancellation takes effect after the call has ended, because a thread can't be stopped. The result is then lost.
    At most 32 calls run at a time; others wait.

    Raises:
        CancelledError: the task was cancelled; the call has ended.
    """
    loop = asyncio.get_running_loop()
    return await undone(loop.run_in_executor(_pool("aio calls", _LONG), partial(do, *args, **kwargs)))
