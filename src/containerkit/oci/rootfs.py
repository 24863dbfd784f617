"""The steps that assemble the container's root filesystem: its mounts, devices, covered paths, and the pivot.

What lies outside is opened by the runtime itself where it may clone mounts, so that a source may be out of reach of the
container's user; otherwise by the first process before it leaves. Targets are resolved below the root on descriptors,
and mounts are moved onto those: no link inside leads anywhere else (CVE-2021-30465).
"""

from __future__ import annotations

import os
from errno import EEXIST
from stat import S_IFBLK, S_IFCHR, S_IFIFO, S_IFREG, S_ISDIR
from struct import pack

from containerkit._native import constants as k
from containerkit.oci import kernel, mountoptions
from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.cgroups import Groups
    from containerkit.oci.config import Config, Device, Mount
    from containerkit.oci.mountoptions import Options
    from containerkit.oci.tape import Slot, Tape

__all__ = ["Builder"]

_DEFAULT_DEVICES = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
)
_KINDS = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}
_PROPAGATIONS = {"private": k.MS_PRIVATE, "slave": k.MS_SLAVE, "shared": k.MS_SHARED, "unbindable": k.MS_UNBINDABLE}
_INSIDE = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
_VALUE_LIMIT = 255
_IDMAP_HINT = "the filesystem can't be id-mapped, or the runtime may not do it"


class Builder:
    """Writes the stretch of a tape that makes the root.

    Args:
        tape: where to.
        config: what is wanted.
        bundle: relative sources start there.
        privileged: whether the runtime itself may clone mounts.
        makes_nodes: whether device nodes can be made; otherwise the host's are bound.
        groups: the control groups, if there are any.

    Attributes:
        passed: descriptors that the first process inherits.
        idmaps: mounts to map once the user namespace is there: descriptor, whether the whole tree, the mount's number.
        root: the root filesystem.
    """

    def __init__(
        self,
        tape: Tape,
        config: Config,
        bundle: str,
        *,
        privileged: bool,
        makes_nodes: bool,
        groups: Groups | None,
    ) -> None:
        self.tape = tape
        self.config = config
        self.bundle = bundle
        self.privileged = privileged
        self.makes_nodes = makes_nodes
        self.groups = groups
        self.passed: list[int] = []
        self.idmaps: list[tuple[int, bool, int]] = []
        self.root: int | Slot = -1
        self._covered: list[str] = []
        self._trees: dict[int, tuple[int | Slot, bool]] = {}
        self._device_trees: dict[str, int | Slot] = {}
        self._late: list[tuple[str, int]] = []
        assert config.root is not None
        self.rootfs = os.path.normpath(os.path.join(bundle, config.root.path))
        self.options = [mountoptions.read(each.options, f"mounts[{n}].options") for n, each in enumerate(config.mounts)]

    # --- outside

    def open_sources(self) -> None:
        """Clone the root filesystem and the sources of binds, and give them their attributes.

        Raises:
            RuntimeFailure: one of them is not there.
        """
        if not os.path.isdir(self.rootfs):
            raise RuntimeFailure(f"config.json: root.path: {self.rootfs}: no such directory")
        self.root = self._clone(self.rootfs, recursive=True, what="root filesystem")
        self._setattr(self.root, propagation=k.MS_PRIVATE, recursive=True, target="root filesystem")
        for number, (mount, options) in enumerate(zip(self.config.mounts, self.options, strict=True)):
            if options.bind or mount.type == "bind":
                self._open_bind(number, mount, options)
        if not self.makes_nodes and not self._binds_dev():
            for device in self._devices():
                self._open_device(device)

    def _open_bind(self, number: int, mount: Mount, options: Options) -> None:
        source = os.path.join(self.bundle, mount.source)
        if not mount.source:
            raise ConfigError(f"mounts[{number}].source", "a bind needs a source")
        try:
            status = os.stat(source)
        except OSError as error:
            text = f"mount {source} to {mount.destination}: {strerror(error.errno or 0)}"
            raise ConfigError(f"mounts[{number}].source", text) from None
        tree = self._clone(source, recursive=options.recursive, what=f"bind for {mount.destination}")
        target = f"attributes of {mount.destination}"
        if options.set or options.clear:
            self._setattr(tree, set_flags=options.set, clear=options.clear, target=target)
        if options.tree_set or options.tree_clear:
            self._setattr(tree, set_flags=options.tree_set, clear=options.tree_clear, recursive=True, target=target)
        for flag, recursive in options.propagation or [(k.MS_PRIVATE, True)]:
            self._setattr(tree, propagation=flag, recursive=recursive, target=target)
        if options.idmap or mount.uid_mappings:
            self._note_idmap(number, mount, options, tree)
        self._trees[number] = tree, S_ISDIR(status.st_mode)

    def _note_idmap(self, number: int, mount: Mount, options: Options, tree: int | Slot) -> None:
        if not isinstance(tree, int):
            raise ConfigError(f"mounts[{number}]", f"id maps of mounts: {_IDMAP_HINT}")
        if not mount.uid_mappings and self.config.namespace("user") is None:
            raise ConfigError(f"mounts[{number}].options", "idmap without mappings needs a user namespace")
        self.idmaps.append((tree, options.idmap == "ridmap", number))

    def _open_device(self, device: tuple[str, Device | None, int, int]) -> None:
        path, _, major, minor = device
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is None or status.st_rdev != os.makedev(major, minor):
            raise RuntimeFailure(f"device {path}: it can't be made here, and the host has none of its number to bind")
        self._device_trees[path] = self._clone(path, recursive=False, what="device")

    def _clone(self, path: str, *, recursive: bool, what: str) -> int | Slot:
        if self.privileged:
            try:
                fd = kernel.open_tree(path, recursive=recursive)
            except OSError as error:
                raise kernel.refused("open_tree", error, f"{path} ({what})") from None
            self.passed.append(fd)
            return fd
        slot = self.tape.slot(f"tree {len(self.tape)}")
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | (k.AT_RECURSIVE if recursive else 0)
        self.tape.call("open_tree", k.AT_FDCWD, os.fsencode(path), flags, target=f"{path} ({what})", result=slot)
        return slot

    def _setattr(
        self,
        tree: int | Slot,
        *,
        set_flags: int = 0,
        clear: int = 0,
        propagation: int = 0,
        recursive: bool = False,
        target: str,
    ) -> None:
        if isinstance(tree, int) and self.privileged:
            try:
                kernel.mount_setattr(
                    tree, set_flags=set_flags, clear=clear, propagation=propagation, recursive=recursive
                )
            except OSError as error:
                raise kernel.refused("mount_setattr", error, target) from None
            return
        self.set_attributes(tree, set_flags, clear, propagation, recursive=recursive, target=target)

    def set_attributes(
        self,
        tree: int | Slot,
        set_flags: int = 0,
        clear: int = 0,
        propagation: int = 0,
        *,
        recursive: bool = False,
        target: str,
    ) -> None:
        """Add the step that changes a mount's attributes, by the first process."""
        block = self.tape.block(pack("=QQQQ", set_flags, clear, propagation, 0))
        flags = k.AT_EMPTY_PATH | (k.AT_RECURSIVE if recursive else 0)
        self.tape.call("mount_setattr", tree, b"", flags, block, 32, target=target)

    # --- inside

    def attach_root(self, *, at_home: bool) -> None:
        """Add the steps that keep mounts from spreading to the host and attach the root.

        Args:
            at_home: over its own place, so that hooks that run inside before the pivot still find the host's files;
                otherwise over the runtime's root, which every user can reach.
        """
        tape = self.tape
        tape.call("mount", b"none", b"/", 0, k.MS_SLAVE | k.MS_REC, 0, target="keep mounts from the host")
        place = os.fsencode(self.rootfs) if at_home else b"/"
        tape.call("move_mount", self.root, b"", k.AT_FDCWD, place, k.MOVE_MOUNT_F_EMPTY_PATH, target="root filesystem")

    def mounts(self) -> None:
        """Add the steps of all mounts, in their order."""
        for number, (mount, options) in enumerate(zip(self.config.mounts, self.options, strict=True)):
            target = self._target(mount, number)
            if number in self._trees:
                tree, folder = self._trees[number]
                self._attach(tree, target, folder=folder)
            elif mount.type in ("cgroup", "cgroup2"):
                self._cgroup(target, options)
            elif options.copy_up:
                self._copy_up(number, target, options)
            elif mount.type:
                self._filesystem(mount, options, target)
            else:
                raise ConfigError(f"mounts[{number}].type", "is missing, and the options do not say bind")
            self._covered.append(target)

    def _target(self, mount: Mount, number: int) -> str:
        target = os.path.normpath("/" + mount.destination)
        target = "/" + target.lstrip("/")
        if target == "/":
            raise ConfigError(f"mounts[{number}].destination", "the root is named by root.path")
        return target

    def _attach(self, tree: int | Slot, target: str, *, folder: bool) -> None:
        at = self.reach(target, folder=folder)
        flags = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
        self.tape.call("move_mount", tree, b"", at, b"", flags, target=f"onto {target}")
        self.tape.step(k.STEP_CLOSE, "close", at)

    def _filesystem(self, mount: Mount, options: Options, target: str) -> None:
        tape = self.tape
        what = f"{mount.type} on {target}"
        data = list(options.data)
        if mount.source:
            data.append(("source", mount.source))
        label = self.config.linux.mount_label
        if label and mount.type in ("tmpfs", "devpts", "mqueue", "ramfs"):
            data.append(("context", label))
        attributes = options.set | options.tree_set
        if mount.type == "tmpfs" and attributes & k.MOUNT_ATTR_RDONLY:
            self._late.append((target, k.MOUNT_ATTR_RDONLY))  # mounts below it are still to be made
            attributes &= ~k.MOUNT_ATTR_RDONLY
        if any(value is not None and len(os.fsencode(value)) > _VALUE_LIMIT for _, value in data):
            self._classic(mount, data, attributes, target)
        else:
            tree = tape.slot("tree")
            self.new_filesystem(mount.type, data, attributes, tree, what)
            self._attach(tree, target, folder=True)
        if options.propagation:
            at = self._open(target)
            for flag, recursive in options.propagation:
                self.set_attributes(at, propagation=flag, recursive=recursive, target=f"propagation of {target}")
            tape.step(k.STEP_CLOSE, "close", at)

    def new_filesystem(
        self, kind: str, data: list[tuple[str, str | None]], attributes: int, tree: Slot, what: str
    ) -> None:
        """Add the steps that make a filesystem, detached. Source: fsopen(2), fsconfig(2), fsmount(2)."""
        tape = self.tape
        context = tape.slot("fsopen")
        tape.call("fsopen", kind.encode(), k.FSOPEN_CLOEXEC, target=what, result=context)
        for name, value in data:
            command = k.FSCONFIG_SET_FLAG if value is None else k.FSCONFIG_SET_STRING
            word: int | bytes = 0 if value is None else os.fsencode(value)
            shown = name if value is None else f"{name}={value}"
            tape.call("fsconfig", context, command, name.encode(), word, 0, target=f"{what}: {shown}")
        tape.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0, target=what)
        tape.call("fsmount", context, k.FSMOUNT_CLOEXEC, attributes, target=what, result=tree)
        tape.step(k.STEP_CLOSE, "close", context)

    def _classic(self, mount: Mount, data: list[tuple[str, str | None]], attributes: int, target: str) -> None:
        """fsconfig(2) takes values of at most 255 bytes; mount(2) takes a page of options."""
        at = self.reach(target, folder=True)
        words = [name if value is None else f"{name}={value}" for name, value in data if name != "source"]
        flags = 0
        for attribute, flag in (
            (k.MOUNT_ATTR_RDONLY, k.MS_RDONLY),
            (k.MOUNT_ATTR_NOSUID, k.MS_NOSUID),
            (k.MOUNT_ATTR_NODEV, k.MS_NODEV),
            (k.MOUNT_ATTR_NOEXEC, k.MS_NOEXEC),
            (k.MOUNT_ATTR_NOATIME, k.MS_NOATIME),
        ):
            flags |= flag if attributes & attribute else 0
        self.tape.call("fchdir", at, target=target)
        source, kind = os.fsencode(mount.source or mount.type), mount.type.encode()
        options = os.fsencode(",".join(words))
        self.tape.call("mount", source, b".", kind, flags, options, target=f"{mount.type} on {target}")
        self.tape.call("chdir", b"/", target="/")
        self.tape.step(k.STEP_CLOSE, "close", at)

    # --- targets

    def reach(self, target: str, *, folder: bool) -> Slot:
        """Add the steps that open a target below the root, made with its parents when it is missing."""
        at = self.tape.slot("target")
        parts = target.strip("/").split("/")
        if not self._is_there(target):
            for depth, part in enumerate(parts, start=1):
                parent = "/".join(parts[: depth - 1])
                above = self._open(parent, "parent") if parent else self.root
                shown = "/" + "/".join(parts[:depth])
                name = os.fsencode(part)
                if depth < len(parts) or folder:
                    self.tape.call("mkdirat", above, name, 0o755, target=shown, ok=(EEXIST,))
                else:
                    self.tape.call("mknodat", above, name, S_IFREG | 0o644, 0, target=shown, ok=(EEXIST,))
                if parent:
                    self.tape.step(k.STEP_CLOSE, "close", self.tape.slot("parent"))
        self._open(target, "target", k.O_DIRECTORY if folder else 0)
        return at

    def _open(self, path: str, slot: str = "target", flags: int = 0, ok: tuple[int, ...] = ()) -> Slot:
        at = self.tape.slot(slot)
        self.try_open(path, at, flags, ok)
        return at

    def try_open(self, path: str, at: Slot, flags: int = 0, ok: tuple[int, ...] = ()) -> int:
        """Add the step that opens a path below the root, and return its number."""
        how = self.tape.block(pack("=QQQ", k.O_PATH | k.O_CLOEXEC | flags, 0, _INSIDE))
        inner = os.fsencode(path.strip("/")) or b"."
        return self.tape.call("openat2", self.root, inner, how, 24, target=path, result=at, ok=ok)

    def _is_there(self, target: str) -> bool:
        """Tell whether the root filesystem itself has the target; what lies on other mounts can't be known yet."""
        if not isinstance(self.root, int) or not self.privileged:
            return False
        if any((target + "/").startswith(covered + "/") for covered in self._covered):
            return False
        try:
            os.close(kernel.open_inside(self.root, target, k.O_PATH))
        except OSError:
            return False
        return True

    # --- tmpfs with a copy of what it covers

    def _copy_up(self, number: int, target: str, options: Options) -> None:
        if not isinstance(self.root, int) or not self.privileged:
            raise ConfigError(f"mounts[{number}].options", "tmpcopyup needs a runtime that may make mounts itself")
        from containerkit.oci.copyup import filled_tmpfs

        attributes = options.set | options.tree_set
        if attributes & k.MOUNT_ATTR_RDONLY:
            self._late.append((target, k.MOUNT_ATTR_RDONLY))
            attributes &= ~k.MOUNT_ATTR_RDONLY
        tree = filled_tmpfs(self.root, target, options.data, attributes)
        self.passed.append(tree)
        self._attach(tree, target, folder=True)

    # --- control groups

    def _cgroup(self, target: str, options: Options) -> None:
        """Show the container its control groups: as its own hierarchy where it has a cgroup namespace."""
        groups = self.groups
        attributes = options.set | options.tree_set
        if groups is None:
            return
        own = self.config.namespace("cgroup") is not None
        first = [pair for pair in zip(groups.found, groups.places, strict=True) if pair[0].version == 1]
        if not first:
            self._one_cgroup(target, groups.unified, "cgroup2", [], attributes, own=own)
            return
        tree = self.tape.slot("tree")
        plain = attributes & ~k.MOUNT_ATTR_RDONLY
        self.new_filesystem("tmpfs", [("mode", "755")], plain, tree, f"tmpfs on {target}")
        self._attach(tree, target, folder=True)
        self._covered.append(target)
        for hierarchy, place in first:
            name = ",".join(hierarchy.names).removeprefix("name=")
            data: list[tuple[str, str | None]] = [
                ("name", word[5:]) if word.startswith("name=") else (word, None) for word in hierarchy.names
            ]
            if hierarchy.names[0].startswith("name="):
                data.insert(0, ("none", None))
            self._one_cgroup(f"{target}/{name}", place, "cgroup", data, attributes, own=own)
            if len(hierarchy.names) > 1:
                self._links(target, name, hierarchy.names)
        if attributes & k.MOUNT_ATTR_RDONLY:
            self._late.append((target, k.MOUNT_ATTR_RDONLY))

    def _one_cgroup(
        self, target: str, place: str, kind: str, data: list[tuple[str, str | None]], attributes: int, *, own: bool
    ) -> None:
        if own:
            tree = self.tape.slot("tree")
            self.new_filesystem(kind, data, attributes, tree, f"{kind} on {target}")
            self._attach(tree, target, folder=True)
            return
        clone = self._clone(place, recursive=False, what="control group")
        self._setattr(clone, set_flags=attributes, propagation=k.MS_PRIVATE, target=target)
        self._attach(clone, target, folder=True)

    def _links(self, target: str, name: str, controllers: tuple[str, ...]) -> None:
        at = self._open(target, "parent")
        for controller in controllers:
            self.tape.call("symlinkat", name.encode(), at, controller.encode(), target=controller, ok=(EEXIST,))
        self.tape.step(k.STEP_CLOSE, "close", at)

    # --- devices

    def _binds_dev(self) -> bool:
        """Tell whether /dev is the host's, which must not be changed."""
        return any(
            os.path.normpath("/" + mount.destination) == "/dev" and number in self._trees
            for number, mount in enumerate(self.config.mounts)
        )

    def _devices(self) -> list[tuple[str, Device | None, int, int]]:
        wanted: dict[str, tuple[str, Device | None, int, int]] = {
            path: (path, None, major, minor) for path, major, minor in _DEFAULT_DEVICES
        }
        for device in self.config.linux.devices:
            path = os.path.normpath(device.path)
            wanted[path] = path, device, device.major, device.minor
        return list(wanted.values())

    def devices(self) -> None:
        """Add the steps that make the device nodes and links of /dev.

        Source: OCI runtime-spec, config-linux.md, "Default Devices"; runtime-linux.md, "Dev symbolic links".
        """
        if self._binds_dev():
            return
        for path, device, major, minor in self._devices():
            if path in self._device_trees:
                self._attach(self._device_trees[path], path, folder=False)
            else:
                self._node(path, device, major, minor)
        at = self.reach("/dev", folder=True)
        for content, name in _LINKS:
            if name != "ptmx" or "/dev/pts" in self._covered:
                self.tape.call("symlinkat", content.encode(), at, name.encode(), target=f"/dev/{name}", ok=(EEXIST,))
        self.tape.step(k.STEP_CLOSE, "close", at)

    def _node(self, path: str, device: Device | None, major: int, minor: int) -> None:
        folder, _, name = path.rpartition("/")
        above = self.reach(folder, folder=True) if folder else self.root
        mode = 0o666 if device is None or device.file_mode is None else device.file_mode & 0o7777
        kind = _KINDS[device.type] if device is not None else S_IFCHR
        number = os.makedev(major, minor) if kind != S_IFIFO else 0
        made = self.tape.call("mknodat", above, os.fsencode(name), kind | mode, number, target=path, ok=(EEXIST,))
        if device is not None and (device.uid or device.gid):
            flags = k.AT_SYMLINK_NOFOLLOW
            self.tape.call("fchownat", above, os.fsencode(name), device.uid, device.gid, flags, target=path)
        self.tape.skip_here(made)
        if folder:
            self.tape.step(k.STEP_CLOSE, "close", self.tape.slot("target"))

    def console(self, terminal: Slot) -> None:
        """Add the steps that bind the terminal, by its descriptor, onto /dev/console."""
        tree = self.tape.slot("tree")
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
        self.tape.call("open_tree", terminal, b"", flags, target="terminal", result=tree)
        self._attach(tree, "/dev/console", folder=False)

    def make_cwd(self, path: str) -> None:
        """Add the steps that make the working directory when it is missing."""
        target = os.path.normpath("/" + path)
        if target.strip("/") and not self._is_there(target):
            self.reach("/" + target.strip("/"), folder=True)
            self.tape.step(k.STEP_CLOSE, "close", self.tape.slot("target"))

    # --- the end

    def late_attributes(self) -> None:
        """Add the steps for what could not be read-only while mounts were made below it."""
        for target, flags in self._late:
            at = self._open(target)
            self.set_attributes(at, flags, target=f"make {target} read-only")
            self.tape.step(k.STEP_CLOSE, "close", at)
        assert self.config.root is not None
        if self.config.root.readonly:
            self.set_attributes(self.root, k.MOUNT_ATTR_RDONLY, target="make the root read-only")

    def pivot(self, *, pivots: bool) -> None:
        """Add the steps that make the root the root, and leave the host's behind. Source: pivot_root(2)."""
        tape = self.tape
        tape.call("fchdir", self.root, target="root filesystem")
        if pivots:
            tape.call("pivot_root", b".", b".", target="root filesystem", hint="in an initial ramfs pass --no-pivot")
            tape.call("umount2", b".", k.MNT_DETACH, target="the host's root")
        else:
            tape.call("chroot", b".", target="root filesystem")
        tape.call("chdir", b"/", target="/")
        wanted = self.config.linux.rootfs_propagation
        recursive = wanted.startswith("r") and wanted[1:] in _PROPAGATIONS
        flag = _PROPAGATIONS.get(wanted[1:] if recursive else wanted, 0)
        if flag and flag != k.MS_PRIVATE:
            flags = flag | (k.MS_REC if recursive else 0)
            tape.call("mount", b"none", b"/", 0, flags, 0, target=f"rootfsPropagation {wanted}")
