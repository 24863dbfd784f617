"""``features``: report what this runtime supports. Engines read it before they write a configuration.

Source: OCI runtime-spec, features.md and features-linux.md.
"""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit._linux.last_capability import last_capability
from containerkit.oci import capabilities, config, filters, mountoptions, payload
from containerkit.oci.main import SPEC_VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.oci.main import Call

__all__ = ["document", "features"]

_HOOKS = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
_ACTIONS = ["KILL", "KILL_PROCESS", "KILL_THREAD", "TRAP", "ERRNO", "TRACE", "ALLOW", "LOG", "NOTIFY"]
_OPERATORS = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
_ARCHES = [
    "X86",
    "X86_64",
    "X32",
    "ARM",
    "AARCH64",
    "MIPS",
    "MIPS64",
    "MIPS64N32",
    "MIPSEL",
    "MIPSEL64",
    "MIPSEL64N32",
    "PPC",
    "PPC64",
    "PPC64LE",
    "S390",
    "S390X",
    "RISCV64",
]


def document() -> dict[str, Any]:
    """Return the features document."""
    from containerkit import __version__

    security = os.listdir("/sys/kernel/security") if os.path.isdir("/sys/kernel/security") else []
    return {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": _HOOKS,
        "mountOptions": list(mountoptions.NAMES),
        "linux": {
            "namespaces": list(config.NAMESPACES),
            "capabilities": list(capabilities.NAMES[: last_capability() + 1]),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": [f"SCMP_ACT_{name}" for name in _ACTIONS],
                "operators": [f"SCMP_CMP_{name}" for name in _OPERATORS],
                "archs": [f"SCMP_ARCH_{name}" for name in _ARCHES],
                "knownFlags": list(filters.FLAGS),
                "supportedFlags": list(filters.FLAGS),
            },
            "apparmor": {"enabled": "apparmor" in security},
            "selinux": {"enabled": os.path.isdir("/sys/fs/selinux")},
            "intelRdt": {"enabled": True},
            "mountExtensions": {"idmap": {"enabled": True}},
            "netDevices": {"enabled": True},
            "memoryPolicy": {"modes": list(payload.MEMORY_MODES), "flags": list(payload.MEMORY_FLAGS)},
        },
        "annotations": {"io.containerkit.version": __version__},
        "potentiallyUnsafeConfigAnnotations": [],
    }


def features(call: Call) -> int:  # noqa: ARG001 - the common signature of verbs
    """Print the features document."""
    os.write(1, jsontext.dumps(document(), 2).encode() + b"\n")
    return 0
