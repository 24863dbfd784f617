"""Raw version 2 files that are written unchanged.

Source: Documentation/admin-guide/cgroup-v2.rst; the ``unified`` object of the OCI runtime specification.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Setting
from containerkit.errors import UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.hierarchy import Tree
    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, base: Directory, tree: Tree) -> list[Setting]:
    """Return the raw files for one hierarchy: all of them for version 2, none for version 1.

    Raises:
        UnsupportedError: the controller of a file is on version 1 here.
    """
    for key, _ in limits.unified:
        name = key.partition(".")[0]
        serving = tree.unified if name == "cgroup" else tree.serving(name)
        if serving is None or serving.version == 1:
            hint = f"the {name} controller is on version 1 here; use the arguments of Limits, which work on both"
            raise UnsupportedError("set limits", EOPNOTSUPP, key, hint)
    if base.version == 1:
        return []
    return [Setting(key, value.encode(), "see the kernel's documentation of the file") for key, value in limits.unified]
