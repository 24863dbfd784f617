"""Projects: several services, networks and volumes under one name, from Python or from a ``compose.yaml``.

Source: the compose specification.
"""

from __future__ import annotations

from containerkit.project.project import Project, Service

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.project.kube import Pod

__all__ = ["Pod", "Project", "Service"]


def __getattr__(name: str) -> object:
    """Import pods on first use: compose files need none."""
    if name != "Pod":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from containerkit.project.kube import Pod

    return Pod
