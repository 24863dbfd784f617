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
    from containerkit.mount import Mount
    from containerkit.namespace import Kind, Namespace, Namespaces, TimeOffsets
    from containerkit.oneshot import run
    from containerkit.pool import NetworkPool
    from containerkit.process import DEVNULL, PIPE, STDOUT, Process
    from containerkit.result import CompletedProcess, Usage
    from containerkit.rootfs import RootFS

__version__ = "0.1.0"

_PLACES = {
    "CGroup": "cgroup",
    "Change": "changes",
    "CleanupError": "errors",
    "Command": "command",
    "CompletedProcess": "result",
    "Container": "container",
    "ContainerError": "errors",
    "ContainerTimeout": "errors",
    "DEVNULL": "process",
    "ExitError": "errors",
    "IdMapping": "idmap",
    "ImageError": "errors",
    "Kind": "namespace",
    "Limits": "cgroup",
    "Mount": "mount",
    "Namespace": "namespace",
    "Namespaces": "namespace",
    "NetworkPool": "pool",
    "OutOfMemory": "errors",
    "PIPE": "process",
    "Process": "process",
    "RootFS": "rootfs",
    "STDOUT": "process",
    "SetupError": "errors",
    "SpecError": "errors",
    "StateError": "errors",
    "TimeOffsets": "namespace",
    "Timings": "container",
    "UnsupportedError": "errors",
    "Usage": "result",
    "User": "command",
    "probe": "_linux.features",
    "run": "oneshot",
}

__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CGroup",
    "Change",
    "CleanupError",
    "Command",
    "CompletedProcess",
    "Container",
    "ContainerError",
    "ContainerTimeout",
    "ExitError",
    "IdMapping",
    "ImageError",
    "Kind",
    "Limits",
    "Mount",
    "Namespace",
    "Namespaces",
    "NetworkPool",
    "OutOfMemory",
    "Process",
    "RootFS",
    "SetupError",
    "SpecError",
    "StateError",
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
