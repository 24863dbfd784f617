"""``run``: create, start, wait and delete in one call."""

from __future__ import annotations

import os

from containerkit.oci import foreground, store
from containerkit.oci.create import prepare
from containerkit.oci.delete import destroy
from containerkit.oci.start import start_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.creation import Creation
    from containerkit.oci.main import Call

__all__ = ["attend", "run"]


def run(call: Call) -> int:
    """Run a container and exit with its status. With ``--detach`` the call returns once it runs."""
    detached = call.flags.has("detach")
    foreground.interruptible()
    creation = prepare(call, foreground=not detached)
    creation.make()
    return attend(creation, detached=detached, keep=call.flags.has("keep"))


def attend(creation: Creation, *, detached: bool, keep: bool) -> int:
    """Start a created container, and wait for its end unless it is detached.

    Args:
        creation: the container; its entry is locked.
        detached: return once it runs.
        keep: leave the record of the stopped container.
    """
    if not detached:
        foreground.forward(creation.pidfd)
    try:
        listener = start_entry(creation.entry, creation.call.journal)
    except BaseException:
        creation.abandon()
        raise
    creation.entry.close()
    if detached:
        if listener is not None:
            listener.wait()
        return 0
    status = foreground.follow(creation.pidfd, creation.master, listener)
    os.close(creation.pidfd)
    if not keep:
        with store.open_entry(creation.call.root, creation.call.name, lock=True) as entry:
            destroy(entry)
    return status
