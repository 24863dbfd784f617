"""Images for asyncio: a pull that can be cancelled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from containerkit.aio.calling import call
from containerkit.image import Image
from containerkit.image.progress import silent
from containerkit.meanings import explained

if TYPE_CHECKING:
    from typing import Unpack

    from containerkit.image import Reference
    from containerkit.image.options import PullOptions
    from containerkit.image.progress import ProgressEvent

__all__ = ["pull"]


class _CancelledError(Exception):
    """Raised inside a pull to end it."""


@explained
async def pull(reference: str | Reference, **options: Unpack[PullOptions]) -> Image:
    """Pull an image from its registry, as :meth:`containerkit.Image.pull` does.

    Args:
        reference: the image, such as ``alpine:3.20``.
        options: see :class:`containerkit.image.options.PullOptions`.

    Raises:
        SpecError, ImageError, SetupError, UnsupportedError: as there.
        CancelledError: the task was cancelled; the pull has ended at its next step. Complete downloads stay in the
            store.
    """
    told = options.pop("progress", silent)
    called_off = False

    def progress(event: ProgressEvent) -> None:
        if called_off:
            raise _CancelledError
        told(event)

    options["progress"] = progress
    work = asyncio.ensure_future(call(Image.pull, reference, **options))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        called_off = True
        while not work.done():
            try:
                await asyncio.wait((work,))
            except asyncio.CancelledError:
                continue
        if not work.cancelled():
            work.exception()  # marks it as retrieved: nobody awaits it any more
        raise
