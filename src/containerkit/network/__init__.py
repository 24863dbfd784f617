"""Networks of containers: a router for each process with bridges, addresses, names, ports and a link to the outside.

It is imported with the first container on a network. Descriptions are in :mod:`containerkit.spec.network`.
"""

from __future__ import annotations

from containerkit.network.connect import connected_once, open_network
from containerkit.network.live import LiveNetwork

__all__ = ["LiveNetwork", "connected_once", "open_network"]
