"""``delete``: remove a container and all that was made for it."""

from __future__ import annotations

import os
import select
from _signal import pidfd_send_signal  # type: ignore[import-not-found] # signal itself loads enum

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
    """Kill a container without its lock, and whoever is still making it: a hook may keep that for ever."""
    with store.open_entry(root, name) as entry:
        pid, started = entry.record.get("creator", [0, 0])
        if entry.record.get("phase") == "creating" and pid != os.getpid():
            _kill_process(entry.id, pid, started)
        _kill(entry)


def _kill(entry: Entry) -> None:
    """Kill the first process, and wait until it has ended."""
    freezer = entry.record.get("freezer", "")
    _kill_process(entry.id, entry.pid, entry.record.get("start_time", 0), freezer)


def _kill_process(name: str, pid: int, started: int, freezer: str = "") -> None:
    """Kill a process, through a pidfd that no other can have, and wait until it has ended."""
    if not store.is_alive(pid, started):
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not store.is_alive(pid, started):
            return
        pidfd_send_signal(pidfd, _SIGKILL)
        cgroups.thaw(freezer)  # a frozen process does not die
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(int(_PATIENCE_S * 1000)):
            raise RuntimeFailure(f"container {name}: process {pid} does not end")
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
