"""``delete``: remove a container and all that was made for it."""

from __future__ import annotations

import os
import select

from containerkit.oci import cgroups, store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["delete", "destroy"]

_SIGKILL = 9
_PATIENCE_S = 10.0


def delete(call: Call) -> int:
    """Remove a stopped container; with ``--force`` in any state. Source: OCI runtime-spec, runtime.md, "Delete"."""
    force = call.flags.has("force")
    for name in call.flags.arguments or [call.name]:
        try:
            if force:
                _stop(call.root, name)
            entry = store.open_entry(call.root, name, lock=True, patience_s=_PATIENCE_S)
        except RuntimeFailure as error:
            if force and "does not exist" in str(error):
                continue
            raise
        with entry:
            status = entry.status()
            if status != "stopped" and not force:
                raise RuntimeFailure(f"cannot delete container {name} that is not stopped: {status}")
            destroy(entry)
    return 0


def _stop(root: str, name: str) -> None:
    """Kill a container without its lock: whoever is making it gives up then."""
    with store.open_entry(root, name) as entry:
        _kill(entry)


def _kill(entry: Entry) -> None:
    """Kill the first process, and wait until it has ended."""
    if not entry.is_running():
        return
    try:
        pidfd = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        return
    try:
        if entry.is_running():
            from _signal import (  # type: ignore[import-not-found] # what signal is built on, without enum
                pidfd_send_signal,
            )

            pidfd_send_signal(pidfd, _SIGKILL)
            cgroups.thaw(entry.record.get("freezer", ""))
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            if not poller.poll(int(_PATIENCE_S * 1000)):
                raise RuntimeFailure(f"container {entry.id}: process {entry.pid} does not end")
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def destroy(entry: Entry) -> None:
    """Remove what was made for the container of an entry whose lock is held.

    Raises:
        RuntimeFailure: something is in use and can't be removed; the record stays, for another try.
    """
    record = entry.record
    _kill(entry)
    groups = record.get("groups", [])
    cgroups.thaw(record.get("freezer", ""))
    cgroups.kill_all(groups, _SIGKILL)
    left = cgroups.remove(groups)
    if left:
        raise RuntimeFailure(f"container {entry.id}: control groups in use: {', '.join(left)}")
    if record.get("resctrl"):
        cgroups.remove([record["resctrl"]])
    if record.get("unit"):
        from containerkit.oci.systemd import stop_scope

        stop_scope(record["unit"])
    if "poststop" in record.get("hooks", []):
        from containerkit.oci.lifehooks import poststop

        poststop(entry)
    entry.remove()
