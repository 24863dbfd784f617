"""Constants of the kernel by the names that descriptions and the OCI's config.json use."""

from __future__ import annotations

from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["PROPAGATION", "RESOURCES"]

PROPAGATION: Final = {
    "private": k.MS_PRIVATE,
    "slave": k.MS_SLAVE,
    "shared": k.MS_SHARED,
    "unbindable": k.MS_UNBINDABLE,
}
"""The propagation types of mounts. Source: mount_namespaces(7), "Shared subtrees"."""

RESOURCES: Final = {
    name: number
    for number, name in enumerate(
        (
            *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile"),
            *("memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
        )
    )
}
"""The resources of a process that can be limited. Source: setrlimit(2); asm-generic/resource.h."""
