"""Namespaces: handles on those that exist, and the description of those that a container shall have.

Each of the eight kinds is *new*, *joined* or *inherited* in a container, which :class:`Namespaces` says. A
:class:`Namespace` is a handle on a living one; while it is open the kernel keeps the namespace alive, with or without
processes inside.
"""

from __future__ import annotations

from containerkit.namespace.description import Namespaces, TimeOffsets
from containerkit.namespace.kind import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.namespace.handle import Namespace
    from containerkit.namespace.visit import Visit

__all__ = ["Kind", "Namespace", "Namespaces", "TimeOffsets", "Visit"]

_LATE = {"Namespace": "handle", "Visit": "visit"}


def __getattr__(name: str) -> object:
    """Load the handles on first use: a description needs none."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value
