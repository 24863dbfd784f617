"""Containers as a Python data type.

::

    from containerkit import Container, run

    print(run(["uname", "-n"], text=True).stdout)

    with Container() as c:
        done = c.run(["python3", "-c", "print(6 * 7)"], text=True, timeout=5, check=True)

Importing this package is cheap: each public name is loaded when it is first used.
"""

from importlib import import_module as _import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit._linux.features import probe
    from containerkit.cgroup import CGroup, Limits
    from containerkit.changes import Change
    from containerkit.command import Command, User
    from containerkit.container import Container, Timings
    from containerkit.errors import (
        CleanupError,
        ContainerError,
        ContainerTimeout,
        ExitError,
        ImageError,
        OutOfMemory,
        SetupError,
        SpecError,
        StateError,
        UnsupportedError,
    )
    from containerkit.idmap import IdMapping
    from containerkit.image import Build, Image
    from containerkit.mount import Mount
    from containerkit.namespace import Kind, Namespace, Namespaces, TimeOffsets
    from containerkit.oneshot import run
    from containerkit.pool import NetworkPool
    from containerkit.process import DEVNULL, PIPE, STDOUT, Process
    from containerkit.result import CompletedProcess, Usage
    from containerkit.rootfs import RootFS
    from containerkit.sandbox import Sandbox
    from containerkit.security.capabilities import Capabilities
    from containerkit.security.landlock import Landlock
    from containerkit.security.listener import CONTINUE, Continue, Fail, Inject, Return, SyscallRequest
    from containerkit.security.lsm import AppArmor, SELinux
    from containerkit.security.personality import Personality
    from containerkit.security.seccomp import Condition, Seccomp
    from containerkit.template import Template

__version__ = "0.1.0"

_PLACES = {
    "AppArmor": "security.lsm",
    "Build": "image",
    "CGroup": "cgroup",
    "CONTINUE": "security.listener",
    "Capabilities": "security.capabilities",
    "Change": "changes",
    "CleanupError": "errors",
    "Command": "command",
    "CompletedProcess": "result",
    "Condition": "security.seccomp",
    "Container": "container",
    "ContainerError": "errors",
    "ContainerTimeout": "errors",
    "Continue": "security.listener",
    "DEVNULL": "process",
    "ExitError": "errors",
    "Fail": "security.listener",
    "IdMapping": "idmap",
    "Image": "image",
    "ImageError": "errors",
    "Inject": "security.listener",
    "Kind": "namespace",
    "Landlock": "security.landlock",
    "Limits": "cgroup",
    "Mount": "mount",
    "Namespace": "namespace",
    "Namespaces": "namespace",
    "NetworkPool": "pool",
    "OutOfMemory": "errors",
    "PIPE": "process",
    "Personality": "security.personality",
    "Process": "process",
    "Return": "security.listener",
    "RootFS": "rootfs",
    "SELinux": "security.lsm",
    "STDOUT": "process",
    "Sandbox": "sandbox",
    "Seccomp": "security.seccomp",
    "SetupError": "errors",
    "SpecError": "errors",
    "StateError": "errors",
    "SyscallRequest": "security.listener",
    "Template": "template",
    "TimeOffsets": "namespace",
    "Timings": "container",
    "UnsupportedError": "errors",
    "Usage": "result",
    "User": "command",
    "probe": "_linux.features",
    "run": "oneshot",
}

__all__ = [
    "CONTINUE",
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "AppArmor",
    "Build",
    "CGroup",
    "Capabilities",
    "Change",
    "CleanupError",
    "Command",
    "CompletedProcess",
    "Condition",
    "Container",
    "ContainerError",
    "ContainerTimeout",
    "Continue",
    "ExitError",
    "Fail",
    "IdMapping",
    "Image",
    "ImageError",
    "Inject",
    "Kind",
    "Landlock",
    "Limits",
    "Mount",
    "Namespace",
    "Namespaces",
    "NetworkPool",
    "OutOfMemory",
    "Personality",
    "Process",
    "Return",
    "RootFS",
    "SELinux",
    "Sandbox",
    "Seccomp",
    "SetupError",
    "SpecError",
    "StateError",
    "SyscallRequest",
    "Template",
    "TimeOffsets",
    "Timings",
    "UnsupportedError",
    "Usage",
    "User",
    "probe",
    "run",
]


def __getattr__(name: str) -> object:
    """Load a public name on its first use. Source: PEP 562."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
