"""``kill``: send a signal to a container."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal is built on, without enum
import os

from containerkit.oci import signals, store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["kill", "send"]

_SIGKILL = 9


def kill(call: Call) -> int:
    """Send a signal to the first process, or to all of them. Source: OCI runtime-spec, runtime.md, "Kill"."""
    arguments = call.flags.arguments
    signal = signals.parse(arguments[1]) if len(arguments) > 1 else signals.NAMES["TERM"]
    with store.open_entry(call.root, call.name) as entry:
        status = entry.status()
        everyone = call.flags.has("all")
        if status == "stopped" and not everyone:
            raise RuntimeFailure("container not running")
        if status != "stopped":
            send(entry, signal)
        if everyone or (entry.record.get("joinsPid") and signal == _SIGKILL):
            # Without a pid namespace of its own the end of the first process is not the end of the others.
            from containerkit.oci import cgroups

            cgroups.kill_all(entry.record.get("groups", []), signal)
            cgroups.thaw(entry.record.get("freezer", "") if signal == _SIGKILL else "")
    return 0


def send(entry: Entry, signal: int) -> None:
    """Send a signal to the first process, through a pidfd: no other process can have taken its number.

    Raises:
        RuntimeFailure: it has ended meanwhile.
    """
    try:
        pidfd = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        raise RuntimeFailure("container not running") from None
    try:
        if not entry.is_running():
            raise RuntimeFailure("container not running")
        _signal.pidfd_send_signal(pidfd, signal)
    except ProcessLookupError:
        raise RuntimeFailure("container not running") from None
    finally:
        os.close(pidfd)
    freezer = entry.record.get("freezer", "")
    if signal == _SIGKILL and freezer.endswith(".state"):
        from containerkit.oci import cgroups

        cgroups.thaw(freezer)  # a frozen process does not die
