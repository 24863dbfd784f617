"""Projects: several services, networks and volumes under one name, from Python or from a ``compose.yaml``.

Source: the compose specification.
"""

from __future__ import annotations

from containerkit.project.kube import Pod
from containerkit.project.project import Project, Service

__all__ = ["Pod", "Project", "Service"]
