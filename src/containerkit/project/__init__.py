"""Projects: several services, networks and volumes under one name, from Python or from a ``compose.yaml``.

Source: the compose specification.
"""

from containerkit.late import lazy as _lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.project.kube import Pod
    from containerkit.project.project import Project, Service

__all__ = ["Pod", "Project", "Service"]

_PLACES = {"Pod": "kube", "Project": "project", "Service": "project"}
"""A client of a running project needs none of them, and compose files need no pods."""

__getattr__, __dir__ = _lazy(globals(), _PLACES)
