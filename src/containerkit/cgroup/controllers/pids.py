"""The pids controller limits the number of processes and threads.

Source: "PID" in Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/pids.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.statfiles import flat, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.stats import PidsStats


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:  # noqa: ARG001 - one form on both
    """Return the settings that apply the limit."""
    return [] if limits.pids is None else [Setting("pids.max", str(limits.pids).encode())]


def report(read: Callable[[str], str | None], version: int) -> PidsStats:  # noqa: ARG001 - one form on both
    """Return the report."""
    from containerkit.cgroup.stats import PidsStats

    return PidsStats(
        current=integer(read("pids.current")),
        limit=integer(read("pids.max")),
        peak=integer(read("pids.peak")),
        limit_hits=flat(read("pids.events")).get("max"),
    )
