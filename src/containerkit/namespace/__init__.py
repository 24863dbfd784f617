"""Namespaces: handles on existing namespaces, and the description of the namespaces of a container.

In a container each of the eight kinds is *new*, *joined* or *inherited*, as :class:`Namespaces` describes. A
:class:`Namespace` is a handle on an existing namespace. While it is open the kernel keeps the namespace alive, even
without processes in it.
"""

from __future__ import annotations

from containerkit.late import lazy
from containerkit.namespace.description import Namespaces, TimeOffsets
from containerkit.namespace.kind import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.namespace.handle import Namespace
    from containerkit.namespace.visit import Visit

__all__ = ["Kind", "Namespace", "Namespaces", "TimeOffsets", "Visit"]

_LATE = {"Namespace": "handle", "Visit": "visit"}

__getattr__, __dir__ = lazy(globals(), _LATE)
