"""Projects: several services, networks and volumes under one name, from Python or from a ``compose.yaml``.

Source: the compose specification.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.project.kube import Pod
    from containerkit.project.project import Project, Service

__all__ = ["Pod", "Project", "Service"]


def __getattr__(name: str) -> object:
    """Import them on first use: a client of a running project needs none, and compose files need no pods."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{'kube' if name == 'Pod' else 'project'}"), name)
