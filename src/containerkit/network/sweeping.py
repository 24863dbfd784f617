"""Remove what dead owners left of networks: leases, and settings of the host that no guard restored."""

from __future__ import annotations

from containerkit.network import cni, host, keeper, leases

__all__ = ["sweep"]


def sweep() -> list[str]:
    """Remove it, and return descriptions. Links, routes and packet filters end with their owner."""
    return [*leases.sweep(), *cni.sweep(), *keeper.sweep(), *host.restore()]
