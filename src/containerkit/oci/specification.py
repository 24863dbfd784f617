"""``spec``: write a configuration as a starting point."""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit.oci.errors import RuntimeFailure, strerror
from containerkit.oci.main import SPEC_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.oci.main import Call

__all__ = ["default", "rootless", "spec"]

_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]
_READONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]


def _mounts() -> list[dict[str, Any]]:
    rows = [
        ("/proc", "proc", "proc", []),
        ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        ("/dev/shm", "tmpfs", "shm", ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        ("/dev/mqueue", "mqueue", "mqueue", ["nosuid", "noexec", "nodev"]),
        ("/sys", "sysfs", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
        ("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ]
    return [
        {"destination": place, "type": kind, "source": source, **({"options": options} if options else {})}
        for place, kind, source, options in rows
    ]


def default() -> dict[str, Any]:
    """Return the configuration of a container with the usual defaults that runs a shell."""
    sets = ("bounding", "effective", "permitted")
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {name: list(_CAPABILITIES) for name in sets},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "containerkit",
        "mounts": _mounts(),
        "linux": {
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup")],
            "maskedPaths": list(_MASKED),
            "readonlyPaths": list(_READONLY),
        },
    }


def rootless(uid: int, gid: int) -> dict[str, Any]:
    """Return the same for an unprivileged user.

    Args:
        uid: the user, who is root inside.
        gid: the group.
    """
    found = default()
    linux = found["linux"]
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "network"] + [{"type": "user"}]
    linux["uidMappings"] = [{"containerID": 0, "hostID": uid, "size": 1}]
    linux["gidMappings"] = [{"containerID": 0, "hostID": gid, "size": 1}]
    linux.pop("resources")
    for mount in found["mounts"]:
        if mount["destination"] == "/dev/pts":  # group 5 is not mapped
            mount["options"] = [option for option in mount["options"] if option != "gid=5"]
        if mount["destination"] == "/sys":  # a new sysfs needs a new network namespace
            mount.update(type="none", source="/sys", options=["rbind", "nosuid", "noexec", "nodev", "ro"])
    found["mounts"] = [mount for mount in found["mounts"] if mount["type"] != "cgroup"]
    return found


def spec(call: Call) -> int:
    """Write ``config.json`` into the bundle, which must not contain one."""
    content = rootless(os.geteuid(), os.getegid()) if call.flags.has("rootless") else default()
    path = os.path.join(call.flags.text("bundle", "."), "config.json")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise RuntimeFailure(f"file {path} exists: remove it first") from None
    except OSError as error:
        raise RuntimeFailure(f"write {path}: {strerror(error.errno or 0)}") from None
    with os.fdopen(fd, "w") as file:
        file.write(jsontext.dumps(content, 4) + "\n")
    return 0
