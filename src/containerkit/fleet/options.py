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
    """The image, in place of ``rootfs``. Its name is resolved to a digest once, here; each node pulls that once."""
    rootfs: RootFS
    """The root filesystem, seen as ``/``, of the node that runs it (default ``RootFS.host()``)."""
    retries: int
    """How many more attempts are made if the node, its worker or the connection is lost (default 0). Nobody knows how
    far a lost attempt had come: with retries a command runs at least once, without them at most once."""


class AnyFleetOptions(FleetOptions, TextOptions, total=False):
    """The same, and those for text mode."""


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
