"""Networks of containers: bridges in a router of the process's own, addresses, names, ports, and what leads out.

It is loaded with the first container that is on one. Descriptions are in :mod:`containerkit.spec.network`.
"""

from __future__ import annotations

import atexit

from containerkit.network.connect import close_shared, connected_once, open_network
from containerkit.network.live import LiveNetwork

__all__ = ["LiveNetwork", "connected_once", "open_network"]

atexit.register(close_shared)
