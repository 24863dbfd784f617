"""The operations that assemble the root: clone its parts outside, combine them inside, pivot into it."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, EROFS

from containerkit._linux.hostroot import HOSTNAME, hosts_line
from containerkit._linux.tmpfs import inodes_for
from containerkit._native import constants as k
from containerkit.compile import dev, mounts
from containerkit.compile.facts import FILES, ROOT, SKELETON, UPPER, bind_slot, lower
from containerkit.compile.skeleton import LOWERS, skeleton
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.facts import Start

_DIRECTORY: Final = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC


def clone_trees(start: Start) -> list[Operation]:
    """Clone the directories of the spec while the caller's own mounts are visible."""
    rootfs = start.spec.rootfs
    steps: list[Operation] = []
    for number, path in enumerate(start.lower_paths()):
        hint = "the directories of the root filesystem must exist"
        steps.append(
            calls.open_tree(k.AT_FDCWD, os.fsencode(path), lower(number), recursive=rootfs.kind == "dir", hint=hint)
        )
    if rootfs.upper is not None and not start.by_fuse:
        steps.append(calls.open_tree(k.AT_FDCWD, os.fsencode(start.upper_base()), Slot("disk")))
    for number, bind in enumerate(start.binds):
        node, tree = start.nodes[number], bind_slot(number)
        steps += mounts.open_source(bind, tree) if node is None else dev.make_node(bind, node, tree)
    return steps


def clone_staged(start: Start) -> list[Operation]:
    """Clone the prepared mounts of the staging, and make more directories if there are many layers."""
    steps = [calls.open_tree(k.AT_FDCWD, b"/dev", Slot("dev"), recursive=True)]
    if start.spec.rootfs.kind == "host" and start.host.skeleton is None:
        steps.append(calls.open_tree(k.AT_FDCWD, b"/host", Slot("skeleton"), target="skeleton"))
    if start.names.pid == "host":
        steps.append(calls.open_tree(k.AT_FDCWD, b"/proc", Slot("proc"), recursive=True))
    if start.names.network == "host":
        steps.append(calls.open_tree(k.AT_FDCWD, b"/sys", Slot("sys"), recursive=True))
    more = range(LOWERS, len(start.lower_paths()))
    return [*steps, *[calls.make_directory(k.AT_FDCWD, b"/lower/%d" % number) for number in more]]


def tree_attributes(start: Start, userns: Slot | None) -> list[Operation]:
    """Set the attributes and the id map of each cloned tree while nobody else can see it."""
    rootfs = start.spec.rootfs
    steps: list[Operation] = []
    nosuid = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
    # Lower layers, and the host's directories in a read-only container, are never written to, not even to create mount
    # points.
    shielded = rootfs.readonly or rootfs.kind == "overlay"
    lowest = nosuid | (k.MOUNT_ATTR_RDONLY if shielded else 0)
    own: list[tuple[Slot, int, str]] = [
        (lower(number), lowest, path) for number, path in enumerate(start.lower_paths())
    ]
    if rootfs.kind == "host" and start.host.skeleton is None:
        own.append((Slot("skeleton"), nosuid, SKELETON))
    if rootfs.upper is not None and not start.by_fuse:
        own.append((Slot("disk"), nosuid, rootfs.upper))
    for tree, flags, target in own:
        recursive = rootfs.kind == "dir"
        steps.append(calls.mount_setattr(tree, set_flags=flags, recursive=recursive, target=target))
        if userns is not None and rootfs.idmap and target not in start.host.unmapped:
            hint = "its filesystem can't be id-mapped: pass idmap=False to the RootFS (--no-idmap), or user='host'"
            steps.append(
                calls.mount_setattr(tree, userns=userns, recursive=recursive, target=f"id map of {target}", hint=hint)
            )
    if userns is not None:
        # Linux before 6.3 can't do it. The nodes then belong to nobody, but work in the same way.
        own_dev = calls.mount_setattr(Slot("dev"), userns=userns, target="id map of /dev")
        steps.append(own_dev._replace(tolerate=(EINVAL,)))
    for number, bind in enumerate(start.binds):
        idmap = bind.idmap or start.nodes[number] is not None
        steps += mounts.set_attributes(bind, bind_slot(number), userns if idmap else None)
    return steps


def root(start: Start) -> list[Operation]:
    """Assemble the root on /newroot of the staging."""
    rootfs = start.spec.rootfs
    steps: list[Operation] = []
    for number in range(len(start.lower_paths())):
        if rootfs.kind == "dir":
            steps.append(calls.move_mount(lower(number), k.AT_FDCWD, b"/newroot", target="/"))
        else:
            steps.append(calls.move_mount(lower(number), k.AT_FDCWD, b"/lower/%d" % number, target="layer"))
    if rootfs.kind == "tmpfs":
        steps += calls.new_mount("tmpfs", memory_options(rootfs.size), UPPER, attributes=k.MOUNT_ATTR_NOSUID)
        steps.append(calls.move_mount(UPPER, k.AT_FDCWD, b"/newroot", target="/"))
    if start.by_fuse:
        steps.append(calls.move_mount(Slot("union"), k.AT_FDCWD, b"/newroot", target="/"))
    elif rootfs.kind in ("host", "overlay"):
        steps += overlays(start)
    return [*steps, calls.call("openat", k.AT_FDCWD, b"/newroot", _DIRECTORY, 0, target="/", result=ROOT)]


def own_name(start: Start) -> list[Operation]:
    """Add a hostname other than the default to /etc/hosts inside, so that it resolves."""
    name, at = start.spec.hostname, Slot("hosts")
    if start.spec.rootfs.kind != "host" or not start.is_new("uts") or name is None or name == HOSTNAME:
        return []
    line = hosts_line(name)
    if not line:
        return []
    flags = k.O_WRONLY | os.O_APPEND
    # If the host's file is a symlink, its target may be missing inside, or not writable.
    found = calls.open_inside(ROOT, b"etc/hosts", flags, at, target="/etc/hosts", tolerate=(ENOENT, EROFS))
    return [found._replace(skip=2), calls.write(at, line, "/etc/hosts"), calls.close(at)]


def overlays(start: Start) -> list[Operation]:
    """Return the operations that combine the layers, or the skeleton and the programs."""
    rootfs = start.spec.rootfs
    steps: list[Operation] = []
    if rootfs.upper is not None:
        steps.append(calls.move_mount(Slot("disk"), k.AT_FDCWD, b"/upper", target="upper layer"))
    else:
        steps += calls.new_mount("tmpfs", memory_options(rootfs.size), UPPER, attributes=k.MOUNT_ATTR_NOSUID)
        steps.append(calls.move_mount(UPPER, k.AT_FDCWD, b"/upper", target="upper layer"))
    if rootfs.kind == "overlay":
        # Short names in the directory of the layers, because the options of a mount must fit on one page.
        within, lowers = b"/lower/0", start.names_in_base
        if lowers is None:
            within, lowers = b"/lower", [str(number) for number in range(len(rootfs.lowers))]
        return [*steps, calls.chdir(within), *union(start, "/newroot", lowers, 0)]
    # First the layer of the skeleton, then each directory of programs on its mount point.
    if start.host.skeleton is not None:
        steps += calls.new_mount("tmpfs", {"mode": "755"}, Slot("skeleton"), attributes=FILES)
        steps += skeleton(start.host.skeleton, Slot("skeleton"))
    steps.append(calls.move_mount(Slot("skeleton"), k.AT_FDCWD, b"/host", target=SKELETON))
    steps += union(start, "/newroot", ["/host"], 0)
    for number, name in enumerate(start.host.programs):
        if rootfs.readonly:
            lower, place = f"/lower/{number}".encode(), f"/newroot/{name}".encode()
            steps.append(calls.mount(lower, place, b"", k.MS_BIND | k.MS_REC, target=f"/{name}"))
        else:
            steps += union(start, f"/newroot/{name}", [f"/lower/{number}"], number + 1)
    return steps


def union(start: Start, place: str, lowers: list[str], number: int) -> list[Operation]:
    """Return the operations that mount an overlay of layers on a directory of the staging."""
    rootfs = start.spec.rootfs
    flags = k.MS_NODEV | k.MS_NOSUID
    steps: list[Operation] = []
    options = ["lowerdir=" + ":".join(lowers)]
    if rootfs.upper is not None and rootfs.work is not None:
        base = start.upper_base()
        options += [f"upperdir=/upper/{overlay_option(os.path.relpath(rootfs.upper, base))}"]
        options += [f"workdir=/upper/{overlay_option(os.path.relpath(rootfs.work, base))}"]
    else:
        steps += [calls.make_directory(UPPER, b"%s%d" % (name, number)) for name in (b"u", b"w")]
        options += [f"upperdir=/upper/u{number}", f"workdir=/upper/w{number}", "volatile"]
    if start.names.user != "host":
        options.append("userxattr")
    data = os.fsencode(",".join(options))
    return [*steps, calls.mount(b"overlay", place.encode(), b"overlay", flags, data, target=f"overlay on {place}")]


def pivot() -> list[Operation]:
    """Return the operations that make the assembled root the root."""
    return [
        calls.call("fchdir", ROOT, target="/"),
        calls.pivot_root(),
    ]


def unmount_old_root() -> list[Operation]:
    """Unmount the old root, which covers the new one. The kernel waits a grace period for this."""
    return [calls.unmount(b"."), calls.chdir(b"/")]


def protect(start: Start) -> list[Operation]:
    """Make a root read-only that shall be, when everything is mounted and the old root is unmounted."""
    if not start.spec.rootfs.readonly:
        return []
    return [calls.mount_setattr(k.AT_FDCWD, path=b"/", set_flags=k.MOUNT_ATTR_RDONLY, target="/")]


def memory_options(size: str | None) -> dict[str, str | None]:
    """Return the options of the tmpfs for writes to the root."""
    options: dict[str, str | None] = {"mode": "755"}
    if size is not None:
        options |= {"size": size, "nr_inodes": inodes_for(size)}
    return options


def overlay_option(path: str) -> str:
    """Return a path in the form of an overlay's option. Source: the kernel's fs/overlayfs/params.c, ovl_next_opt()."""
    return path.replace("\\", "\\\\").replace(",", "\\,")
