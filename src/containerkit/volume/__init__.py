"""Named volumes: directories that outlive containers. Single containers and projects use them."""

from __future__ import annotations

from containerkit.volume.volume import Volume, create, get, prune, used, volumes

__all__ = ["Volume", "create", "get", "prune", "used", "volumes"]
