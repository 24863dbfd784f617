"""Parse addresses and subnets once, and cache them: a start needs the same few about twenty times."""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

__all__ = ["ip_address", "ip_network"]


@lru_cache(maxsize=4096)
def ip_address(text: str) -> IPv4Address | IPv6Address:
    """Return an address, as :func:`ipaddress.ip_address` does."""
    return ipaddress.ip_address(text)


@lru_cache(maxsize=1024)
def ip_network(text: str) -> IPv4Network | IPv6Network:
    """Return a subnet, as :func:`ipaddress.ip_network` does."""
    return ipaddress.ip_network(text)
