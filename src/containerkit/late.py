"""Modules that are imported on first use: they are above the modules that use them, or rarely needed.

Each table names a module, or ``module:attribute``. There are no other upward imports.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing takes longer than importing this module
    from collections.abc import Callable, Iterable
    from typing import Any, Final

__all__ = [
    "CHECKPOINT",
    "COMMIT",
    "CONNECT",
    "DETACH",
    "KEEPERS",
    "KINDS",
    "NETWORK",
    "OWNED",
    "POOLED",
    "PROVIDERS",
    "PUBLIC",
    "REFUSALS",
    "SWEEPERS",
    "VOLUME_USERS",
    "lazy",
    "load",
]

PUBLIC: Final = {
    "AppArmor": "security.lsm",
    "Attach": "spec.network",
    "Build": "image",
    "CGroup": "cgroup",
    "CNI": "spec.network",
    "CONTINUE": "security.listener",
    "Capabilities": "security.capabilities",
    "Change": "container.changes",
    "CleanupError": "errors",
    "Command": "spec.command",
    "CompletedProcess": "process.result",
    "Condition": "security.seccomp",
    "Container": "container.lifecycle",
    "ContainerError": "errors",
    "ContainerEvent": "detached.events",
    "ContainerTimeout": "errors",
    "Continue": "security.listener",
    "DEVNULL": "process.process",
    "DNS": "spec.network",
    "Detached": "detached.container",
    "Egress": "spec.network",
    "EgressRule": "spec.network",
    "ExitError": "errors",
    "Fail": "security.listener",
    "IdMapping": "spec.idmap",
    "Image": "image",
    "ImageError": "errors",
    "Inject": "security.listener",
    "Kind": "namespace",
    "Landlock": "security.landlock",
    "Limits": "cgroup",
    "LiveNetwork": "network",
    "Macvlan": "spec.network",
    "Mount": "spec.mount",
    "Namespace": "namespace",
    "Namespaces": "namespace",
    "Network": "spec.network",
    "NetworkPool": "pool.networks",
    "OutOfMemory": "errors",
    "PIPE": "process.process",
    "Personality": "security.personality",
    "Pod": "project.kube",
    "Port": "spec.network",
    "Process": "process.process",
    "ProgramNotFoundError": "errors",
    "Project": "project.project",
    "Rate": "spec.network",
    "Refusal": "network.refusals",
    "Return": "security.listener",
    "RootFS": "spec.rootfs",
    "SELinux": "security.lsm",
    "STDOUT": "process.process",
    "Sandbox": "sandbox",
    "Seccomp": "security.seccomp",
    "Service": "project.project",
    "SetupError": "errors",
    "SpecError": "errors",
    "Stack": "project.stack",
    "StateError": "errors",
    "SyscallRequest": "security.listener",
    "Template": "container.template",
    "TimeOffsets": "namespace",
    "Timings": "container.lifecycle",
    "UnsupportedError": "errors",
    "Usage": "process.result",
    "User": "spec.command",
    "containers": "detached.container",
    "events": "detached.events",
    "popen": "container.launch",
    "probe": "_linux.features",
    "run": "container.run",
}
"""The module of each public name, relative to this package."""

CHECKPOINT: Final = "containerkit.checkpoint"
"""The module that writes containers to a directory and restores them."""

COMMIT: Final = "containerkit.image.snapshot:commit"
"""The module that makes an image from the changes of a container."""

KEEPERS: Final = {"detached": "containerkit.detached.view", "oci": "containerkit.oci.records"}
"""The modules with records of containers that outlive their maker: each has ``view(id, confinement)``, and with
``find(id, root)`` and ``states(root)``."""

DETACH: Final = "containerkit.detached.making:detach"
"""The function that starts a container that outlives its caller."""

REFUSALS: Final = "containerkit._linux.refusals"
"""The module that finds the cause of a refusal."""

PROVIDERS: Final = {
    "image": "containerkit.image.provider:image",
    "template": "containerkit.image.provider:template",
}
"""Functions that convert a kind of root filesystem to ``dir`` or ``overlay``. They are called with the RootFS."""

SWEEPERS: Final = {
    "container": "containerkit.container.running:sweep",
    "control group": "containerkit.cgroup.sweeping:sweep",
    "detached container": "containerkit.detached.store:sweep",
    "network": "containerkit.network.sweeping:sweep",
    "image": "containerkit.image.store.collect:sweep",
    "project": "containerkit.project.sockets:sweep",
    "volume": "containerkit.volume.place:sweep",
}
"""Functions that remove what killed owners have left behind. They return the names of what they removed, and raise
:class:`containerkit.errors.CleanupError` for what could not be removed."""


VOLUME_USERS: Final = {"detached": "containerkit.detached.volumes:users"}
"""Functions that return the ids of the recorded containers that mount a directory."""

NETWORK: Final = "containerkit.network"
"""The module that opens networks."""

CONNECT: Final = "containerkit.network:connected_once"
"""Converts a description with a network into one that joins a namespace."""

OWNED: Final = "containerkit.network.connect:owned"
POOLED: Final = "containerkit.network.pool:pooled"
"""The module that keeps networks of one description ready."""

KINDS: Final = {
    "attached": "containerkit.container.attached:attach",
    "container": "containerkit.container.lifecycle:Container",
    "template": "containerkit.container.template:Template",
}
"""Objects that :class:`containerkit.Container` creates on first use."""


def load(place: str) -> Any:
    """Import a module. Return it or its attribute.

    Args:
        place: ``module`` or ``module:attribute``.
    """
    from importlib import import_module

    module, _, name = place.partition(":")
    found = import_module(module)
    return getattr(found, name) if name else found


def lazy(names: dict[str, Any], places: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], Iterable[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package that imports its public names on first use.

    Args:
        names: the ``globals()`` of the package.
        places: the module of each name, relative to the package; one of another package with its full name.

    Source: PEP 562.
    """
    package = names["__name__"]

    def find(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = places[name]
        module = place if place.startswith("containerkit.") else f"{package}.{place}"
        value = names[name] = load(f"{module}:{name}")
        return value

    return find, lambda: sorted({*names, *places})
