"""The keyword arguments that calls of fleets share; see :mod:`containerkit.options`.

Source: PEP 589, PEP 692.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from containerkit.options import (
    ConfinementOptions,
    DescriptionOptions,
    DirectoryOptions,
    EnvironmentOptions,
    InitOptions,
    ResourceOptions,
    TextOptions,
    UserOptions,
    WaitOptions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.options import ListOf
    from containerkit.spec.rootfs import RootFS

__all__ = ["AnyFleetOptions", "FleetOptions", "HeldRunOptions", "KubernetesOptions"]


class FleetOptions(
    DescriptionOptions,
    EnvironmentOptions,
    DirectoryOptions,
    ResourceOptions,
    UserOptions,
    ConfinementOptions,
    WaitOptions,
    InitOptions,
    total=False,
):
    """The arguments of :meth:`containerkit.fleet.Fleet.submit`, apart from the input and those for text mode."""

    image: str | None
    """An image instead of ``rootfs``. This program resolves its name to a digest once; each node pulls it once."""
    rootfs: RootFS
    """The root filesystem, on the node that runs it (default ``RootFS.host()``)."""
    retries: int
    """The number of retries if the node, its worker or the connection is lost (default 0). The progress of a lost
    attempt is unknown: with retries a command runs at least once, without them at most once."""


class AnyFleetOptions(FleetOptions, TextOptions, total=False):
    """The same arguments, and those for text mode."""


class HeldRunOptions(
    EnvironmentOptions,
    DirectoryOptions,
    ResourceOptions,
    UserOptions,
    ConfinementOptions,
    WaitOptions,
    total=False,
):
    """The arguments of :meth:`containerkit.fleet.FleetContainer.run`, apart from the input and text mode."""


class KubernetesOptions(TypedDict, total=False):
    """The arguments of :meth:`containerkit.fleet.Fleet.kubernetes`, apart from the namespace."""

    kubeconfig: str | None
    """The file with the credentials (default: ``$KUBECONFIG`` or ``~/.kube/config``, in a pod its service account)."""
    context: str | None
    """The context in it (default: the current one)."""
    runtime_class: str | None
    """The RuntimeClass of the pods (default ``"containerkit"``); None for the cluster's default."""
    user_namespaces: bool
    """Whether each pod gets a new user namespace (default True). A cluster that does not support them is refused."""
    lease_s: int
    """The time in seconds after which a Job ends if its driver has disappeared (default 600, at least 15). A running
    driver extends the time."""
    grace_s: int
    """The time in seconds between SIGTERM and SIGKILL when a command is ended (default 5)."""
    node_selector: Mapping[str, str] | None
    """Labels that a node must have (default: none)."""
    service_account: str | None
    """The service account of the pods, whose token they get (default: none, and no token)."""
    pull_secrets: ListOf[str]
    """Names of the secrets for pulling images (default: none)."""
