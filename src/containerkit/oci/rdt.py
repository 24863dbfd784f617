"""``linux.intelRdt``: shares of cache and memory bandwidth, through the kernel's resctrl filesystem.

Source: OCI runtime-spec, config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst.
"""

from __future__ import annotations

import os

from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import IntelRdt

__all__ = ["apply", "mountpoint"]

_PATH = "linux.intelRdt"


def mountpoint() -> str:
    """Return the mount point of resctrl; empty if it is not mounted."""
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.split(" ")
            if fields[2] == "resctrl":
                return fields[1]
    return ""


def apply(wanted: IntelRdt, name: str, pid: int) -> str:
    """Put a process into the class of service of a description.

    Args:
        wanted: the description.
        name: the container's id, which names the class unless the description does.
        pid: the process.

    Returns:
        The directory if it was made for this container and must be removed with it, else an empty string.

    Raises:
        ConfigError: the host has no resctrl, or the class is not as described.
    """
    root = mountpoint()
    if not root:
        raise ConfigError(_PATH, "is not available: mount -t resctrl resctrl /sys/fs/resctrl, on a processor with RDT")
    clos = wanted.clos_id or name
    if "/" in clos or clos in (".", ".."):
        raise ConfigError(f"{_PATH}.closID", f"{clos!r} is not a name of a class")
    directory = root if wanted.clos_id == "/" else f"{root}/{clos}"
    made = ""
    lines = [*wanted.schemata, wanted.l3_cache_schema, wanted.mem_bw_schema]
    try:
        try:
            os.mkdir(directory, 0o755)
            made = directory
        except FileExistsError:
            if not wanted.clos_id:
                raise
        if made or not wanted.clos_id:
            for line in lines:
                if line:
                    _write(f"{directory}/schemata", line + "\n")
        _write(f"{directory}/tasks", str(pid))
    except OSError as error:
        raise ConfigError(_PATH, f"{directory}: {strerror(error.errno or 0)}") from None
    return made if not wanted.clos_id else ""


def _write(path: str, value: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"write {value.strip()!r} to {path}: {strerror(error.errno or 0)}") from None
