"""The operations that make a mount: clone its source outside, set its attributes, attach it inside."""

from __future__ import annotations

import os
from errno import EACCES, EEXIST, ELOOP, ENOENT, ENOTDIR, EPERM, EROFS

from containerkit import _native
from containerkit._linux.tmpfs import inodes_for
from containerkit._native import constants as k
from containerkit._native.names import PROPAGATION
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.spec.mount import Mount

__all__ = ["attach", "keep", "make_file", "make_filesystem", "open_source", "resolve", "set_attributes"]


_KIND_HINT: Final = "a file can only be mounted on a file, a directory on a directory"


_IDMAP_HINT: Final = "the filesystem can't be id-mapped: pass idmap=False, or namespaces=Namespaces(user='host')"


_SYMLINK_HINT: Final = "it must be a directory in the root filesystem; masks would follow a symlink"


_F_DUPFD_CLOEXEC: Final = 1030


_MISSING_HINT: Final = "the target can't be created: the root filesystem is read-only or belongs to unmapped ids"


_FULL_HINT: Final = "no file can be created in {0}: choose another target, or first mount a writable directory on {0}"


_FULL: Final = ("/proc", "/sys")
"""Directories in which no file can be created."""


def open_source(mount: Mount, tree: Slot) -> list[Operation]:
    """Return the operations, outside, that clone the source of a bind into a detached tree."""
    hint = "the source of a bind must exist"
    return [calls.open_tree(k.AT_FDCWD, os.fsencode(mount.source), tree, recursive=mount.recursive, hint=hint)]


def set_attributes(mount: Mount, tree: Slot, userns: Slot | None) -> list[Operation]:
    """Return the operations, by the owner of the mount, that set a detached bind's attributes and id map."""
    clear = k.MOUNT_ATTR__ATIME if mount.noatime else 0
    steps = [
        calls.mount_setattr(
            tree,
            set_flags=mount.attributes,
            clear_flags=clear,
            propagation_flags=PROPAGATION[mount.propagation],
            recursive=mount.recursive,
            target=mount.source,
        )
    ]
    if userns is not None:
        steps.append(
            calls.mount_setattr(
                tree, userns=userns, recursive=mount.recursive, target=f"id map of {mount.source}", hint=_IDMAP_HINT
            )
        )
    return steps


def make_filesystem(mount: Mount, tree: Slot) -> list[Operation]:
    """Return the operations, inside, that make the filesystem of a mount other than a bind or a file."""
    options: dict[str, str | None] = dict(mount.options)
    if mount.type == "tmpfs" and options.get("size") and "nr_inodes" not in options:
        options["nr_inodes"] = inodes_for(options["size"] or "")
    if mount.source and mount.source != mount.type:
        options["source"] = mount.source
    steps = calls.new_mount(mount.type, options, tree, attributes=mount.attributes)
    if mount.propagation != "private":
        steps.append(calls.mount_setattr(tree, propagation_flags=PROPAGATION[mount.propagation], target=mount.target))
    return steps


def make_file(mount: Mount, tree: Slot, number: int, count: int) -> list[Operation]:
    """Return the operations that make a file, and a detached mount of only that file.

    All files of a container are in one filesystem, because the kernel takes longer to make one than to make a file.

    Args:
        mount: the file.
        tree: the slot of the mount.
        number: the position among the files, from 0. The first one makes the filesystem, the last one closes it.
        count: the number of files.
    """
    memory, at, name = Slot("memory"), Slot("file"), b"%d" % number
    flags = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
    first = calls.new_mount("tmpfs", {"mode": "755", "nr_inodes": str(1 + count)}, memory)
    return [
        *(first if number == 0 else ()),
        calls.call("openat", memory, name, flags, 0o644, target=mount.target, result=at),
        calls.write(at, mount.content.encode(errors="surrogateescape"), mount.target),
        calls.close(at),
        calls.open_tree(memory, name, tree, target=mount.target),
        calls.mount_setattr(tree, set_flags=mount.attributes, target=mount.target),
        *((calls.close(memory),) if number == count - 1 else ()),
    ]


def attach(
    tree: Slot,
    root: Slot,
    target: str,
    *,
    directory: bool,
    create: bool = True,
    kept: Slot | None = None,
    prefix: str = "",
    optional: bool = False,
    itself: bool = False,
) -> list[Operation]:
    """Return the operations that attach a detached tree below ``root``, and create its target if it is missing.

    Args:
        tree: the tree.
        root, target: where to attach it.
        directory: whether it is a directory.
        create: whether to create a missing target.
        kept: a slot that keeps the tree's descriptor, so that its content can be found after the target was renamed.
            It is used for kernel filesystems, whose target must not be a symlink.
        prefix: the path of ``root``, for messages.
        optional: whether to skip the mount if the target is missing and can't be created.
        itself: whether to cover a target that is a symlink, even a dangling one, instead of following it.
    """
    at = Slot("target")
    symlinks = kept is None
    found = resolve(
        root, target, at, directory=directory, create=create, symlinks=symlinks, prefix=prefix, itself=itself
    )
    steps = [
        *(map(_optional_step, found) if optional else found),
        calls.move_mount(tree, at, b"", target=prefix + target, hint=_KIND_HINT),
        calls.close(at),
    ]
    if kept is None:
        return [*steps, calls.close(tree)]
    if kept == tree:
        return steps
    return [*steps, *keep(tree, kept, target)]


def keep(tree: Slot, kept: Slot, target: str) -> list[Operation]:
    """Return the operations that move a descriptor to another slot, above the numbers that commands may get."""
    high = calls.call("fcntl", tree, _F_DUPFD_CLOEXEC, _native.LOWEST, target=target, result=kept)
    return [high, calls.close(tree)]


def _optional_step(step: Operation) -> Operation:
    """Make a step of :func:`resolve` optional: if a path is missing and can't be created, skip the dependent steps.

    After opening a directory these are two steps: create a name in it, close it. After opening the target
    they are: use it, close it.
    """
    if step.name == "openat2":
        return step._replace(tolerate=(ENOENT, ENOTDIR, ELOOP), skip=2)
    if step.name in ("mkdirat", "mknodat"):
        return step._replace(tolerate=(EEXIST, EROFS, EACCES, EPERM))
    return step


def resolve(
    root: Slot,
    target: str,
    result: Slot,
    *,
    directory: bool,
    create: bool = True,
    symlinks: bool = True,
    prefix: str = "",
    itself: bool = False,
) -> list[Operation]:
    """Return the operations that open ``target`` below ``root`` without leaving it, and create it if it is missing.

    Without ``symlinks`` no component may be a symlink. With ``itself`` the target may be one, which is opened and not
    followed.
    """
    parts = target.strip("/").split("/")
    steps: list[Operation] = []
    for depth, part in enumerate(parts if create else (), start=1):
        parent = os.fsencode("/".join(parts[: depth - 1]))
        below = f"{prefix}/" + "/".join(parts[:depth])
        if parent:
            steps.append(calls.open_inside(root, parent, k.O_PATH | k.O_DIRECTORY, result))
        at = result if parent else root
        full = next((place for place in _FULL if below.startswith(f"{place}/")), None)
        hint = _MISSING_HINT if full is None else _FULL_HINT.format(full)
        if depth < len(parts) or directory:
            steps.append(calls.make_directory(at, os.fsencode(part), target=below, hint=hint))
        else:
            steps.append(calls.make_node(at, os.fsencode(part), 0o100644, target=below, hint=hint))
        if parent:
            steps.append(calls.close(result))
    flags = k.O_PATH | (k.O_DIRECTORY if directory else 0) | (k.O_NOFOLLOW if itself else 0)
    how, hint = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS, ""
    if not symlinks:
        how, hint = how | k.RESOLVE_NO_SYMLINKS, _SYMLINK_HINT
    path = os.fsencode("/".join(parts))
    found = calls.open_inside(root, path, flags, result, resolve=how, target=prefix + target, hint=hint)
    return [*steps, found]
