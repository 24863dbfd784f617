"""What owners that are dead have left of networks: leases, and settings of the host's that a guard did not put back."""

from __future__ import annotations

from containerkit.network import cni, host, keeper, leases

__all__ = ["sweep"]


def sweep() -> list[str]:
    """Remove it, and return what it was, for people. Links, routes and packet filters end with their owner."""
    return [*leases.sweep(), *cni.sweep(), *keeper.sweep(), *host.put_back()]
