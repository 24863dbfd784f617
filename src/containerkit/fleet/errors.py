"""Errors of fleets."""

from __future__ import annotations

from containerkit.errors import ContainerError

__all__ = ["FleetError", "NodeLost"]


class FleetError(ContainerError):
    """An engine does not accept a task, or an attempt failed for another reason than its command."""


class NodeLost(FleetError):  # noqa: N818 - named after the event, like TimeoutExpired of subprocess
    """The node, the worker or the connection to it was lost. The progress of the command is unknown.

    Attributes:
        node: the name of the node; an empty string if none had begun.
    """

    def __init__(self, message: str, node: str = "") -> None:
        super().__init__(message)
        self.node = node

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.node)
