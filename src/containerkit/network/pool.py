"""Network namespaces of containers that are made before a start needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError, StateError
from containerkit.network.connect import Connection, Connector, connected_once
from containerkit.pool.background import Supply
from containerkit.pool.networks import NetworkPool

if TYPE_CHECKING:
    from containerkit.spec.container import Spec

__all__ = ["EndpointPool", "pooled"]

_LARGEST: Final = 1023


class EndpointPool:
    """Keeps network namespaces ready for containers of one description.

    Each is used once. If none is ready, a start makes its own. New ones are made when a container has ended or half of
    them are taken, so that starts in progress are not slowed down.

    Args:
        connector: makes them.
        size: the number of ready namespaces, 1 to 1023.

    Raises:
        SpecError: the size is invalid, or only one container of the description can exist.

    Side effects: a thread, until :meth:`close`.
    """

    def __init__(self, connector: Connector, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST:
            raise SpecError(f"networks: must be from 1 to {_LARGEST} on a network, not {size!r}")
        if any(port.host_port for port in connector.ports) or any(
            how.addresses or how.mac for _, how in connector.attached
        ):
            raise SpecError(
                "networks: with a fixed port, address or MAC only one container can exist, so none can be kept ready"
            )
        self.size = size
        self._connector = connector
        self._supply: Supply[Connection] = Supply(size, connector.make, Connection.close, "networks", eager=False)
        self.wait_full = self._supply.wait_full
        self.close = self._supply.close

    def take(self) -> Connection:
        """Return an unused one. The caller owns it.

        Raises:
            StateError: the pool, or a network, was closed.
            SetupError: none was ready, and a new one could not be made.
        """
        if self._supply.is_ours and self._supply.closed:
            raise StateError(f"{self!r}: it was closed")
        ready = self._supply.take()
        if ready is None:
            return self._connector.take()
        ready.also(self._supply.fill)
        return ready

    def __len__(self) -> int:
        return len(self._supply)

    def __repr__(self) -> str:
        return f"<EndpointPool {'closed' if self._supply.closed else f'{len(self)} of {self.size} ready'}>"


def pooled(spec: Spec, size: int) -> tuple[EndpointPool | NetworkPool, dict[str, Any]]:
    """Return a pool for a description, and the arguments of containers that get their networks from it.

    Args:
        spec: the description. It requests networks of this library, or names in /etc/hosts without a network.
        size: as for :class:`EndpointPool`.

    Raises:
        SpecError: its network can't be kept ready.
    """
    joining = connected_once(spec)
    choice = joining.namespaces.network
    pool: EndpointPool | NetworkPool
    if isinstance(choice, Connector):
        pool = EndpointPool(choice, size)
    elif choice == "new":
        pool = NetworkPool(size)
    else:
        raise SpecError("networks: only networks that this process has open, and 'internet', can be kept ready")
    namespaces = attrs.evolve(joining.namespaces, network=pool)
    return pool, {"namespaces": namespaces, "mounts": joining.mounts, "sysctls": dict(joining.sysctls)}
