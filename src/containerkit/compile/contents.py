"""The operations that fill the root: the kernel's filesystems, volumes, mounts, masked and read-only paths."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Final

from containerkit._native import constants as k
from containerkit.compile import mounts
from containerkit.compile.facts import FILES, KERNEL_FS, ROOT, TTY_GROUP, bind_slot
from containerkit.compile.root import memory_options
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.security.paths import make_readonly, mask, may_exist

if TYPE_CHECKING:
    from containerkit.compile.facts import Start
    from containerkit.spec.mount import Mount
    from containerkit.spec.rootfs import Volume

_OF_THE_KERNEL: Final = frozenset({"/dev", "/proc", "/sys"})


def standard_mounts(start: Start) -> list[Operation]:
    """The filesystems that every container has. Source: OCI runtime-spec, config-linux.md, default filesystems."""
    covered = {mount.target for mount in start.spec.mounts}
    steps: list[Operation] = []
    if "/proc" not in covered:
        if start.is_new("pid"):
            steps += calls.new_mount("proc", {}, Slot("proc"), attributes=KERNEL_FS)
        steps += sysctl_writes(start)
        steps += mounts.attach(Slot("proc"), ROOT, "/proc", directory=True, kept=Slot("proc"))
    if "/sys" not in covered:
        if start.is_new("network"):
            steps += calls.new_mount("sysfs", {}, Slot("sys"), attributes=KERNEL_FS | k.MOUNT_ATTR_RDONLY)
        steps += mounts.attach(Slot("sys"), ROOT, "/sys", directory=True, kept=Slot("sys"))
    if "/dev" not in covered:
        steps += mounts.attach(Slot("dev"), ROOT, "/dev", directory=True, kept=Slot("dev"))
        devices = start.spec.device_mounts(TTY_GROUP if start.host.terminals else None)
        steps += [step for mount in devices if mount.target not in covered for step in made(mount)]
    return steps


def made(mount: Mount) -> list[Operation]:
    """Return the operations that make a filesystem and attach it."""
    tree = Slot("tree")
    return [*mounts.make_filesystem(mount, tree), *attached(mount, tree, directory=mount.type != "file")]


def attached(mount: Mount, tree: Slot, *, directory: bool) -> list[Operation]:
    """Return the operations that attach a detached tree where a mount of the description wants it."""
    """Attach a mount; what it covers of the kernel's is what is covered later, whatever its path leads to then."""
    kept = Slot(mount.target[1:]) if mount.target in _OF_THE_KERNEL else None
    root, target = (ROOT, mount.target) if kept else _below(mount.target)
    prefix = mount.target.removesuffix(target)
    optional = ("optional", None) in mount.options
    return mounts.attach(
        tree,
        root,
        target,
        directory=directory,
        create=mount.create,
        kept=kept,
        prefix=prefix,
        optional=optional,
        # An image's /etc/resolv.conf may lead to what a daemon makes, which does not run here.
        itself=mount.type == "file",
    )


def own_mounts(start: Start) -> list[Operation]:
    """Return the operations that make the mounts of the description, in its order."""
    steps: list[Operation] = []
    number = 0
    for mount in start.spec.mounts:
        if mount.type != "bind":
            steps += made(mount)
            continue
        steps += attached(mount, bind_slot(number), directory=start.host.directories[number])
        number += 1
    return steps


def volumes(start: Start) -> list[Operation]:
    """Give the container its own of each directory that its image says holds data, unless its maker mounts one there.

    One that begins with what the image has is a union of that and memory: nothing is copied before it is written.
    """
    covered = [mount.target.rstrip("/") + "/" for mount in start.spec.mounts]
    steps: list[Operation] = []
    for volume in start.spec.rootfs.volumes:
        if not any(f"{volume.target}/".startswith(target) for target in covered):
            steps += one_volume(start, volume)
    return steps


def one_volume(start: Start, volume: Volume) -> list[Operation]:
    """Return the operations that make one volume."""
    tree, at = Slot("tree"), Slot("volume")
    options = {**memory_options(start.spec.rootfs.size), "mode": f"{volume.mode:o}"}
    steps = calls.new_mount("tmpfs", options, tree, attributes=FILES)
    give = calls.call(
        "fchownat", tree, b"", volume.uid, volume.gid, k.AT_EMPTY_PATH, target=volume.target, tolerate=(EINVAL,)
    )
    if not volume.filled:
        return [*steps, give, *mounts.attach(tree, ROOT, volume.target, directory=True)]
    # Over the upper layer of the root, which has its place in the union already; what lies here is left behind.
    steps.append(calls.move_mount(tree, k.AT_FDCWD, b"/upper", target=volume.target))
    steps += [
        calls.make_directory(tree, b"u", volume.mode),
        give._replace(args=(tree, b"u", volume.uid, volume.gid, 0)),
        calls.make_directory(tree, b"w", 0o700),
        calls.close(tree),
        *mounts.resolve(ROOT, volume.target, at, directory=True),
        calls.call("fchdir", at, target=volume.target),
        calls.close(at),
    ]
    choices = ["lowerdir=.", "upperdir=/upper/u", "workdir=/upper/w", "volatile"]
    if start.names.user != "host":
        choices.append("userxattr")
    hint = "mount something on the volume, or pass volumes=False to the image's rootfs"
    over = calls.mount(
        b"overlay", b".", b"overlay", k.MS_NODEV | k.MS_NOSUID, ",".join(choices).encode(), target=volume.target
    )
    return [*steps, over._replace(hint=hint), calls.chdir(b"/")]


def working_directory(start: Start) -> list[Operation]:
    """Make the directory that commands start in by default when it is missing, as an image may leave it.

    Source: OCI image specification, config.md, "WorkingDir".
    """
    path = os.path.normpath(f"/{dict(start.spec.rootfs.defaults).get('cwd', '')}").strip("/")
    if not path:
        return []
    hint = "the image's working directory can't be made there"
    found = Slot("working directory")
    making = [calls.call("umask", 0o022), *mounts.resolve(ROOT, path, found, directory=True)]
    look = calls.open_inside(
        ROOT, os.fsencode(path), k.O_PATH | k.O_DIRECTORY, found, target=f"/{path}", hint=hint, tolerate=(ENOENT,)
    )
    return [look._replace(leap=len(making)), *making, calls.close(found)]


def covered_paths(start: Start) -> list[Operation]:
    """Hide the masked paths, and make the read-only ones so. Source: OCI runtime-spec, config-linux.md.

    Those of the kernel are looked up in its own file systems: somebody who can write to the root may have renamed
    the directories on which these were mounted.
    """
    steps: list[Operation] = []
    for cover, paths in ((make_readonly, start.spec.readonly_paths), (mask, start.spec.masked_paths)):
        for path in filter(may_exist, paths):
            root, below = _below(path)
            steps += cover(root, below, path)
    return [*steps, *[calls.close(Slot(path[1:])) for path in sorted(_OF_THE_KERNEL)]]


def sysctl_writes(start: Start) -> list[Operation]:
    """Write kernel parameters through the container's own procfs, before anybody can put another in its place."""
    at = Slot("sysctl")
    steps: list[Operation] = []
    wanted = dict(start.spec.sysctls)
    if start.is_new("user") and not start.spec.nested_userns:
        wanted.setdefault("user.max_user_namespaces", "0")
    for name, value in wanted.items():
        path = ("sys/" + name.replace(".", "/")).encode()
        hint = "the kernel does not know it, or does not let a container set it"
        steps += [
            calls.open_inside(Slot("proc"), path, k.O_WRONLY, at, target=f"sysctl {name}", hint=hint),
            calls.write(at, value.encode(), f"sysctl {name}={value}", hint),
            calls.close(at),
        ]
    return steps


def _below(path: str) -> tuple[Slot, str]:
    """Return where a path is looked up, and its name there: the kernel's in its own file systems."""
    top, _, rest = path[1:].partition("/")
    return (Slot(top), f"/{rest}") if rest and f"/{top}" in _OF_THE_KERNEL else (ROOT, path)
