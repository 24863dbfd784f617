"""Namespaces: handles on existing namespaces, and the description of the namespaces of a container.

In a container each of the eight kinds is *new*, *joined* or *inherited*, as :class:`Namespaces` describes. A
:class:`Namespace` is a handle on an existing namespace. While it is open the kernel keeps the namespace alive, even
without processes in it.
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
    """Import the handles on first use, because descriptions do not need them."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    globals()[name] = value
    return value
