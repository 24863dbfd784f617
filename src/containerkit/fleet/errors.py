"""What can become of a task of a fleet beside what its command does."""

from __future__ import annotations

from containerkit.errors import ContainerError

__all__ = ["FleetError", "NodeLost"]


class FleetError(ContainerError):
    """An engine does not take a task, or an attempt at it failed otherwise than by its command."""


class NodeLost(FleetError):  # noqa: N818 - what happened, as TimeoutExpired of subprocess
    """The node, the worker or the connection to it was lost. Nobody knows how far the command had come.

    Attributes:
        node: the name of the node; an empty string if none had begun.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.node)
