"""The runtime's records as the library reads them: with the library's errors and a pidfd of the process."""

from __future__ import annotations

import os

from containerkit.errors import SetupError, StateError
from containerkit.oci import store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.oci.store import Entry

__all__ = ["Record", "find", "states"]


class Record:
    """A recorded container whose first process was alive when the record was read. Owns the directory's descriptor.

    Attributes:
        id: the container's.
        root: the directory of the records.
        pid: the first process.
        pidfd: a descriptor of it, the caller's to close.
        groups: the directories of its control groups.
        rootfs: the host's path of the directory that the container sees as ``/``.
    """

    __slots__ = ("_entry", "groups", "id", "pid", "pidfd", "root", "rootfs")

    def __init__(self, entry: Entry, root: str, pidfd: int) -> None:
        self._entry = entry
        self.id = entry.id
        self.root = root
        self.pid = entry.pid
        self.pidfd = pidfd
        self.groups: list[str] = entry.record.get("groups", [])
        self.rootfs: str = entry.record.get("rootfs", "")

    def __repr__(self) -> str:
        return f"<Record {self.id} pid {self.pid}>"

    def status(self) -> str:
        """Return ``created``, ``running``, ``paused`` or ``stopped``, as it is now."""
        return self._entry.status()

    def close(self) -> None:
        """Close the directory. May be called twice."""
        self._entry.close()


def find(name: str, root: str | None = None) -> Record:
    """Return the record of a container that runs or waits for ``start``.

    Args:
        name: its id.
        root: the directory of the records (default: the runtime's, without ``--root``).

    Raises:
        StateError: it is not recorded, is being created, or has stopped.
    """
    try:
        root = store.default_root() if root is None else root
        entry = store.open_entry(root, name)
    except RuntimeFailure as failure:
        advice = "" if root is None else f": 'containerkit ps --all --root {root}' lists the containers"
        raise StateError(f"{failure}{advice}") from None
    try:
        return Record(entry, root, _hold(entry))
    except BaseException:
        entry.close()
        raise


def _hold(entry: Entry) -> int:
    """Return a pidfd of the first process. The pid may have been reused, so the process is checked again."""
    status = entry.status()
    if status == "creating":
        raise StateError(f"container {entry.id!r} is being created")
    stopped = StateError(f"container {entry.id!r} has stopped: 'containerkit-oci delete {entry.id}' removes it")
    if status == "stopped":
        raise stopped
    try:
        pidfd = os.pidfd_open(entry.pid)
    except ProcessLookupError:
        raise stopped from None
    if not entry.is_running():
        os.close(pidfd)
        raise stopped
    return pidfd


def states(root: str | None = None) -> list[dict[str, Any]]:
    """Return the state of each recorded container, as the specification defines it.

    Raises:
        StateError: the directory of the records is not known.
        SetupError: the caller may not read the directory.
    """
    try:
        root = store.default_root() if root is None else root
        return store.states(root)
    except RuntimeFailure as failure:
        raise StateError(str(failure)) from None
    except OSError as error:
        hint = "--root must name a directory that the OCI command made, run by the same user"
        raise SetupError("open", error.errno or 0, str(root), hint) from None
