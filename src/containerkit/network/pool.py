"""Networks of containers that wait for a start, with all that their networks have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError, StateError
from containerkit.network.connect import Connection, Connector, connected_once
from containerkit.pool.background import Supply

if TYPE_CHECKING:
    from containerkit.spec.container import Spec

__all__ = ["EndpointPool", "pooled"]

_LARGEST: Final = 1023


class EndpointPool:
    """Keeps network namespaces ready that are on the networks of one description.

    Each is given away once. When none is ready a start makes its own and waits for it.

    Args:
        connector: makes each.
        size: how many it keeps, 1 to 1023.

    Raises:
        SpecError: a size that can't be, or a description of which there can be but one.

    Side effects: a thread, until :meth:`close`.
    """

    def __init__(self, connector: Connector, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST:
            raise SpecError(f"networks: must be from 1 to {_LARGEST} on a network, not {size!r}")
        if any(port.host_port for port in connector.ports) or any(
            how.addresses or how.mac for _, how in connector.attached
        ):
            raise SpecError("networks: a fixed port, address or MAC is one container's: none can be kept ready with it")
        self.size = size
        self._connector = connector
        self._supply: Supply[Connection] = Supply(size, connector.take, Connection.close, "networks", eager=True)
        self.wait_full = self._supply.wait_full
        self.close = self._supply.close

    def take(self) -> Connection:
        """Return one that nobody has used; the caller's from now on.

        Raises:
            StateError: the pool, or a network, was closed.
            SetupError: one had to be made, and could not.
        """
        if self._supply.is_ours and self._supply.closed:
            raise StateError(f"{self!r}: it was closed")
        return self._supply.take() or self._connector.take()

    def __len__(self) -> int:
        return len(self._supply)

    def __repr__(self) -> str:
        return f"<EndpointPool {'closed' if self._supply.closed else f'{len(self)} of {self.size} ready'}>"


def pooled(spec: Spec, size: int) -> tuple[EndpointPool, dict[str, Any]]:
    """Return a pool for a description, and the arguments of a container that takes its network from it.

    Args:
        spec: the description; it wishes for networks of ours.
        size: as for :class:`EndpointPool`.

    Raises:
        SpecError: its network is none that can be kept ready.
    """
    joining = connected_once(spec)
    choice = joining.namespaces.network
    if not isinstance(choice, Connector):
        raise SpecError("networks: only networks that this process has open, and 'internet', can be kept ready")
    pool = EndpointPool(choice, size)
    namespaces = attrs.evolve(joining.namespaces, network=pool)
    return pool, {"namespaces": namespaces, "mounts": joining.mounts, "sysctls": dict(joining.sysctls)}
