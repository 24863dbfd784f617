"""Version 1 hierarchies that nothing mounts, mounted for this process alone.

The mount is detached: it is in no mount namespace and shows in no mountinfo. It lives as long as its descriptor, and
the hierarchy as long as the mount or a group in it.
"""

from __future__ import annotations

import os
from typing import Final

from containerkit._native.constants import FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC
from containerkit.cgroup.directory import Directory
from containerkit.cgroup.kernel import call
from containerkit.errors import UnsupportedError

__all__ = ["mount_privately"]

_HINT: Final = "it takes root, a controller that no version 2 group uses, and a kernel not booted with cgroup_no_v1="


def mount_privately(controller: str) -> Directory:
    """Mount one controller's version 1 hierarchy and return its root group.

    Raises:
        UnsupportedError: the kernel refused it; EBUSY where version 2 uses the controller.

    Source: fsopen(2), fsconfig(2), fsmount(2), cgroups(7).
    """
    name = "blkio" if controller == "io" else controller
    target = f"{name} hierarchy of version 1"
    try:
        context = call("fsopen", b"cgroup", FSOPEN_CLOEXEC)
        try:
            call("fsconfig", context, FSCONFIG_SET_FLAG, name.encode(), 0, 0)
            call("fsconfig", context, FSCONFIG_CMD_CREATE, 0, 0, 0)
            mount = call("fsmount", context, FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)
    except OSError as error:
        raise UnsupportedError("mount", error.errno or 0, target, _HINT) from None
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    return Directory(fd, f"({name})", 1, frozenset({name}))
