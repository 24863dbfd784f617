"""The keyword arguments that calls of fleets share; see :mod:`containerkit.options`.

Source: PEP 589, PEP 692.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from containerkit.spec.rootfs import RootFS

__all__ = ["AnyFleetOptions", "FleetOptions", "HeldRunOptions"]


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
