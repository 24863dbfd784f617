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
_LASTING = frozenset(
    (0, *(signals.NAMES[name] for name in ("CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "WINCH")))
)
"""The signals that end no process by default. Source: signal(7)."""


def kill(call: Call) -> int:
    """Send a signal to the first process, or to all of them. Source: OCI runtime-spec, runtime.md, "Kill"."""
    arguments = call.flags.arguments
    signal = signals.parse(arguments[1]) if len(arguments) > 1 else signals.NAMES["TERM"]
    if not call.flags.has("regex"):
        _kill(call, call.name, signal)
        return 0
    for name in store.matching(call.root, call.name, alive=True):
        _kill(call, name, signal)
    return 0


def _kill(call: Call, name: str, signal: int) -> None:
    with store.open_entry(call.root, name) as entry:
        status = entry.status()
        everyone = call.flags.has("all") or _has_others(entry, status, signal)
        if status == "stopped" and not everyone:
            raise RuntimeFailure("container not running")
        if status == "created" and signal not in _LASTING:
            _end_waiting(entry, signal)
        elif status != "stopped":
            send(entry, signal)
        if everyone or (entry.record.get("joinsPid") and signal == _SIGKILL):
            # Without its own pid namespace, the other processes continue after the first one has ended.
            from containerkit.oci import cgroups

            cgroups.kill_all(entry.record.get("groups", []), signal)
            cgroups.thaw(entry.record.get("freezer", "") if signal == _SIGKILL else "")


def _end_waiting(entry: Entry, signal: int) -> None:
    """End a process that waits for ``start``.

    Its program does not run yet, so the signal must have its default effect, which is to end the process. But the
    kernel ignores such a signal for the first process of a pid namespace. So SIGKILL is sent.
    """
    import fcntl

    try:
        fcntl.flock(entry.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being started: the program may run in a moment
        send(entry, signal)
    else:
        send(entry, _SIGKILL if entry.status() == "created" else signal)


def _has_others(entry: Entry, status: str, signal: int) -> bool:
    """Return whether SIGKILL is for processes that outlived the first one, which had no pid namespace of its own."""
    if status != "stopped" or signal != _SIGKILL or not entry.record.get("joinsPid"):
        return False
    from containerkit.oci import cgroups

    return bool(cgroups.processes(entry.record.get("groups", [])))


def send(entry: Entry, signal: int) -> None:
    """Send a signal to the first process through a pidfd, so that a reused pid can't be hit.

    Raises:
        RuntimeFailure: it has ended in the meantime.
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
