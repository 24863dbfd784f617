"""The container's user as seen from outside: its home directory, and the owner of its standard streams."""

from __future__ import annotations

import os
from stat import S_ISCHR

from containerkit.oci import files, kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.config import Config, IdMap

__all__ = ["home_of", "keeps_groups", "may_set_groups", "outside", "outside_group", "own_streams", "without_home"]


def home_of(root: int, uid: int) -> str:
    """Return the home directory of a user from the container's own passwd; ``/`` if it has no entry.

    Args:
        root: a descriptor of the root filesystem.
        uid: the user inside.

    Source: passwd(5).
    """
    try:
        fd = kernel.open_regular(root, "etc/passwd")
    except OSError:
        return "/root" if uid == 0 else "/"
    try:
        content = os.read(fd, 1 << 20)
    except OSError:
        return "/"
    finally:
        os.close(fd)
    for line in content.decode(errors="surrogateescape").splitlines():
        fields = line.split(":")
        if len(fields) >= 6 and fields[2] == str(uid) and fields[5].startswith("/"):
            return fields[5]
    return "/"


def without_home(env: list[str]) -> list[str] | None:
    """Return an environment without an empty HOME; None if HOME is set."""
    for variable in env:
        if variable.startswith("HOME=") and variable != "HOME=":
            return None
    return [variable for variable in env if variable != "HOME="]


def may_set_groups(pid: int | str) -> bool:
    """Return whether a process's user namespace lets it change its groups. Source: proc_pid_setgroups(5)."""
    try:
        return files.read(f"/proc/{pid}/setgroups").strip() == b"allow"
    except OSError:
        return True


def keeps_groups(config: Config) -> bool:
    """Return whether processes keep the caller's additional groups.

    ``podman run --group-add keep-groups`` requests it by this annotation, which crun has defined. An unprivileged user
    has no other way to give a process those groups.
    """
    return config.annotations.get("run.oci.keep_original_groups", "0") != "0"


def outside(config: Config, uid: int) -> int:
    """Return the uid outside of a user of the container; -1 if it is unknown."""
    return uid if config.namespace("user") is None else _mapped(config.linux.uid_mappings, uid)


def outside_group(config: Config, gid: int) -> int:
    """Return the gid outside of a group of the container; -1 if it is unknown."""
    return gid if config.namespace("user") is None else _mapped(config.linux.gid_mappings, gid)


def _mapped(maps: Sequence[IdMap], number: int) -> int:
    for each in maps:
        if each.container_id <= number < each.container_id + each.size:
            return each.host_id + number - each.container_id
    return -1


def own_streams(uid: int) -> None:
    """Make a user the owner of the standard streams, except the host's /dev/null.

    Args:
        uid: the user outside; -1 changes nothing.
    """
    for number in range(3) if uid >= 0 else ():
        try:
            status = os.fstat(number)
            if status.st_uid != uid and not (S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)):
                os.fchown(number, uid, -1)
        except OSError:
            continue  # the runtime may not change it: another user's pipe, a read-only filesystem
