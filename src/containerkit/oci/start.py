"""``start``: make a created container run its program."""

from __future__ import annotations

import os

from containerkit.oci import store
from containerkit.oci.channel import Channel
from containerkit.oci.errors import RuntimeFailure, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.log import Log
    from containerkit.oci.main import Call
    from containerkit.oci.notify import Listener
    from containerkit.oci.store import Entry

__all__ = ["open_gate", "start", "start_entry"]


def start(call: Call) -> int:
    """Start a created container. Source: OCI runtime-spec, runtime.md, "Start"."""
    if call.resumed is not None:
        return _resume(call, *call.resumed)
    with store.open_entry(call.root, call.name, lock=True) as entry:
        listener = start_entry(entry, call.journal)
    if listener is not None:  # the lock is released: a long wait must not block other calls for this container
        listener.wait()
    return 0


def _resume(call: Call, directory: int, gate: int) -> int:
    """Finish a start that the front end began, after the gate reported that the program did not start."""
    with store.adopt(call.root, call.name, directory) as entry:
        _await_program(entry, Channel.adopted(gate))
    return 0


def start_entry(entry: Entry, journal: Log) -> Listener | None:
    """Start the container of an entry whose lock is held.

    Args:
        entry: the container's record.
        journal: takes warnings.

    Returns:
        The socket on which it will report readiness, if a service manager must be notified.

    Raises:
        RuntimeFailure: it is not in state ``created``, a hook failed, or its program could not be executed.
    """
    status = entry.status()
    if status in ("running", "paused"):
        raise RuntimeFailure("cannot start an already running container")
    if status != "created":
        raise RuntimeFailure(
            f"cannot start a container that has {status}" if status == "stopped" else "the container is being created"
        )
    wanted = entry.record.get("hooks", [])
    if "startContainer" in wanted:
        from containerkit.oci.lifehooks import start_container

        start_container(entry)
    listener = None
    if entry.record.get("notifies"):
        from containerkit.oci.notify import Listener

        listener = Listener.of(entry, journal)
    open_gate(entry)
    if "poststart" in wanted:
        from containerkit.oci.lifehooks import poststart

        poststart(entry)
    return listener


def open_gate(entry: Entry) -> None:
    """Release the first process, and wait until it has exec'd the program.

    Raises:
        RuntimeFailure: it could not exec the program.
    """
    try:
        gate = Channel.connected(f"/proc/self/fd/{entry.fd}/{store.GATE}")
    except (ConnectionRefusedError, FileNotFoundError):
        _unlink(entry)
        raise RuntimeFailure("cannot start an already running container") from None
    _await_program(entry, gate)


def _await_program(entry: Entry, gate: Channel) -> None:
    with gate:
        told = gate.receive()
    _unlink(entry)
    if told:
        raise _failure(entry, told)


def _failure(entry: Entry, told: bytes) -> StepError:
    index, errno = (int.from_bytes(told[at : at + 4], "little", signed=True) for at in (0, 4))
    first, names = entry.record.get("steps", [0, []])
    name, target = names[index - first] if 0 <= index - first < len(names) else ("start", "")
    if name == "execve":
        return StepError("exec", errno, f'"{target}"')
    return StepError(name, errno, target)


def _unlink(entry: Entry) -> None:
    try:
        os.unlink(store.GATE, dir_fd=entry.fd)
    except FileNotFoundError:
        return
