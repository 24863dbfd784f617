"""The directories on which a root filesystem is assembled, and id maps."""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.plan import calls, entries
from containerkit.plan.operation import Block, Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit._linux import hostroot

__all__ = ["LOWERS", "STAGING_ROOT", "skeleton", "staged_skeleton", "write_map"]

STAGING_ROOT: Final = Slot("staging root")


LOWERS: Final = 64
"""The number of prepared directories for the layers of overlays. More are made if needed."""


def write_map(pid: Slot, name: str, content: bytes) -> list[Operation]:
    """Return the operations that write one id map. Its text is the block ``name``."""
    at = Slot("map")
    hint = "an unprivileged caller can only map its own ids"
    return [
        calls.open_of_process(pid, name, k.O_WRONLY, at),
        calls.call("write", at, Block(content, name=name), len(content), target=name, hint=hint),
        calls.close(at),
    ]


def skeleton(root: hostroot.HostRoot, directory: Slot) -> list[Operation]:
    """Return the operations that make the skeleton of ``RootFS.host()`` in a directory."""
    made = [entries.directory(os.fsencode(path), mode) for path, mode in root.directories]
    made += [entries.symlink(os.fsencode(path), os.fsencode(content)) for path, content in root.links]
    made += [entries.file(os.fsencode(path), mode, data) for path, mode, data in root.files]
    copied = [entries.populate(directory, [root.packed], "copies of the host's files")] if root.packed else []
    return [entries.populate(directory, made, "the host's root"), *copied]


def staged_skeleton(root: hostroot.HostRoot) -> list[Operation]:
    """Return the operations that make the skeleton in its directory of the staging."""
    at = Slot("host")
    opened = calls.open_at(STAGING_ROOT, b"host", k.O_PATH | k.O_DIRECTORY | k.O_NOFOLLOW, at)
    return [opened, *skeleton(root, at), calls.close(at)]
