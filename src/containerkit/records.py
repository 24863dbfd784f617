"""Who keeps records of containers that outlive the process that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["KEEPERS", "keeper"]

KEEPERS: Final = {"oci": "containerkit.oci.records"}
"""Modules with ``find(id, root)`` and ``states(root)``, by name: they lie above those who ask, and are loaded late."""


def keeper(name: str = "oci") -> ModuleType:
    """Return the module that keeps records of a kind of container."""
    from importlib import import_module

    return import_module(KEEPERS[name])
