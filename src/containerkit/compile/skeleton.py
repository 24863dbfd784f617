"""The directories that a root filesystem is assembled on, and id maps."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from containerkit._native import constants as k
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot

if TYPE_CHECKING:
    from containerkit._linux import hostroot

__all__ = ["LOWERS", "STAGING_ROOT", "skeleton", "write_map"]

STAGING_ROOT: Final = Slot("staging root")


LOWERS: Final = 64
"""The number of prepared directories for the layers of overlays. More are made if needed."""


def write_map(pid: Slot, name: str, content: bytes) -> list[Operation]:
    """Return the operations that write one id map. Its text is the block ``name``."""
    at = Slot("map")
    hint = "the ids must be the caller's own, or it must be privileged"
    return [
        calls.open_of_process(pid, name, k.O_WRONLY, at),
        calls.call("write", at, Block(content, name=name), len(content), target=name, hint=hint),
        calls.close(at),
    ]


def skeleton(root: hostroot.HostRoot, directory: Slot = STAGING_ROOT, below: str = "host/") -> list[Operation]:
    """Return the operations that make the skeleton of ``RootFS.host()`` in a directory, or below it."""
    at = Slot("file")
    steps: list[Operation] = []
    for path, mode in root.directories:
        steps.append(calls.make_directory(directory, os.fsencode(f"{below}{path}"), mode))
    for path, content in root.links:
        steps.append(calls.make_symlink(directory, os.fsencode(f"{below}{path}"), os.fsencode(content)))
    for path, mode, data in root.files:
        flags = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
        name = os.fsencode(f"{below}{path}")
        steps.append(calls.call("openat", directory, name, flags, mode, target=path, result=at))
        if data:
            steps.append(calls.write(at, data, path))
        steps.append(calls.close(at))
    return steps
