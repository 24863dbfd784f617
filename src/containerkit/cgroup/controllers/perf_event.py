"""The perf_event controller has no limits and no files. :mod:`containerkit.cgroup.perf` uses it to count events.

Source: perf_event_open(2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.controllers import Attachment, Setting
    from containerkit.cgroup.limits import Limits


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - the interface of controllers
    """Return nothing: the controller only counts."""
    return []


def report(read: Callable[[str], str | None], version: int) -> None:
    """Return nothing: the controller has no files."""
