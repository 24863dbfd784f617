"""The plan that starts CRIU for a restore, and prepares the mounts that the images don't contain.

CRIU runs in its own mount namespace. There every source of the host that the container uses is mounted below one
directory, :data:`PLACE`, with the attributes and id maps of any start. All of it is gone when CRIU has ended. Each
mount has no mounts below it: they would be locked for root of the container, which then could not clone it again
(mount_namespaces(7)).

CRIU is in the container's control groups and in its own cgroup namespace, so everything that it makes is too.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOSYS
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._native import constants as k
from containerkit.checkpoint.refusals import DEV, IMAGES, MASKED, ROOT, SYS, bind_place
from containerkit.compile import mounts, process
from containerkit.compile.root import overlay_option
from containerkit.compile.skeleton import write_map
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.tape import Plan
from containerkit.spec.idmap import mapping_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.compile.joining import Joining
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS
    from containerkit.start.staging import Mappings

__all__ = ["CHECKPOINT", "HOME", "PLACE", "criu_plan"]

PLACE: Final = "/run/containerkit"
"""The path of that directory. It is mounted over an existing directory that root of a container can reach."""

HOME, CHECKPOINT = "home", "checkpoint"
"""The slots of the caller's mount namespace and of the directory of the checkpoint."""

_SECBIT_NO_SETUID_FIXUP: Final = 4
_LOWER, _UPPER = "lower", "upper"
_PID, _USERNS, _PLACE = Slot("pid"), Slot("userns"), Slot("place")


def criu_plan(spec: Spec, mappings: Mappings, command: Command, *, replaced: Mapping[str, str], joins: Joining) -> Plan:
    """Return the plan.

    Inputs (slots): ``staging``, ``home``, ``checkpoint``, ``image``, ``caller's proc``; ``stdin``, ``stdout``,
    ``stderr``; those of the control groups.

    Args:
        spec: the container.
        mappings: the ids of its user namespace.
        command: the command of CRIU.
        replaced: names of images, and the paths of the files to read instead.
        joins: how CRIU joins the control groups.
    """
    userns = _USERNS if spec.namespaces.user == "new" else None
    unshares = spec.namespaces.cgroup == "new"
    return Plan(
        (
            calls.call("umask", 0o022),
            *joins.outside(),
            *(_map_ids(mappings) if userns else ()),
            *_root(spec, userns),
            *_binds(spec, userns),
            *_images(replaced),
            *_shared(userns),
            *((calls.release(), calls.call("wait4", _PID, 0, k.WALL, 0, target="user namespace")) if userns else ()),
            calls.unshare(k.CLONE_NEWNS, "mount namespace"),
            calls.propagation(b"/", k.MS_REC | k.MS_SLAVE),
            *_attach(spec, mappings, replaced),
            calls.call("keyctl", k.KEYCTL_JOIN_SESSION_KEYRING, 0, target="own session keyring", tolerate=(ENOSYS,)),
            *process.session(command),
            calls.enter(Slot("image"), process.passed(command)),
            *joins.inside(),
            *((calls.unshare(k.CLONE_NEWCGROUP, "cgroup namespace"),) if unshares else ()),
            calls.reset_signals(),
            *process.execute(command),
            *((calls.await_release("mapped"), calls.leave()) if userns else ()),
        )
    )


def _map_ids(mappings: Mappings) -> list[Operation]:
    """Make a user namespace with the same ids, for the id maps of mounts. A process keeps it until they are set."""
    return [
        calls.clone(k.CLONE_NEWUSER | k.CLONE_FILES, "mapped", pid=_PID, target="user namespace"),
        *write_map(_PID, "uid_map", mapping_text(mappings[0])),
        *write_map(_PID, "gid_map", mapping_text(mappings[1])),
        calls.open_of_process(_PID, "ns/user", k.O_RDONLY, _USERNS),
    ]


def _root(spec: Spec, userns: Slot | None) -> list[Operation]:
    """Clone the parts of the root: one directory, or the layers of an overlay."""
    rootfs = spec.rootfs
    steps: list[Operation] = []
    for slot, path, readonly in _parts(rootfs):
        flags = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | (k.MOUNT_ATTR_RDONLY if readonly else 0)
        hint = "the root filesystem must exist"
        steps.append(calls.open_tree(k.AT_FDCWD, os.fsencode(path), slot, hint=hint))
        steps.append(calls.mount_setattr(slot, set_flags=flags, target=path))
        if userns is not None and rootfs.idmap:
            steps.append(calls.mount_setattr(slot, userns=userns, target=f"id map of {path}"))
    return steps


def _parts(rootfs: RootFS) -> list[tuple[Slot, str, bool]]:
    """Return the parts of a root: their slots, their paths, and whether each is read-only."""
    if rootfs.kind == "dir":
        return [(Slot(ROOT), rootfs.lowers[0], rootfs.readonly)]
    assert rootfs.upper is not None
    assert rootfs.work is not None
    layers = [(Slot(f"{_LOWER}{number}"), path, True) for number, path in enumerate(rootfs.lowers)]
    return [*layers, (Slot(_UPPER), os.path.commonpath((rootfs.upper, rootfs.work)), False)]


def _overlay(spec: Spec, mappings: Mappings) -> list[Operation]:
    """Mount the union of the layers, which are already attached, at the path of the root.

    Files in the upper layer get the ids of the process that mounts. There the host's root has no id, but root of
    the container has one.
    """
    rootfs = spec.rootfs
    if rootfs.kind == "dir":
        return []
    assert rootfs.upper is not None
    assert rootfs.work is not None
    base = os.path.commonpath((rootfs.upper, rootfs.work))
    upper, work = (overlay_option(f"{_UPPER}/{os.path.relpath(path, base)}") for path in (rootfs.upper, rootfs.work))
    lowers = ":".join(f"{_LOWER}{number}" for number in range(len(rootfs.lowers)))
    options = [f"lowerdir={lowers}", f"upperdir={upper}", f"workdir={work}"]
    if spec.namespaces.user != "host":  # as it was made: see compile/root.py
        options.append("userxattr")
    flags = k.MS_NODEV | k.MS_NOSUID
    data = os.fsencode(",".join(options))
    union = calls.mount(b"overlay", ROOT.encode(), b"overlay", flags, data, target="overlay on /")
    return [
        calls.make_directory(_PLACE, ROOT.encode()),
        calls.call("fchdir", _PLACE, target=PLACE),
        *([union] if spec.namespaces.user == "host" else _as_root_inside(mappings, union)),
        calls.chdir(b"/"),
    ]


def _as_root_inside(mappings: Mappings, operation: Operation) -> list[Operation]:
    """Return an operation that runs as root of the container with all privileges. Source: capabilities(7)."""
    uid, gid = (next(m.outside - m.inside for m in each if m.inside == 0) for each in mappings)
    return [
        calls.prctl("keep capabilities", k.PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP),
        calls.call("setresgid", gid, gid, 0, target=f"gid {gid}"),
        calls.call("setresuid", uid, uid, 0, target=f"uid {uid}"),
        operation,
        calls.call("setresuid", 0, 0, 0, target="uid 0"),
        calls.call("setresgid", 0, 0, 0, target="gid 0"),
        calls.prctl("usual capabilities", k.PR_SET_SECUREBITS, 0),
    ]


def _binds(spec: Spec, userns: Slot | None) -> list[Operation]:
    steps: list[Operation] = []
    for number, bind in enumerate(mount for mount in spec.mounts if mount.type == "bind"):
        tree = Slot(bind_place(number))
        alone = attrs.evolve(bind, recursive=False)
        steps += [*mounts.open_source(alone, tree), *mounts.set_attributes(alone, tree, userns if bind.idmap else None)]
    return steps


def _images(replaced: Mapping[str, str]) -> list[Operation]:
    """Mount the images. CRIU reads them as the host's root and as root of the container; nobody else can reach them."""
    tree = Slot(IMAGES)
    return [
        calls.open_tree(Slot(CHECKPOINT), IMAGES.encode(), tree),
        calls.mount_setattr(tree, set_flags=k.MOUNT_ATTR_RDONLY, target=IMAGES),
        *[calls.open_tree(k.AT_FDCWD, os.fsencode(path), Slot(name)) for name, path in replaced.items()],
    ]


def _shared(userns: Slot | None) -> list[Operation]:
    """Clone the parts of the staging that all containers share."""
    steps = [
        calls.setns(Slot("staging"), k.CLONE_NEWNS, "staging"),
        calls.open_tree(k.AT_FDCWD, b"/dev", Slot(DEV)),
        calls.open_tree(k.AT_FDCWD, b"/masked", Slot(MASKED)),
        calls.open_tree(k.AT_FDCWD, b"/sys", Slot(SYS)),
        calls.setns(Slot(HOME), k.CLONE_NEWNS, "the caller's mounts"),
    ]
    if userns is not None:  # before Linux 6.3 filesystems in memory can't be id-mapped: see compile/root.py
        steps.append(
            calls.mount_setattr(Slot(DEV), userns=userns, target="id map of /dev")._replace(tolerate=(EINVAL,))
        )
    return steps


def _attach(spec: Spec, mappings: Mappings, replaced: Mapping[str, str]) -> list[Operation]:
    """Attach all prepared mounts below :data:`PLACE`."""
    steps = [
        *calls.new_mount("tmpfs", {"mode": "711"}, _PLACE),
        calls.move_mount(_PLACE, k.AT_FDCWD, PLACE.encode()),
    ]
    directories = [*[slot.name for slot, _, _ in _parts(spec.rootfs)], DEV, MASKED, SYS, IMAGES]
    for number, bind in enumerate(mount for mount in spec.mounts if mount.type == "bind"):
        name = bind_place(number)
        if os.path.isdir(bind.source):
            directories.append(name)
        else:
            steps.append(calls.make_node(_PLACE, name.encode(), 0o100600))
            steps.append(calls.move_mount(Slot(name), _PLACE, name.encode(), target=bind.source))
    for name in directories:
        steps.append(calls.make_directory(_PLACE, name.encode()))
        steps.append(calls.move_mount(Slot(name), _PLACE, name.encode(), target=name))
    steps += _overlay(spec, mappings)
    steps += [calls.move_mount(Slot(name), _PLACE, f"{IMAGES}/{name}".encode(), target=name) for name in replaced]
    return steps
