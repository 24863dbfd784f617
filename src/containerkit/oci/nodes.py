"""Device nodes that the runtime makes, for a container in whose user namespace none can be made.

They have the mode and the owner that the configuration gives. The host's own file at the path is not changed.
"""

from __future__ import annotations

import os
from errno import EPERM

from containerkit._native import constants as k
from containerkit.oci import kernel
from containerkit.oci.devices import mode_of, number_of
from containerkit.oci.errors import ConfigError, StepError
from containerkit.oci.tape import Tape
from containerkit.oci.users import outside, outside_group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.tape import Slot

__all__ = ["make"]


def make(config: Config) -> dict[str, int]:
    """Make the nodes of ``linux.devices``, and return a detached mount of each by its path.

    A process in its own mount namespace makes them on a filesystem that no other process sees. It shares the runtime's
    descriptors, so the runtime has the mounts after the process ends.

    Returns:
        Nothing if a filter or a device rule does not let the runtime make nodes (EPERM).

    Raises:
        ConfigError: the owner of a device is not mapped in the user namespace.
        StepError: it failed otherwise.

    Source: mknod(2), open_tree(2), CLONE_FILES in clone(2).
    """
    tape = Tape()
    tape.call("unshare", k.CLONE_NEWNS, target="mount namespace for device nodes")
    tape.call("umask", 0)
    tape.call("mount", b"none", b"/", 0, k.MS_PRIVATE | k.MS_REC, 0, target="keep mounts from the host")
    made = _new_filesystem(tape)
    clones: dict[str, Slot] = {}
    for number, device in enumerate(config.linux.devices):
        path, name = os.path.normpath(device.path), b"%d" % number
        owner = outside(config, device.uid), outside_group(config, device.gid)
        if min(owner) < 0:
            raise ConfigError("linux.devices", f"{device.path}: its owner is not mapped in the user namespace")
        clones[path] = slot = tape.slot(f"node {path}")
        tape.call("mknodat", made, name, mode_of(device), number_of(device), target=path)
        tape.call("fchownat", made, name, *owner, k.AT_SYMLINK_NOFOLLOW, target=path)
        tape.call("open_tree", made, name, k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC, target=path, result=slot)
    tape.step(k.STEP_CLOSE, "close", made)
    tape.step(k.STEP_LEAVE, "leave")
    try:
        _, _, slots = kernel.spawn(tape, share_files=True, no_process=True)
    except StepError as error:
        if error.errno == EPERM:  # descriptors opened until then are closed when the runtime ends
            return {}
        raise
    return {path: slots[slot.number] for path, slot in clones.items()}


def _new_filesystem(tape: Tape) -> Slot:
    """Add the steps that mount a tmpfs over the root of the process. Nodes on it can be cloned."""
    context, made = tape.slot("fsopen"), tape.slot("made")
    target = "tmpfs for device nodes"
    tape.call("fsopen", b"tmpfs", k.FSOPEN_CLOEXEC, target=target, result=context)
    tape.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0, target=target)
    attributes = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NOEXEC
    tape.call("fsmount", context, k.FSMOUNT_CLOEXEC, attributes, target=target, result=made)
    tape.step(k.STEP_CLOSE, "close", context)
    tape.call("move_mount", made, b"", k.AT_FDCWD, b"/", k.MOVE_MOUNT_F_EMPTY_PATH, target=target)
    return made
