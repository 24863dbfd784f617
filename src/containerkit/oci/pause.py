"""``pause`` and ``resume``: freeze and thaw a container."""

from __future__ import annotations

import time

from containerkit.oci import cgroups, store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call

__all__ = ["pause", "resume"]

_PATIENCE_S = 10.0


def pause(call: Call) -> int:
    """Freeze all processes of a container. Return once they are frozen."""
    with store.open_entry(call.root, call.name, lock=True) as entry:
        status = entry.status()
        if status not in ("running", "created"):
            raise RuntimeFailure(f"container not running: it is {status}")
        freezer = entry.record.get("freezer", "")
        if not freezer:
            raise RuntimeFailure("cannot pause: no mounted hierarchy has a freezer for the container")
        cgroups.write(freezer, "FROZEN" if freezer.endswith(".state") else "1")
        _await_frozen(freezer)
    return 0


def _await_frozen(freezer: str) -> None:
    """Wait until the group is frozen. If it does not freeze in time, thaw it again.

    Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst; cgroup.events in cgroup-v2.rst.
    """
    end = time.monotonic() + _PATIENCE_S
    first = freezer.endswith(".state")
    while True:
        if first:
            done = cgroups.read_file(freezer).strip() == "FROZEN"
        else:
            done = "frozen 1" in cgroups.read_file(freezer.removesuffix("freeze") + "events").splitlines()
        if done:
            return
        if time.monotonic() > end:
            cgroups.thaw(freezer)
            raise RuntimeFailure("cannot pause: a process did not freeze in time")
        time.sleep(0.001)
        if first:
            cgroups.write(freezer, "FROZEN")  # a process that forked in the meantime


def resume(call: Call) -> int:
    """Thaw a frozen container."""
    with store.open_entry(call.root, call.name, lock=True) as entry:
        status = entry.status()
        if status != "paused":
            raise RuntimeFailure(f"container not paused: it is {status}")
        freezer = entry.record["freezer"]
        cgroups.write(freezer, "THAWED" if freezer.endswith(".state") else "0")
    return 0
