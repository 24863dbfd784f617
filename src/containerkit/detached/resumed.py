"""The program that a keeper execs when its container has ended: ``again`` restarts it, ``remove`` removes its record.

Descriptor 3 is the record, 4 the logs and 9 the lock of the record; see keeper.c.
"""

from __future__ import annotations

import os
import sys

from containerkit.detached.events import emit
from containerkit.detached.store import KEEPER_LOCK, Entry

__all__ = ["main"]

_RECORD, _LOGS = 3, 4


def main() -> None:
    """Start the container again, or remove its record."""
    for fd in (_RECORD, _LOGS, KEEPER_LOCK):
        os.set_inheritable(fd, False)
    entry = Entry(os.path.basename(os.readlink(f"/proc/self/fd/{_RECORD}")))
    os.close(_RECORD)
    os.close(_LOGS)
    if sys.argv[1] == "remove":
        config = entry.config
        entry.remove(KEEPER_LOCK)
        emit(entry, "destroy", config)
        return
    if os.path.exists(entry.file("stopped")):
        return
    from containerkit.detached.begin import become_keeper

    former = entry.read("run.json") or {}
    become_keeper(entry, -1, restarts=int(former.get("restarts", 0)) + 1, lock=KEEPER_LOCK)


if __name__ == "__main__":
    main()
