"""``delete``: remove a container and all its resources."""

from __future__ import annotations

import os
import select
import time
from _signal import pidfd_send_signal  # type: ignore[import-not-found] # signal itself loads enum

from containerkit.oci import cgroups, store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["delete", "destroy", "kill"]

_SIGKILL = 9
_PATIENCE_S = 10.0
_LONGEST_BEFORE_S = (
    2.0  # the front end waits for half a second; a start of this interpreter takes longer on a busy machine
)


def delete(call: Call) -> int:
    """Remove a stopped container, or with ``--force`` one in any state.

    Source: OCI runtime-spec, runtime.md, "Delete".
    """
    force = call.flags.has("force")
    names = call.flags.arguments or [call.name]
    if call.flags.has("regex"):
        names = [found for pattern in names for found in store.matching(call.root, pattern)]
    waited_s = _waited_s() if call.handed_over else 0.0
    for name in names:
        end = time.monotonic() + _PATIENCE_S - waited_s
        waited_s = 0.0
        try:
            if force:
                _stop(call.root, name, end)
            entry = store.open_entry(call.root, name, lock=True, patience_s=max(end - time.monotonic(), 0.1))
        except RuntimeFailure as error:
            if force and "does not exist" in str(error):
                continue
            raise
        with entry:
            status = entry.status()
            if status != "stopped" and not force:
                raise RuntimeFailure(f"cannot delete container {name} that is not stopped: {status}")
            destroy(entry, end)
    return 0


def _waited_s() -> float:
    """Return how long the front end has waited for the container to end: not longer than this process has lived."""
    began_s = store.start_time(os.getpid()) / os.sysconf("SC_CLK_TCK")
    return min(max(time.clock_gettime(time.CLOCK_BOOTTIME) - began_s, 0.0), _LONGEST_BEFORE_S)


def _stop(root: str, name: str, end: float) -> None:
    """Kill a container without its lock, and the runtime that is making it, which a hook may block forever."""
    with store.open_entry(root, name) as entry:
        pid, started = entry.record.get("creator", [0, 0])
        if entry.record.get("phase") == "creating" and pid != os.getpid():
            _kill_process(entry.id, pid, started, end)
        kill(entry, end)
        if entry.record.get("joinsPid"):  # a hook that runs inside does not end with the first process
            cgroups.kill_all(entry.record.get("groups", []), _SIGKILL)


def kill(entry: Entry, end: float | None = None) -> None:
    """Kill the first process, and wait until it has ended.

    Args:
        entry: the record of the container.
        end: the time on the monotonic clock until which to wait (default: 10 seconds from now).

    Raises:
        RuntimeFailure: it has not ended by then.
    """
    freezer = entry.record.get("freezer", "")
    end = time.monotonic() + _PATIENCE_S if end is None else end
    _kill_process(entry.id, entry.pid, entry.record.get("start_time", 0), end, freezer)


def _kill_process(name: str, pid: int, started: int, end: float, freezer: str = "") -> None:
    """Kill a process through a pidfd, and wait until it has ended."""
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
        if not poller.poll(max(int((end - time.monotonic()) * 1000), 0)):
            raise RuntimeFailure(f"container {name}: process {pid} does not end")
    except ProcessLookupError:
        return
    finally:
        os.close(pidfd)


def destroy(entry: Entry, end: float | None = None) -> None:
    """Remove all resources of a container. The caller must hold the lock of its entry.

    Args:
        entry: the record.
        end: the time on the monotonic clock until which to wait for resources in use (default: 10 seconds from now).

    Raises:
        RuntimeFailure: a resource is in use and can't be removed. The record stays, so that the caller can try again.
    """
    end = time.monotonic() + _PATIENCE_S if end is None else end
    record = entry.record
    kill(entry, end)
    groups = record.get("groups", [])
    cgroups.thaw(record.get("freezer", ""))
    cgroups.kill_all(groups, _SIGKILL)
    left = cgroups.remove(groups, end - time.monotonic())
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
