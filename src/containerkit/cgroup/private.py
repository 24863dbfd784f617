"""Mount version 1 hierarchies that are not mounted, for this process only.

The mount is detached: it belongs to no mount namespace and is not in mountinfo. It exists as long as its descriptor.
The hierarchy exists as long as a mount of it or a group in it.
"""

from __future__ import annotations

import os
from typing import Final

from containerkit._linux.cgroupfs import offered_controllers
from containerkit._native.calls_seam import syscall
from containerkit._native.constants import FSCONFIG_CMD_CREATE, FSCONFIG_SET_FLAG, FSMOUNT_CLOEXEC, FSOPEN_CLOEXEC
from containerkit.cgroup.directory import Directory, OpenedDirectory
from containerkit.errors import UnsupportedError

__all__ = ["companions", "mount_privately"]

_HINT: Final = "it needs root, a controller that no version 2 group uses, and a kernel not booted with cgroup_no_v1="


def companions(controller: str) -> tuple[str, ...]:
    """Return the controllers that share a version 1 hierarchy with this one, itself included; empty if there is none.

    A hierarchy that is no longer mounted exists while it has a group. It can then only be mounted with all of them.
    """
    offered = offered_controllers()
    number = offered.get(controller)
    if number is None:
        return ()
    return tuple(sorted(name for name in offered if offered[name] == number)) if number else (controller,)


def mount_privately(controllers: tuple[str, ...]) -> Directory:
    """Mount the version 1 hierarchy of these controllers. Return its root group.

    Raises:
        UnsupportedError: the kernel refuses it. The error is EBUSY if version 2 uses a controller.

    Source: fsopen(2), fsconfig(2), fsmount(2), cgroups(7).
    """
    names = ",".join(controllers)
    try:
        context = syscall("fsopen", b"cgroup", FSOPEN_CLOEXEC)
        try:
            for name in controllers:
                syscall("fsconfig", context, FSCONFIG_SET_FLAG, name.encode(), 0, 0)
            syscall("fsconfig", context, FSCONFIG_CMD_CREATE, 0, 0, 0)
            mount = syscall("fsmount", context, FSMOUNT_CLOEXEC, 0)
        finally:
            os.close(context)
    except OSError as error:
        raise UnsupportedError("mount", error.errno or 0, f"{names} hierarchy of version 1", _HINT) from None
    try:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    finally:
        os.close(mount)
    return OpenedDirectory(fd, f"({names})", 1, frozenset(controllers))
