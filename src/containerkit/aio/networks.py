"""Networks of containers, for asyncio."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.aio.calling import call, in_thread, undone
from containerkit.errors import SpecError, StateError
from containerkit.spec.network import Network

if TYPE_CHECKING:
    from types import TracebackType

    from containerkit.network import LiveNetwork

__all__ = ["OpenNetwork"]


class OpenNetwork:
    """A network that is open during ``async with``.

    ::

        async with OpenNetwork(Network("app")) as net, AsyncContainer(network=net) as c: ...

    Args:
        network: its description (default ``Network()``).

    Raises:
        SpecError: it is not a :class:`Network`.
    """

    def __init__(self, network: Network | None = None) -> None:
        self._network = Network() if network is None else network
        if not isinstance(self._network, Network):
            raise SpecError(f"network: {network!r:.100} is not a Network; use Network('name')")
        self._live: LiveNetwork | None = None

    async def __aenter__(self) -> LiveNetwork:
        """Open it.

        Raises:
            StateError: it is already open.
            UnsupportedError, SetupError: as for :meth:`Network.open`.
            CancelledError: the task was cancelled; nothing is left of it.
        """
        if self._live is not None:
            raise StateError(f"{self._network!r}: it is already open")
        live: LiveNetwork = await undone(in_thread(self._network.open), _close)
        self._live = live
        return live

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it. A cancellation takes effect after it is closed."""
        live, self._live = self._live, None
        if live is not None:
            await call(live.close)


def _close(live: LiveNetwork) -> None:
    live.close()
