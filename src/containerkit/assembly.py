"""Compiles the description of a container to a plan.

The plan has four stretches, each run where it has to be (the processes are drawn in ``_native/native.h``):

outside  stage 1, among the caller's mounts: clones what is to be shown inside, then joins the staging and whatever else
         is joined, and clones stage 2 into the new namespaces;
owner    stage 1 still, with the caller's rights: id maps, idmapped mounts; then it lets stage 2 go on;
inside   stage 2, root of the container and of nothing else: assembles the root, pivots, leaves the staging behind;
payload  the init, and the command as its first child.
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from struct import pack
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit import _native, plan
from containerkit import mount as mounts
from containerkit._native import constants as k
from containerkit.errors import SpecError, UnsupportedError
from containerkit.mount import Mount
from containerkit.namespace import Kind
from containerkit.payload import NO_CLOCK, NOTHING_TO_JOIN, Clock, Joining, be_root, become, joined_clock
from containerkit.plan import Block, Operation, Plan, Slot
from containerkit.security.confinement import PROC
from containerkit.security.paths import make_readonly, mask, may_exist
from containerkit.staging import LOWERS, skeleton, write_map

if TYPE_CHECKING:
    from containerkit.command import Command
    from containerkit.hostroot import HostRoot
    from containerkit.rootfs import Volume
    from containerkit.spec import Spec

__all__ = ["Host", "Mode", "check_folders", "start_plan", "why_not_held"]

TTY_GROUP: Final = 5
"""The group of terminals. Source: the OCI's runtime-spec, config-linux.md, default filesystems."""
JOIN_PREFIX: Final = "join "
SKELETON: Final = "skeleton"
OWNER_FD, REPORT_FD, UPPER_FD = 3, 4, 5
"""Where init finds the owner's pidfd, the pipe for the command's fate, and keeps the writable layer."""

_PID = Slot("pid")
_ROOT = Slot("root")
_USERNS = Slot("userns")
_UPPER = Slot("upper")
_F_DUPFD_CLOEXEC: Final = 1030
_SIOCSIFFLAGS: Final = 0x8914
_JOINED_IN_STAGE_1: Final = (Kind.CGROUP, Kind.IPC, Kind.UTS, Kind.NETWORK, Kind.PID)
_SYS_HINT: Final = "/sys of a network namespace is mounted by its owner alone"


class Host(NamedTuple):
    """What a plan must know of the caller and of the machine.

    Attributes:
        privileged: whether the caller may make id maps and mounts in its own namespaces.
        programs: the folders that ``RootFS.host()`` shows whole.
        terminals: whether terminals can belong to their group, which the container must map for it.
        folders: for each bind of the description whether its source is a folder.
        sets_groups: whether setgroups(2) is allowed inside.
        joins: how it comes into its control groups.
        skeleton: what is to be made of ``RootFS.host()`` at the start itself, since the one in the staging can't be
            id-mapped; None where it can.
    """

    privileged: bool
    programs: tuple[str, ...] = ()
    terminals: bool = True
    folders: tuple[bool, ...] = ()
    sets_groups: bool = True
    joins: Joining = NOTHING_TO_JOIN
    skeleton: HostRoot | None = None


class Mode(NamedTuple):
    """What becomes of PID 1.

    Attributes:
        init: it is the init; otherwise the command itself.
        command: what is run, or None for a container that waits for ``exec``.
        reads_upper: the writable layer stays within reach of the caller.
        held: the command waits for its words: those that it has here stand for any.
    """

    init: bool = True
    command: Command | None = None
    reads_upper: bool = False
    held: bool = False


def start_plan(spec: Spec, host: Host, mode: Mode) -> Plan:
    """Return the plan of a start.

    Inputs (slots): ``staging``, ``holder``, ``view`` of :class:`containerkit.staging.Staging`; ``owner``, a pidfd of
    the caller, and ``caller's proc``; ``image``, the init; ``report``; ``stdin``, ``stdout``, ``stderr``; ``join KIND``
    for each namespace that is joined; ``cgroup N`` and ``cgroup`` for the groups. Named blocks: ``uid_map`` and
    ``gid_map``.

    Raises:
        SpecError: the description can't be had from where the caller stands.
    """
    return _Start(spec, host, mode).plan()


class _Start:
    def __init__(self, spec: Spec, host: Host, mode: Mode) -> None:
        self.spec = spec
        self.host = host
        self.mode = mode
        self.names = spec.namespaces
        self.binds = [mount for mount in spec.mounts if mount.type == "bind"]
        self.assembles = self.names.mount == "new"
        self.by_fuse = spec.rootfs.kind == "overlay" and spec.rootfs.union == "fuse"
        if not host.privileged and self.names.user == "host":
            raise UnsupportedError("clone", 1, "user namespace 'host'", "only a privileged caller can share its own")

    def plan(self) -> Plan:
        steps = [
            plan.call("umask", 0),
            *self.host.joins.operations(),
            *self.outside(),
            *self.owner(),
            *self.inside(),
            *self.payload(),
        ]
        return Plan(tuple(steps))

    def is_new(self, kind: str) -> bool:
        return bool(getattr(self.names, kind) == "new")

    def is_joined(self, kind: str) -> bool:
        return getattr(self.names, kind) not in ("new", "host")

    @property
    def clones_command(self) -> bool:
        """Whether the command is a child of the init."""
        return self.mode.init and self.mode.command is not None

    # --- outside

    def outside(self) -> list[Operation]:
        steps: list[Operation] = []
        if not self.host.privileged:
            steps += [
                plan.setns(Slot("holder"), k.CLONE_NEWUSER, "holder user namespace"),
                plan.setns(Slot("view"), k.CLONE_NEWNS, "view of the host's mounts"),
            ]
        if self.assembles:
            steps += self.clone_trees()
            steps.append(plan.setns(Slot("staging"), k.CLONE_NEWNS, "staging"))
            steps += self.clone_staged()
        for kind in _JOINED_IN_STAGE_1:
            if self.is_joined(kind.value):
                steps.append(self.join(kind))
        if self.assembles and self.is_joined("network"):
            steps += plan.new_mount(
                "sysfs", {}, Slot("sys"), attributes=_KERNEL_FS | k.MOUNT_ATTR_RDONLY, hint=_SYS_HINT
            )
        if self.is_joined("mount"):
            steps.append(self.join(Kind.MOUNT))
        if self.is_joined("user"):
            # From here on the caller's rights over its mounts are gone: what takes them comes before.
            if self.assembles:
                steps += self.tree_attributes(Slot(JOIN_PREFIX + "user") if self.host.privileged else None)
            steps.append(self.join(Kind.USER))
        flags = k.CLONE_PARENT | k.CLONE_FILES
        for kind in Kind:
            if kind is not Kind.TIME and self.is_new(kind.value):
                flags |= kind.flag
        kinds = ", ".join(kind.value for kind in Kind if flags & kind.flag)
        joins = self.host.joins
        if joins.born:
            flags &= ~k.CLONE_NEWCGROUP  # its root would be the group of the one that clones
        return [*steps, plan.clone(flags, "inside", pid=_PID, group=joins.group, target=f"{kinds} namespaces")]

    def join(self, kind: Kind) -> Operation:
        return plan.setns(Slot(JOIN_PREFIX + kind.value), kind.flag, f"{kind.value} namespace")

    def clone_trees(self) -> list[Operation]:
        """Clone what the description names, while the caller's own mounts are in sight."""
        rootfs = self.spec.rootfs
        steps: list[Operation] = []
        for number, path in enumerate(self.lower_paths()):
            hint = "the folders of the root filesystem must be there"
            steps.append(
                plan.open_tree(k.AT_FDCWD, os.fsencode(path), _lower(number), recursive=rootfs.kind == "dir", hint=hint)
            )
        if rootfs.upper is not None and not self.by_fuse:
            steps.append(plan.open_tree(k.AT_FDCWD, os.fsencode(self.upper_base()), Slot("disk")))
        for number, bind in enumerate(self.binds):
            steps += mounts.open_source(bind, _bind(number))
        return steps

    def lower_paths(self) -> tuple[str, ...]:
        rootfs = self.spec.rootfs
        if self.by_fuse:
            return ()
        return tuple(f"/{name}" for name in self.host.programs) if rootfs.kind == "host" else rootfs.lowers

    def upper_base(self) -> str:
        """The folder that holds upper and work: an overlay wants both on one mount."""
        rootfs = self.spec.rootfs
        assert rootfs.upper is not None
        assert rootfs.work is not None
        return os.path.commonpath((rootfs.upper, rootfs.work))

    def clone_staged(self) -> list[Operation]:
        """Clone what the staging keeps ready, and make room for more layers than it has folders for."""
        steps = [plan.open_tree(k.AT_FDCWD, b"/dev", Slot("dev"), recursive=True)]
        if self.spec.rootfs.kind == "host" and self.host.skeleton is None:
            steps.append(plan.open_tree(k.AT_FDCWD, b"/host", Slot("skeleton"), target="skeleton"))
        if not self.is_new("pid"):
            steps.append(plan.open_tree(k.AT_FDCWD, b"/proc", Slot("proc"), recursive=True))
        if self.names.network == "host":
            steps.append(plan.open_tree(k.AT_FDCWD, b"/sys", Slot("sys"), recursive=True))
        more = range(LOWERS, len(self.lower_paths()))
        return [*steps, *[plan.make_directory(k.AT_FDCWD, b"/lower/%d" % number) for number in more]]

    # --- owner

    def owner(self) -> list[Operation]:
        """Write the id maps; give each tree its attributes, and the id map of the namespace that is theirs now."""
        steps: list[Operation] = []
        userns = None
        if self.is_new("user"):
            if not self.host.sets_groups:
                at = Slot("map")
                steps += [
                    plan.open_of_process(_PID, "setgroups", k.O_WRONLY, at),
                    plan.write(at, b"deny", "setgroups"),
                    plan.close(at),
                ]
            placeholder = bytes(MAP_BYTES)
            steps += write_map(_PID, "uid_map", placeholder) + write_map(_PID, "gid_map", placeholder)
            if self.host.privileged:
                userns = _USERNS
                steps.append(plan.open_of_process(_PID, "ns/user", k.O_RDONLY, userns))
        if self.assembles and not self.is_joined("user"):
            steps += self.tree_attributes(userns)
        return [*steps, plan.release(), plan.leave()]

    def tree_attributes(self, userns: Slot | None) -> list[Operation]:
        rootfs = self.spec.rootfs
        steps: list[Operation] = []
        nosuid = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
        # What lies below a union is never written to, and what a read-only container sees of the host neither: not even
        # to make the places of mounts.
        shielded = rootfs.readonly or rootfs.kind == "overlay"
        lowest = nosuid | (k.MOUNT_ATTR_RDONLY if shielded else 0)
        own: list[tuple[Slot, int, str]] = [
            (_lower(number), lowest, path) for number, path in enumerate(self.lower_paths())
        ]
        if rootfs.kind == "host" and self.host.skeleton is None:
            own.append((Slot("skeleton"), nosuid, SKELETON))
        if rootfs.upper is not None and not self.by_fuse:
            own.append((Slot("disk"), nosuid, rootfs.upper))
        for tree, flags, target in own:
            recursive = rootfs.kind == "dir"
            steps.append(plan.mount_setattr(tree, set_flags=flags, recursive=recursive, target=target))
            if userns is not None and rootfs.idmap:
                hint = "its filesystem can't be id-mapped: pass idmap=False to the RootFS, or namespaces user='host'"
                steps.append(
                    plan.mount_setattr(
                        tree, userns=userns, recursive=recursive, target=f"id map of {target}", hint=hint
                    )
                )
        if userns is not None:
            # Without it, before Linux 6.3, the nodes belong to nobody; what can be done with them is the same.
            own_dev = plan.mount_setattr(Slot("dev"), userns=userns, target="id map of /dev")
            steps.append(own_dev._replace(tolerate=(EINVAL,)))
        for number, bind in enumerate(self.binds):
            steps += mounts.set_attributes(bind, _bind(number), userns)
        return steps

    # --- inside

    def inside(self) -> list[Operation]:
        # What needs no mapped ids is done while stage 1 maps them.
        steps = [*self.identity(), plan.await_release()]
        steps[0] = steps[0]._replace(label="inside")
        if self.host.joins.born and self.is_new("cgroup"):
            steps.append(plan.unshare(k.CLONE_NEWCGROUP, "cgroup namespace"))
        if self.names.user != "host":
            steps += be_root()
        if self.assembles:
            steps += self.root()
            steps += self.standard_mounts()
            steps += self.volumes()
            steps += self.own_mounts()
            steps += self.working_folder()
            steps += self.covered_paths()
            steps += self.pivot()
            if not self.clones_command:
                steps += self.leave_outside()
        return steps

    def root(self) -> list[Operation]:
        """Assemble the root on /newroot of the staging."""
        rootfs = self.spec.rootfs
        steps: list[Operation] = []
        for number in range(len(self.lower_paths())):
            if rootfs.kind == "dir":
                steps.append(plan.move_mount(_lower(number), k.AT_FDCWD, b"/newroot", target="/"))
            else:
                steps.append(plan.move_mount(_lower(number), k.AT_FDCWD, b"/lower/%d" % number, target="layer"))
        if rootfs.kind == "tmpfs":
            steps += plan.new_mount("tmpfs", _memory(rootfs.size), _UPPER, attributes=k.MOUNT_ATTR_NOSUID)
            steps.append(plan.move_mount(_UPPER, k.AT_FDCWD, b"/newroot", target="/"))
        if self.by_fuse:
            steps.append(plan.move_mount(Slot("union"), k.AT_FDCWD, b"/newroot", target="/"))
        elif rootfs.kind in ("host", "overlay"):
            steps += self.overlays()
        return [*steps, plan.call("openat", k.AT_FDCWD, b"/newroot", _FOLDER, 0, target="/", result=_ROOT)]

    def overlays(self) -> list[Operation]:
        rootfs = self.spec.rootfs
        steps: list[Operation] = []
        if rootfs.upper is not None:
            steps.append(plan.move_mount(Slot("disk"), k.AT_FDCWD, b"/upper", target="upper layer"))
        else:
            steps += plan.new_mount("tmpfs", _memory(rootfs.size), _UPPER, attributes=k.MOUNT_ATTR_NOSUID)
            steps.append(plan.move_mount(_UPPER, k.AT_FDCWD, b"/upper", target="upper layer"))
        if rootfs.kind == "overlay":
            # By names in the folder of the layers: the options of a mount fit on one page.
            lowers = [str(number) for number in range(len(rootfs.lowers))]
            return [*steps, plan.chdir(b"/lower"), *self.union("/newroot", lowers, 0)]
        # The skeleton lies below the folders of programs: its layer first, then each of them on its place.
        if self.host.skeleton is not None:
            steps += plan.new_mount("tmpfs", {"mode": "755"}, Slot("skeleton"), attributes=_FILES)
            steps += skeleton(self.host.skeleton, Slot("skeleton"), "")
        steps.append(plan.move_mount(Slot("skeleton"), k.AT_FDCWD, b"/host", target=SKELETON))
        steps += self.union("/newroot", ["/host"], 0)
        for number, name in enumerate(self.host.programs):
            if rootfs.readonly:
                lower, place = f"/lower/{number}".encode(), f"/newroot/{name}".encode()
                steps.append(plan.mount(lower, place, b"", k.MS_BIND | k.MS_REC, target=f"/{name}"))
            else:
                steps += self.union(f"/newroot/{name}", [f"/lower/{number}"], number + 1)
        return steps

    def union(self, place: str, lowers: list[str], number: int) -> list[Operation]:
        rootfs = self.spec.rootfs
        flags = k.MS_NODEV | k.MS_NOSUID
        steps: list[Operation] = []
        options = ["lowerdir=" + ":".join(lowers)]
        if rootfs.upper is not None and rootfs.work is not None:
            base = self.upper_base()
            options += [f"upperdir=/upper/{_option(os.path.relpath(rootfs.upper, base))}"]
            options += [f"workdir=/upper/{_option(os.path.relpath(rootfs.work, base))}"]
        else:
            steps += [plan.make_directory(_UPPER, b"%s%d" % (name, number)) for name in (b"u", b"w")]
            options += [f"upperdir=/upper/u{number}", f"workdir=/upper/w{number}", "volatile"]
        if self.names.user != "host":
            options.append("userxattr")
        data = os.fsencode(",".join(options))
        return [*steps, plan.mount(b"overlay", place.encode(), b"overlay", flags, data, target=f"overlay on {place}")]

    def standard_mounts(self) -> list[Operation]:
        """The filesystems that every container has. Source: OCI runtime-spec, config-linux.md, default filesystems."""
        covered = {mount.target for mount in self.spec.mounts}
        steps: list[Operation] = []
        if "/proc" not in covered:
            if self.is_new("pid"):
                steps += plan.new_mount("proc", {}, Slot("proc"), attributes=_KERNEL_FS)
            steps += self.sysctl_writes()
            steps += mounts.attach(Slot("proc"), _ROOT, "/proc", folder=True)
        if "/sys" not in covered:
            if self.is_new("network"):
                steps += plan.new_mount("sysfs", {}, Slot("sys"), attributes=_KERNEL_FS | k.MOUNT_ATTR_RDONLY)
            steps += mounts.attach(Slot("sys"), _ROOT, "/sys", folder=True)
        if "/dev" not in covered:
            steps += mounts.attach(Slot("dev"), _ROOT, "/dev", folder=True)
            steps += [
                step for mount in self.device_mounts() if mount.target not in covered for step in self.made(mount)
            ]
        return steps

    def device_mounts(self) -> list[Mount]:
        terminals: list[tuple[str, str | None]] = [("ptmxmode", "666"), ("mode", "620")]
        if self.host.terminals:
            terminals.append(("gid", str(TTY_GROUP)))
        mounts_ = [
            Mount(type="devpts", target="/dev/pts", options=tuple(terminals), noexec=True, nodev=False, create=False),
            Mount.tmpfs("/dev/shm", size="64M", noexec=True, create=False),
        ]
        # The queues of an ipc namespace are mounted by its owner alone; without them /dev/mqueue stays an empty folder.
        if self.is_new("ipc") or not self.is_new("user"):
            mounts_.append(Mount(type="mqueue", target="/dev/mqueue", noexec=True, create=False))
        return mounts_

    def made(self, mount: Mount) -> list[Operation]:
        tree = Slot("tree")
        attached = mounts.attach(tree, _ROOT, mount.target, folder=True, create=mount.create)
        return [*mounts.make_filesystem(mount, tree), *attached]

    def own_mounts(self) -> list[Operation]:
        steps: list[Operation] = []
        number = 0
        for mount in self.spec.mounts:
            if mount.type != "bind":
                steps += self.made(mount)
                continue
            folder = self.host.folders[number]
            steps += mounts.attach(_bind(number), _ROOT, mount.target, folder=folder, create=mount.create)
            number += 1
        return steps

    def volumes(self) -> list[Operation]:
        """Give the container its own of each folder that its image says holds data, unless its maker mounts one there.

        One that begins with what the image has is a union of that and memory: nothing is copied before it is written.
        """
        covered = [mount.target.rstrip("/") + "/" for mount in self.spec.mounts]
        steps: list[Operation] = []
        for volume in self.spec.rootfs.volumes:
            if not any(f"{volume.target}/".startswith(target) for target in covered):
                steps += self.volume(volume)
        return steps

    def volume(self, volume: Volume) -> list[Operation]:
        tree, at = Slot("tree"), Slot("volume")
        options = {**_memory(self.spec.rootfs.size), "mode": f"{volume.mode:o}"}
        steps = plan.new_mount("tmpfs", options, tree, attributes=_FILES)
        give = plan.call(
            "fchownat", tree, b"", volume.uid, volume.gid, k.AT_EMPTY_PATH, target=volume.target, tolerate=(EINVAL,)
        )
        if not volume.filled:
            return [*steps, give, *mounts.attach(tree, _ROOT, volume.target, folder=True)]
        # Over the upper layer of the root, which has its place in the union already; what lies here is left behind.
        steps.append(plan.move_mount(tree, k.AT_FDCWD, b"/upper", target=volume.target))
        steps += [
            plan.make_directory(tree, b"u", volume.mode),
            give._replace(args=(tree, b"u", volume.uid, volume.gid, 0)),
            plan.make_directory(tree, b"w", 0o700),
            plan.close(tree),
            *mounts.resolve(_ROOT, volume.target, at, folder=True),
            plan.call("fchdir", at, target=volume.target),
            plan.close(at),
        ]
        choices = ["lowerdir=.", "upperdir=/upper/u", "workdir=/upper/w", "volatile"]
        if self.names.user != "host":
            choices.append("userxattr")
        hint = "mount something on the volume, or pass volumes=False to the image's rootfs"
        over = plan.mount(
            b"overlay", b".", b"overlay", k.MS_NODEV | k.MS_NOSUID, ",".join(choices).encode(), target=volume.target
        )
        return [*steps, over._replace(hint=hint), plan.chdir(b"/")]

    def working_folder(self) -> list[Operation]:
        """Make the folder that commands start in by default when it is missing, as an image may leave it.

        Source: OCI image specification, config.md, "WorkingDir".
        """
        path = os.path.normpath(f"/{dict(self.spec.rootfs.defaults).get('cwd', '')}").strip("/")
        if not path:
            return []
        hint = "the image's working directory can't be made there"
        found = Slot("working folder")
        making = [plan.call("umask", 0o022), *mounts.resolve(_ROOT, path, found, folder=True)]
        look = plan.open_inside(
            _ROOT, os.fsencode(path), k.O_PATH | k.O_DIRECTORY, found, target=f"/{path}", hint=hint, tolerate=(ENOENT,)
        )
        return [look._replace(leap=len(making)), *making, plan.close(found)]

    def covered_paths(self) -> list[Operation]:
        """Hide the masked paths, and make the read-only ones so. Source: OCI runtime-spec, config-linux.md."""
        steps: list[Operation] = []
        for path in self.spec.readonly_paths:
            if may_exist(path):
                steps += make_readonly(_ROOT, path)
        for path in self.spec.masked_paths:
            if may_exist(path):
                steps += mask(_ROOT, path)
        return steps

    def sysctl_writes(self) -> list[Operation]:
        """Write kernel parameters through the container's own procfs, before anybody can put another in its place."""
        at = Slot("sysctl")
        steps: list[Operation] = []
        wanted = dict(self.spec.sysctls)
        if self.is_new("user") and not self.spec.nested_userns:
            wanted.setdefault("user.max_user_namespaces", "0")
        for name, value in wanted.items():
            path = ("sys/" + name.replace(".", "/")).encode()
            hint = "the kernel does not know it, or does not let a container set it"
            steps += [
                plan.open_inside(Slot("proc"), path, k.O_WRONLY, at, target=f"sysctl {name}", hint=hint),
                plan.write(at, value.encode(), f"sysctl {name}={value}", hint),
                plan.close(at),
            ]
        return steps

    def pivot(self) -> list[Operation]:
        return [
            plan.call("fchdir", _ROOT, target="/"),
            plan.pivot_root(),
            plan.close(_ROOT),
        ]

    def leave_outside(self) -> list[Operation]:
        """Take the old root away, which lies on top of the new one: the kernel waits a grace period for it."""
        steps = [plan.unmount(b"."), plan.chdir(b"/")]
        if self.spec.rootfs.readonly:
            steps.append(plan.mount_setattr(k.AT_FDCWD, path=b"/", set_flags=k.MOUNT_ATTR_RDONLY, target="/"))
        return steps

    def identity(self) -> list[Operation]:
        steps: list[Operation] = []
        for call, name in (("sethostname", self.spec.hostname), ("setdomainname", self.spec.domainname)):
            if self.is_new("uts") and name is not None:
                steps.append(plan.call(call, Block(name.encode()), len(name.encode()), target=name))
        if self.is_new("network"):
            steps += _loopback()
        return steps

    # --- payload

    def payload(self) -> list[Operation]:
        command = self.mode.command
        clock = self.clock()
        if command is None:
            return self.become_init(b"stay", clock)
        process = become(
            command,
            sets_groups=self.host.sets_groups,
            clock=clock.adjusted(command),
            dies_with_parent=not self.mode.init,
            gate=plan.PAYLOAD_GATE if self.clones_command and self.assembles else None,
            held=self.mode.held,
        )
        if not self.clones_command:
            return process
        # The command is made into what it shall be while the old root is taken away, and passes the gate after that.
        rest = [*self.leave_outside(), plan.release(plan.PAYLOAD_GATE)] if self.assembles else []
        return [
            plan.clone(0, "command", pid=Slot("command"), target="command"),
            *rest,
            *self.become_init(b"run", NO_CLOCK),
            process[0]._replace(label="command"),
            *process[1:],
        ]

    def become_init(self, mode: bytes, clock: Clock) -> list[Operation]:
        """Keep what init needs and nothing else, and become it."""
        steps = [plan.call("setsid", tolerate=(1,))]
        if self.mode.reads_upper and self.spec.rootfs.in_memory:
            # It may lie where the owner's pidfd goes; the caller's own descriptors lie high.
            steps.append(
                plan.call("fcntl", _UPPER, _F_DUPFD_CLOEXEC, _native.LOWEST, target="upper layer", result=_UPPER)
            )
        steps.append(plan.call("dup3", Slot("owner"), OWNER_FD, 0, target="owner"))
        first = REPORT_FD
        if mode == b"run":
            steps.append(plan.call("dup3", Slot("report"), REPORT_FD, 0, target="report"))
            first = UPPER_FD
        elif self.mode.reads_upper and self.spec.rootfs.in_memory:
            steps.append(plan.call("dup3", _UPPER, UPPER_FD, 0, target="upper layer"))
            steps.append(plan.call("close_range", REPORT_FD, REPORT_FD, k.CLOSE_RANGE_CLOEXEC))
            first = UPPER_FD + 1
        steps.append(plan.call("close_range", 0, 2, k.CLOSE_RANGE_CLOEXEC))
        rest = plan.call("close_range", first, 2**32 - 1, k.CLOSE_RANGE_CLOEXEC)
        steps.append(rest)
        if clock.steps:
            steps += [*clock.operations(kept=(Slot("image"),)), rest]
        return [*steps, plan.become_init(Slot("image"), mode)]

    def clock(self) -> Clock:
        """How the command comes into its time namespace. Source: time_namespaces(7)."""
        if self.is_joined("time"):
            return joined_clock(Slot(JOIN_PREFIX + "time"))
        if not self.is_new("time"):
            return NO_CLOCK
        steps = [plan.unshare(k.CLONE_NEWTIME, "time namespace")]
        at = Slot("timens")
        if self.spec.time_offsets:
            offsets = self.spec.time_offsets.encode()
            steps += [
                plan.open_at(k.AT_FDCWD, b"/proc/self/timens_offsets", k.O_WRONLY, at),
                plan.write(at, offsets, "time offsets", "a clock would be set back to before its zero"),
                plan.close(at),
            ]
        if not _exec_enters_time():
            steps += [
                plan.open_at(PROC, b"self/ns/time_for_children", k.O_RDONLY, at),
                plan.setns(at, k.CLONE_NEWTIME, "time namespace"),
                plan.close(at),
            ]
            return Clock(steps=tuple(steps), alone=True, needs=(PROC,))
        return Clock(steps=tuple(steps), alone=bool(self.spec.time_offsets))


def why_not_held(spec: Spec, command: Command) -> str | None:
    """Return what keeps a command of this container from being held before its exec; None where it can be.

    Until then it shares the caller's memory: nothing else may be in its namespaces, and nothing may be done on the way
    that takes an address space of its own.
    """
    names = spec.namespaces
    confinement = command.confinement
    reasons = {
        "it has no mount namespace of its own": names.mount != "new",
        "it has no pid namespace of its own": names.pid != "new",
        "it joins a user namespace": names.user not in ("new", "host"),
        "it joins a time namespace": names.time not in ("new", "host"),
        "its clocks are set": spec.time_offsets is not None,
        "this kernel enters no time namespace at an exec": names.time == "new" and not _exec_enters_time(),
        "its commands may gain rights (no_new_privs=False)": not confinement.no_new_privs,
        "its commands have an oom_score_adj": confinement.oom_score_adj is not None,
        "its filter asks a supervisor": confinement.notifies,
        "its commands get descriptors": bool(command.pass_fds),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _exec_enters_time() -> bool:
    """Whether an exec enters the time namespace that the process has left for (Linux 6.3).

    Before that it stays outside, and can neither start threads nor vfork, which would share memory across the two.
    """
    numbers = os.uname().release.split("-")[0].split(".")
    return [int(number) for number in numbers[:2] if number.isdecimal()] >= [6, 3]


MAP_BYTES: Final = 2048
"""Room for the text of an id map in a plan; padded with spaces, which the kernel skips."""

_FOLDER: Final = k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC
_FILES: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV
_KERNEL_FS: Final = k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV | k.MOUNT_ATTR_NOEXEC


def _lower(number: int) -> Slot:
    return Slot(f"lower {number}")


def _bind(number: int) -> Slot:
    return Slot(f"bind {number}")


def _memory(size: str | None) -> dict[str, str | None]:
    options: dict[str, str | None] = {"mode": "755"}
    if size is not None:
        options["size"] = size
    return options


def _option(path: str) -> str:
    """Return a path as an overlay's option takes it. Source: the kernel's fs/overlayfs/params.c, ovl_next_opt()."""
    return path.replace("\\", "\\\\").replace(",", "\\,")


def _loopback() -> list[Operation]:
    """Bring up ``lo``; it gets its addresses by itself. Any socket will do for the ioctl. Source: netdevice(7)."""
    at = Slot("socket")
    request = pack("=16sH22x", b"lo", 0x41)  # IFF_UP | IFF_RUNNING
    return [
        plan.call("socket", 1, 2 | k.O_CLOEXEC, 0, target="for lo", result=at),  # AF_UNIX, SOCK_DGRAM
        plan.call("ioctl", at, _SIOCSIFFLAGS, Block(request), target="lo up"),
        plan.close(at),
    ]


def check_folders(mounts_: tuple[Mount, ...]) -> tuple[bool, ...]:
    """Return for each bind whether its source is a folder.

    Raises:
        SpecError: a source is not there.
    """
    folders: list[bool] = []
    for mount in mounts_:
        if mount.type != "bind":
            continue
        try:
            status = os.stat(mount.source)
        except OSError as error:
            raise SpecError(f"mount on {mount.target}: the source {mount.source}: {error.strerror}") from None
        folders.append(status.st_mode & 0o170000 == 0o040000)
    return tuple(folders)
