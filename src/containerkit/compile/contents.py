"""The operations that mount inside the root.

Kernel filesystems, volumes, described mounts, masked and read-only paths.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT

from containerkit._native import constants as k
from containerkit.compile import dev, mounts
from containerkit.compile.facts import FILES, KERNEL_FS, ROOT, TTY_GROUP, bind_slot
from containerkit.compile.namespaces import network_inside
from containerkit.compile.root import memory_options
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.security.paths import attach_mask, clone_mask, make_readonly, mask, may_exist

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.compile.facts import Start
    from containerkit.spec.mount import Mount
    from containerkit.spec.rootfs import Volume

_OF_THE_KERNEL: Final = frozenset({"/dev", "/proc", "/sys"})
_SYS: Final = Slot("sys")


def standard_mounts(start: Start) -> list[Operation]:
    """Mount the filesystems that every container has.

    Source: OCI runtime-spec, config-linux.md, default filesystems.
    """
    covered = {mount.target for mount in start.spec.mounts}
    steps: list[Operation] = []
    if "/proc" not in covered:
        if start.is_new("pid"):
            steps += calls.new_mount("proc", {}, Slot("proc"), attributes=KERNEL_FS)
        steps += sysctl_writes(start)
        steps += mounts.attach(Slot("proc"), ROOT, "/proc", directory=True, kept=Slot("proc"))
    if "/dev" not in covered:
        steps += dev.attach(start.spec)
        devices = start.spec.device_mounts(TTY_GROUP if start.host.terminals else None)
        steps += [step for mount in devices if mount.target not in covered for step in made(mount)]
    return steps


def sys_mount(start: Start) -> list[Operation]:
    """Join the network namespace, unless that is done, and mount its /sys."""
    steps = [] if _sets_network(start) else network_inside(start)
    if any(mount.target == "/sys" for mount in start.spec.mounts):
        return steps
    if start.is_new("network") and not start.network_beside:
        steps += calls.new_mount("sysfs", {}, _SYS, attributes=KERNEL_FS | k.MOUNT_ATTR_RDONLY)
    return [*steps, *mounts.attach(_SYS, ROOT, "/sys", directory=True, kept=_SYS)]


def mounts_sys_last(start: Start) -> bool:
    """Return whether /sys can be attached last, when its network namespace probably exists.

    No other mount may be below /sys, even through a symlink.
    """
    spec = start.spec
    paths = (*spec.readonly_paths, *spec.masked_paths)
    leads = bool(spec.mounts or spec.rootfs.volumes or dict(spec.rootfs.defaults).get("cwd"))
    return start.network_beside and not leads and all(_below(path)[0] != ROOT for path in paths)


def made(mount: Mount) -> list[Operation]:
    """Return the operations that make a filesystem and attach it."""
    tree = Slot("tree")
    return [*mounts.make_filesystem(mount, tree), *attached(mount, tree, directory=True)]


def attached(mount: Mount, tree: Slot, *, directory: bool) -> list[Operation]:
    """Return the operations that attach a detached tree at the target of a described mount.

    If it covers a kernel filesystem, later masks use this descriptor, not the path.
    """
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
        # An image's /etc/resolv.conf may be a symlink to the file of a daemon that does not run here.
        itself=mount.type == "file",
    )


def own_mounts(start: Start) -> list[Operation]:
    """Return the operations that make the described mounts, in their order."""
    steps: list[Operation] = []
    binds = files = 0
    tree = Slot("tree")
    count = sum(mount.type == "file" for mount in start.spec.mounts)
    for mount in start.spec.mounts:
        if mount.type == "bind":
            steps += attached(mount, bind_slot(binds), directory=start.host.directories[binds])
            binds += 1
        elif mount.type == "file":
            steps += [*mounts.make_file(mount, tree, files, count), *attached(mount, tree, directory=False)]
            files += 1
        else:
            steps += made(mount)
    return steps


def volumes(start: Start) -> list[Operation]:
    """Make the volumes of the image, except where the description has a mount.

    A volume with content in the image is a union of that content and memory, so files are copied only when written.
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
    # This covers the upper layer of the root, which is already part of the union.
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
    """Make the default working directory if it is missing in the image.

    Source: OCI image specification, config.md, "WorkingDir".
    """
    path = os.path.normpath(f"/{dict(start.spec.rootfs.defaults).get('cwd', '')}").strip("/")
    if not path:
        return []
    hint = "the image's working directory can't be created"
    found = Slot("working directory")
    making = [calls.call("umask", 0o022), *mounts.resolve(ROOT, path, found, directory=True)]
    look = calls.open_inside(
        ROOT, os.fsencode(path), k.O_PATH | k.O_DIRECTORY, found, target=f"/{path}", hint=hint, tolerate=(ENOENT,)
    )
    return [look._replace(leap=len(making)), *making, calls.close(found)]


def covered_paths(start: Start) -> list[Operation]:
    """Hide the masked paths, and make the read-only paths read-only. Source: OCI runtime-spec, config-linux.md.

    Paths in kernel filesystems are looked up by the descriptors of these. A process that can write to the root may
    have renamed the mount points.
    """
    steps: list[Operation] = []
    for cover, paths in ((make_readonly, start.spec.readonly_paths), (mask, start.spec.masked_paths)):
        for path in filter(may_exist, paths):
            root, below = _below(path)
            if root != _SYS or not mounts_sys_last(start):
                steps += cover(root, below, path)
    if mounts_sys_last(start):
        covers = [clone_mask(path) for path in _masked_in_sys(start)]
        return [*steps, *covers, calls.close(Slot("dev")), calls.close(Slot("proc"))]
    return [*steps, *[calls.close(Slot(path[1:])) for path in sorted(_OF_THE_KERNEL)]]


def last_mounts(start: Start) -> list[Operation]:
    """Mount /sys and its masks, after the staging is unmounted."""
    if not mounts_sys_last(start):
        return []
    steps = sys_mount(start)
    for path in filter(may_exist, start.spec.readonly_paths):
        if _below(path)[0] == _SYS:
            steps += make_readonly(_SYS, _below(path)[1], path)
    for path in _masked_in_sys(start):
        steps += attach_mask(_SYS, _below(path)[1], path)
    return [*steps, calls.close(_SYS)]


def _masked_in_sys(start: Start) -> list[str]:
    return [path for path in start.spec.masked_paths if may_exist(path) and _below(path)[0] == _SYS]


def sysctl_writes(start: Start) -> list[Operation]:
    """Write kernel parameters through the container's own procfs, before anything can be mounted over it."""
    at = Slot("sysctl")
    steps = network_inside(start) if _sets_network(start) else []
    wanted = dict(start.spec.sysctls)
    if start.is_new("user") and not start.spec.nested_userns:
        wanted.setdefault("user.max_user_namespaces", "0")
    for name, value in wanted.items():
        path = ("sys/" + name.replace(".", "/")).encode()
        hint = "the kernel does not know it, or a container may not set it"
        steps += [
            calls.open_inside(Slot("proc"), path, k.O_WRONLY, at, target=f"sysctl {name}", hint=hint),
            calls.write(at, value.encode(), f"sysctl {name}={value}", hint),
            calls.close(at),
        ]
    return steps


def _sets_network(start: Start) -> bool:
    """Return whether a kernel parameter of the network namespace is set through the container's procfs."""
    is_own = all(mount.target != "/proc" for mount in start.spec.mounts)
    return is_own and any(name.startswith("net.") for name, _ in start.spec.sysctls)


def _below(path: str) -> tuple[Slot, str]:
    """Return the directory in which a path is looked up, and its name there."""
    top, _, rest = path[1:].partition("/")
    return (Slot(top), f"/{rest}") if rest and f"/{top}" in _OF_THE_KERNEL else (ROOT, path)
