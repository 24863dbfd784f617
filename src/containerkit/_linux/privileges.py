"""The privileges of this process, and the ids that it can assign to containers."""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.descriptors import keep, lend
from containerkit.errors import telling_of_descriptors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["FIRST_BASE", "RANGE", "has_ids_to_spare", "is_privileged", "maps_range"]

RANGE: Final = 65_536
"""Ids in the range of one container."""

FIRST_BASE: Final = 0x1000_0000  # 268 million: above the ids that useradd, systemd's DynamicUser and subuid allocate
"""The first of the library's own ids."""


@telling_of_descriptors("look up privileges")
def is_privileged() -> bool:
    """Return whether this process may make namespaces, fresh kernel filesystems and id maps as root.

    Root of a user namespace without its own pid namespace, or without ids for containers, counts as unprivileged,
    because it can do no more than an unprivileged user.

    Raises:
        SetupError: no descriptor is free.
    """
    if os.geteuid() != 0:
        return False
    with open("/proc/thread-self/status", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                effective = int(line.split()[1], 16)
                # CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN
                return all(effective >> bit & 1 for bit in (6, 7, 21)) and _owns_processes() and has_ids_to_spare()
    return False


def _owns_processes() -> bool:
    """Return whether this process's user namespace owns its pid namespace. Source: ioctl_ns(2), NS_GET_USERNS."""
    from fcntl import ioctl

    def look(kept: list[int]) -> bool:
        at = keep(kept, os.open, "/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = keep(kept, ioctl, at, k.NS_GET_USERNS)
        except PermissionError:  # it is outside
            return False
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))

    return lend(look)


def maps_range(name: str, base: int) -> bool:
    """Return whether the caller's own user namespace maps a whole range. Source: user_namespaces(7)."""
    with open(f"/proc/self/{name}", encoding="utf-8") as file:
        lines = [tuple(map(int, line.split())) for line in file]
    return any(inside <= base and base + RANGE <= inside + count for inside, _, count in lines)


def has_ids_to_spare() -> bool:
    """Return whether the caller's own user namespace maps the ids that the library gives to containers."""
    return maps_range("uid_map", FIRST_BASE) and maps_range("gid_map", FIRST_BASE)
