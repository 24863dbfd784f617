"""Containers for asyncio. Nothing here blocks the event loop, and waiting occupies no thread.

::

    from containerkit import aio

    done = await aio.run(["uname", "-n"], text=True)
    async with aio.AsyncContainer() as c:
        async with c.popen(["sh", "-c", "echo one; echo two"], stdout=PIPE) as p:
            async for line in p.stdout:
                print(line)

A task that is cancelled first kills and reaps its command and releases all resources, then raises ``CancelledError``.
It works with every event loop that has ``add_reader``, including uvloop.
"""

from containerkit.late import lazy as _lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.aio.calling import call
    from containerkit.aio.container import AsyncContainer, AsyncFiles
    from containerkit.aio.images import pull
    from containerkit.aio.logs import logs
    from containerkit.aio.networks import OpenNetwork
    from containerkit.aio.process import AsyncProcess, AsyncTextProcess, Opening
    from containerkit.aio.running import popen, run

__all__ = [
    "AsyncContainer",
    "AsyncFiles",
    "AsyncProcess",
    "AsyncTextProcess",
    "OpenNetwork",
    "Opening",
    "call",
    "logs",
    "popen",
    "pull",
    "run",
]

_PLACES = {
    "AsyncContainer": "container",
    "AsyncFiles": "container",
    "AsyncProcess": "process",
    "AsyncTextProcess": "process",
    "OpenNetwork": "networks",
    "Opening": "process",
    "call": "calling",
    "logs": "logs",
    "popen": "running",
    "pull": "images",
    "run": "running",
}

__getattr__, __dir__ = _lazy(globals(), _PLACES)
