"""Containers as a Python data type.

::

    from containerkit import Container, run

    print(run(["uname", "-n"], text=True).stdout)

    with Container() as c:
        done = c.run(["python3", "-c", "print(6 * 7)"], text=True, timeout=5, check=True)

Importing this package is cheap: each public name is imported on first use.
"""

from containerkit.late import PUBLIC as _PUBLIC
from containerkit.late import lazy as _lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit._linux.features import probe
    from containerkit.cgroup import CGroup, Limits
    from containerkit.container.changes import Change
    from containerkit.container.launch import popen
    from containerkit.container.lifecycle import Container, Timings
    from containerkit.container.run import run
    from containerkit.container.template import Template
    from containerkit.detached.container import Detached, containers
    from containerkit.detached.events import ContainerEvent, events
    from containerkit.errors import (
        CleanupError,
        ContainerError,
        ContainerTimeout,
        ExitError,
        ImageError,
        OutOfMemory,
        ProgramNotFoundError,
        SetupError,
        SpecError,
        StateError,
        UnsupportedError,
    )
    from containerkit.image import Build, Image
    from containerkit.namespace import Kind, Namespace, Namespaces, TimeOffsets
    from containerkit.network import LiveNetwork
    from containerkit.network.refusals import Refusal
    from containerkit.pool.networks import NetworkPool
    from containerkit.process.process import DEVNULL, PIPE, STDOUT, Process
    from containerkit.process.result import CompletedProcess, Usage
    from containerkit.project.kube import Pod
    from containerkit.project.project import Project, Service
    from containerkit.project.stack import Stack
    from containerkit.sandbox import Sandbox
    from containerkit.security.capabilities import Capabilities
    from containerkit.security.landlock import Landlock
    from containerkit.security.listener import CONTINUE, Continue, Fail, Inject, Return, SyscallRequest
    from containerkit.security.lsm import AppArmor, SELinux
    from containerkit.security.personality import Personality
    from containerkit.security.seccomp import Condition, Seccomp
    from containerkit.spec.command import Command, User
    from containerkit.spec.idmap import IdMapping
    from containerkit.spec.mount import Mount
    from containerkit.spec.network import CNI, DNS, Attach, Egress, EgressRule, Macvlan, Network, Port, Rate
    from containerkit.spec.rootfs import RootFS

__version__ = "0.1.0"

__all__ = [
    "CNI",
    "CONTINUE",
    "DEVNULL",
    "DNS",
    "PIPE",
    "STDOUT",
    "AppArmor",
    "Attach",
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
    "ContainerEvent",
    "ContainerTimeout",
    "Continue",
    "Detached",
    "Egress",
    "EgressRule",
    "ExitError",
    "Fail",
    "IdMapping",
    "Image",
    "ImageError",
    "Inject",
    "Kind",
    "Landlock",
    "Limits",
    "LiveNetwork",
    "Macvlan",
    "Mount",
    "Namespace",
    "Namespaces",
    "Network",
    "NetworkPool",
    "OutOfMemory",
    "Personality",
    "Pod",
    "Port",
    "Process",
    "ProgramNotFoundError",
    "Project",
    "Rate",
    "Refusal",
    "Return",
    "RootFS",
    "SELinux",
    "Sandbox",
    "Seccomp",
    "Service",
    "SetupError",
    "SpecError",
    "Stack",
    "StateError",
    "SyscallRequest",
    "Template",
    "TimeOffsets",
    "Timings",
    "UnsupportedError",
    "Usage",
    "User",
    "containers",
    "events",
    "popen",
    "probe",
    "run",
]

__getattr__, __dir__ = _lazy(globals(), _PUBLIC)
