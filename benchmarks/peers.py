"""Other programs, each asked for the same: all namespaces that it supports, the same root and program.

The C floor starts them with vfork and exec, so that no cost of Python is included.
"""

from __future__ import annotations

import json
import os
from shutil import which
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

_MAPPING = [{"containerID": 0, "hostID": 4026531840, "size": 65536}]
_BWRAP = ("--unshare-all", "--unshare-user", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp")
_UNSHARE = ("--user", "--map-root-user", "--mount", "--pid", "--fork", "--ipc", "--uts", "--net", "--cgroup", "--time")
_NSPAWN = ("--quiet", "--read-only", "--private-network", "--as-pid2", "--register=no", "--keep-unit", "--timezone=off")


@attrs.frozen
class Peer:
    """Another way to start a container.

    Attributes:
        name: the program.
        words: returns the command line that runs ``/true``, given a root filesystem and a scratch directory.
        slow: whether it takes so long that every fifth round is enough.
    """

    name: str
    words: Callable[[str, str], list[str]]
    slow: bool = False

    @property
    def installed(self) -> bool:
        return which(self.name) is not None


def bundle(root: str, scratch: str) -> str:
    """Write an OCI bundle for a root filesystem below ``scratch`` and return its path."""
    path = os.path.join(scratch, "bundle")
    os.makedirs(path, exist_ok=True)
    kinds = ["pid", "network", "ipc", "uts", "mount", "cgroup", "user"]
    secure = ["nosuid", "noexec", "nodev"]
    config = {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["/true"],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 1024}],
            "capabilities": {name: [] for name in ("bounding", "effective", "permitted", "inheritable", "ambient")},
        },
        "root": {"path": root, "readonly": True},
        "hostname": "container",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": secure},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": [*secure, "size=64m"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": secure},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*secure, "ro"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in kinds], "uidMappings": _MAPPING, "gidMappings": _MAPPING},
    }
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return path


def lxc_config(root: str, scratch: str) -> str:
    """Write the configuration of an LXC container without a user namespace, writable; return its path."""
    path = os.path.join(scratch, "lxc.conf")
    text = f"lxc.rootfs.path=dir:{root}\nlxc.net.0.type=empty\nlxc.uts.name=container\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def _oci(name: str, *options: str) -> Callable[[str, str], list[str]]:
    def words(root: str, scratch: str) -> list[str]:
        state = os.path.join(scratch, name)
        return [name, "--root", state, *options, "run", "--bundle", bundle(root, scratch), f"bench-{os.getpid()}"]

    return words


PEERS = (
    Peer("unshare", lambda root, _: ["unshare", *_UNSHARE, "--mount-proc", "--root", root, "/true"]),
    Peer("bwrap", lambda root, _: ["bwrap", *_BWRAP[:4], "--ro-bind", root, "/", *_BWRAP[4:], "/true"]),
    Peer("crun", _oci("crun", "--cgroup-manager=disabled")),
    Peer("runc", _oci("runc"), slow=True),
    Peer(
        "lxc-execute",
        lambda root, scratch: [
            *("lxc-execute", "-n", f"bench-{os.getpid()}", "-P", scratch, "-f", lxc_config(root, scratch)),
            *("-l", "FATAL", "-o", os.devnull, "--", "/true"),
        ],
        slow=True,
    ),
    Peer("systemd-nspawn", lambda root, _: ["systemd-nspawn", *_NSPAWN, "--directory", root, "/true"], slow=True),
    Peer(
        "podman",
        lambda root, _: [
            *("podman", "run", "--rm", "--network=none", "--cgroups=disabled", "--log-driver=none"),
            *("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--read-only", "--rootfs", root, "/true"),
        ],
        slow=True,
    ),
    Peer("containerexec", lambda _root, _scratch: ["containerexec", "--", "/bin/true"], slow=True),
)
