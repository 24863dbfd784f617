"""The steps that assemble the container's root filesystem: its mounts, devices, covered paths, and the pivot.

Paths outside are opened by the runtime if it may clone mounts. Then the container's user needs no access to a source.
Otherwise the first process opens them before it pivots. Targets are resolved to descriptors below the root, and mounts
are moved onto those. So a symlink inside can't lead anywhere else (CVE-2021-30465).
"""

from __future__ import annotations

import os
from stat import S_ISDIR
from struct import pack

from containerkit._native import constants as k
from containerkit._native.names import PROPAGATION
from containerkit.oci import kernel, mountoptions
from containerkit.oci.devices import Devices
from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror
from containerkit.oci.innerbinds import InnerBinds, strip_root
from containerkit.oci.parking import Parking, lists_by_age
from containerkit.oci.targets import KERNEL_PATHS, Targets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.cgroups import Groups
    from containerkit.oci.config import Config, Mount
    from containerkit.oci.mountoptions import Options
    from containerkit.oci.tape import Slot, Tape

__all__ = ["Builder"]

_CLASSIC_FLAGS = (
    (k.MOUNT_ATTR_RDONLY, k.MS_RDONLY),
    (k.MOUNT_ATTR_NOSUID, k.MS_NOSUID),
    (k.MOUNT_ATTR_NODEV, k.MS_NODEV),
    (k.MOUNT_ATTR_NOEXEC, k.MS_NOEXEC),
    (k.MOUNT_ATTR_NOATIME, k.MS_NOATIME),
)
_OF_KERNEL = ("proc", "sysfs")
_VALUE_LIMIT = 255
_IDMAP_HINT = "the filesystem can't be id-mapped, or the runtime lacks the privilege"


class Builder:
    """Writes the part of a tape that makes the root.

    Args:
        tape: the tape to which the steps are added.
        config: the container's configuration.
        bundle: the directory to which relative sources are relative.
        privileged: whether the runtime itself may clone mounts.
        makes_nodes: whether device nodes can be made inside.
        makes_nodes_outside: whether the runtime can make the devices of the configuration.
        may_park: whether a pivot detaches the host's root, with all mounts on it.
        groups: the control groups, if there are any.
        channel: the descriptor of the socket to the runtime.

    Attributes:
        passed: descriptors that the first process inherits.
        views: descriptors that the runtime itself needs while the tape is written.
        idmaps: mounts to map when the user namespace exists: descriptor, whether the whole tree, the mount's number.
        targets: the paths inside.
        inner: the binds whose source is in the root itself.
    """

    def __init__(
        self,
        tape: Tape,
        config: Config,
        bundle: str,
        *,
        privileged: bool,
        makes_nodes: bool,
        makes_nodes_outside: bool,
        may_park: bool,
        groups: Groups | None,
        channel: int,
    ) -> None:
        self.tape = tape
        self.config = config
        self.bundle = bundle
        self.privileged = privileged
        self.makes_nodes = makes_nodes
        self.makes_nodes_outside = makes_nodes_outside
        self.may_park = may_park
        self.parking: Parking | None = None
        self.groups = groups
        self.passed: list[int] = []
        self.views: list[int] = []
        self.idmaps: list[tuple[int, bool, int]] = []
        self.targets = Targets(tape)
        self._trees: dict[int, tuple[int | Slot, bool]] = {}
        self._symlinks: dict[int, str] = {}
        self.devices = Devices(self)
        self.late: list[tuple[int | Slot, int, str]] = []
        assert config.root is not None
        self.rootfs = os.path.normpath(os.path.join(bundle, config.root.path))
        self.inner = InnerBinds(self, channel)
        self.options = [mountoptions.read(each.options, f"mounts[{n}].options") for n, each in enumerate(config.mounts)]

    def is_bind(self, number: int) -> bool:
        """Return whether a mount of the configuration is a bind."""
        return self.options[number].bind or self.config.mounts[number].type == "bind"

    @property
    def root(self) -> int | Slot:
        """The root filesystem."""
        return self.targets.root

    # --- outside

    def open_sources(self) -> None:
        """Clone the root filesystem and the sources of binds, and give them their attributes.

        Raises:
            RuntimeFailure: one of them does not exist.
        """
        if not os.path.isdir(self.rootfs):
            raise RuntimeFailure(f"config.json: root.path: {self.rootfs}: no such directory")
        root = self.targets.root = self.clone(self.rootfs, recursive=True, what="root filesystem")
        self._look_inside()
        self._setattr(root, propagation=k.MS_PRIVATE, recursive=True, target="root filesystem")
        for number, (mount, options) in enumerate(zip(self.config.mounts, self.options, strict=True)):
            if self.is_bind(number):
                self._open_bind(number, mount, options)
        self.devices.open()
        in_order = not lists_by_age([self.is_bind(number) for number in range(len(self.config.mounts))])
        if self.may_park and not in_order:
            self.parking = Parking(self)

    def _look_inside(self) -> None:
        """Open the root filesystem for the runtime, as far as its own user has access."""
        root = self.targets.root
        if isinstance(root, int):
            self.targets.view = root
            return
        try:
            self.targets.view = os.open(self.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return
        self.views.append(self.targets.view)

    def _open_bind(self, number: int, mount: Mount, options: Options) -> None:
        source = os.path.join(self.bundle, mount.source)
        if not mount.source:
            raise ConfigError(f"mounts[{number}].source", "a bind needs a source")
        if options.copy_symlink and os.path.islink(source):
            self._symlinks[number] = os.readlink(source)
            return
        if self.inner.take(number, source):
            return
        try:
            status = os.stat(source)
        except OSError as error:
            text = f"mount {source} to {mount.destination}: {strerror(error.errno or 0)}"
            raise ConfigError(f"mounts[{number}].source", text) from None
        tree = self.clone(source, recursive=options.recursive, what=f"bind for {mount.destination}")
        target = f"attributes of {mount.destination}"
        if options.set or options.clear:
            self._setattr(tree, set_flags=options.set, clear=options.clear, target=target)
        if options.tree_set or options.tree_clear:
            self._setattr(tree, set_flags=options.tree_set, clear=options.tree_clear, recursive=True, target=target)
        for flag, recursive in options.propagation or [(k.MS_PRIVATE, True)]:
            if flag != k.MS_UNBINDABLE or not self.may_park:  # an unbindable mount could not be cloned again
                self._setattr(tree, propagation=flag, recursive=recursive, target=target)
        if options.idmap or mount.uid_mappings:
            self._note_idmap(number, options, tree)
        self._trees[number] = tree, S_ISDIR(status.st_mode)

    def _note_idmap(self, number: int, options: Options, tree: int | Slot) -> None:
        if not isinstance(tree, int):
            raise ConfigError(f"mounts[{number}]", f"id maps of mounts: {_IDMAP_HINT}")
        self.check_idmap(number)
        self.idmaps.append((tree, options.idmap == "ridmap", number))

    def check_idmap(self, number: int) -> None:
        """Refuse an id map of a mount that can't be made.

        Args:
            number: the number of the mount in the configuration.

        Raises:
            ConfigError: it can't be made.
        """
        if not self.privileged:
            raise ConfigError(f"mounts[{number}]", f"id maps of mounts: {_IDMAP_HINT}")
        if not self.config.mounts[number].uid_mappings and self.config.namespace("user") is None:
            raise ConfigError(f"mounts[{number}].options", "idmap without mappings needs a user namespace")

    def clone(self, path: str, *, recursive: bool, what: str) -> int | Slot:
        """Clone the mount at a path of the host: by the runtime if it may, otherwise by the first process.

        Args:
            path: the path.
            recursive: with the mounts below it.
            what: its purpose, for errors.

        Raises:
            StepError: it can't be cloned.
        """
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
        """Add the steps that keep mounts from propagating to the host, and attach the root.

        Args:
            at_home: whether to attach it over its own path. Hooks that run inside before the pivot then find the host's
                files. Otherwise it is attached over the runtime's root, which every user can reach.
        """
        tape = self.tape
        tape.call("mount", b"none", b"/", 0, k.MS_SLAVE | k.MS_REC, 0, target="keep mounts from the host")
        place = os.fsencode(self.rootfs) if at_home else b"/"
        if self.parking is not None:
            self.parking.attach(place)
        tape.call("move_mount", self.root, b"", k.AT_FDCWD, place, k.MOVE_MOUNT_F_EMPTY_PATH, target="root filesystem")
        self.targets.refuse_symlinks()

    def mounts(self) -> None:
        """Add the steps of all mounts, in their order."""
        for number, (mount, options) in enumerate(zip(self.config.mounts, self.options, strict=True)):
            if number in self._symlinks:
                self._copy_symlink(mount.destination, self._symlinks[number])
                continue
            target = self._target(mount, number)
            if number in self.inner:
                self.inner.bind(number, options, target)
            elif number in self._trees:
                self._bind(number, options, target)
            elif mount.type in ("cgroup", "cgroup2"):
                if self.groups is not None:
                    from containerkit.oci import cgroupmounts

                    cgroupmounts.show(self, self.groups, number, target, options)
            elif options.copy_up:
                self._copy_up(number, target, options)
            elif mount.type:
                self._filesystem(mount, options, target)
            else:
                raise ConfigError(f"mounts[{number}].type", "is missing, and the options do not contain bind")

    def _bind(self, number: int, options: Options, target: str) -> None:
        source, directory = self._trees[number]
        tree = source if self.parking is None else self.parking.clone(source, target, directory=directory)
        for flag, recursive in options.propagation:
            if flag == k.MS_UNBINDABLE and self.may_park:
                self._setattr(tree, propagation=flag, recursive=recursive, target=f"attributes of {target}")
        self.attach(tree, target, directory=directory)
        kept = tree if directory and target in KERNEL_PATHS else None
        self.targets.note(target, kept, view=source if isinstance(source, int) else -1)

    def _copy_symlink(self, destination: str, content: str) -> None:
        """Add the steps that make a symlink. An existing one with the same target is kept."""
        above, _, name = os.path.normpath("/" + destination.lstrip("/")).rpartition("/")
        above = self.targets.resolve(above)
        if self.targets.symlink(f"{above.rstrip('/')}/{name}") == content:
            return
        at = self.targets.reach(above, directory=True)
        self.tape.call("symlinkat", os.fsencode(content), at, os.fsencode(name), target=f"symlink {destination}")
        self.tape.step(k.STEP_CLOSE, "close", at)

    def _target(self, mount: Mount, number: int) -> str:
        target = strip_root(mount.destination, self.rootfs)
        if target != "/" and mount.type not in _OF_KERNEL:
            target = self.targets.resolve(target)
        if target == "/":
            raise ConfigError(f"mounts[{number}].destination", "the root is named by root.path")
        return target

    def attach(self, tree: int | Slot, target: str, *, directory: bool, plain: bool = False) -> None:
        """Add the steps that attach a mount to a path inside. The path is made if it is missing.

        Args:
            tree: the mount.
            target: the path.
            directory: whether it is a directory.
            plain: a symlink on the path is an error.
        """
        at = self.targets.reach(target, directory=directory, plain=plain)
        flags = k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH
        self.tape.call("move_mount", tree, b"", at, b"", flags, target=f"onto {target}")
        self.tape.step(k.STEP_CLOSE, "close", at)

    def attach_clone(self, source: str, attributes: int, target: str, *, what: str) -> int | Slot:
        """Add the steps that attach a private clone of a host's mount to a directory. Return its descriptor."""
        clone = self.clone(source, recursive=False, what=what)
        self._setattr(clone, set_flags=attributes, propagation=k.MS_PRIVATE, target=target)
        self.attach(clone, target, directory=True)
        return clone

    def _filesystem(self, mount: Mount, options: Options, target: str) -> None:
        tape = self.tape
        what = f"{mount.type} on {target}"
        data = list(options.data)
        if mount.source:
            data.append(("source", mount.source))
        if mount.type == "tmpfs" and not any(name == "mode" for name, _ in data):
            mode = self.targets.mode_of(target)  # of the directory that it covers, as in runc
            data += [] if mode is None else [("mode", f"{mode:o}")]
        label = self.config.linux.mount_label
        if label and mount.type in ("tmpfs", "devpts", "mqueue", "ramfs"):
            data.append(("context", label))
        attributes = options.set | options.tree_set
        if any(value is not None and len(os.fsencode(value)) > _VALUE_LIMIT for _, value in data):
            self._classic(mount, data, attributes, options, target)
            return
        tree = tape.slot(f"tree {len(tape)}")
        if mount.type == "tmpfs" and attributes & k.MOUNT_ATTR_RDONLY:
            self.late.append((tree, k.MOUNT_ATTR_RDONLY, target))  # mounts below it must still be made
            attributes &= ~k.MOUNT_ATTR_RDONLY
        of_kernel = mount.type in _OF_KERNEL
        if mount.type == "sysfs":
            from containerkit.oci import sysfs

            sysfs.mount(self, data, attributes, tree, target)
        else:
            self.new_filesystem(mount.type, data, attributes, tree, what)
            self.attach(tree, target, directory=True, plain=of_kernel)
        kept = of_kernel or mount.type == "devpts" or target in KERNEL_PATHS
        self.targets.note(target, tree if kept else None)
        self.propagate(tree, options, target)

    def propagate(self, tree: int | Slot, options: Options, target: str) -> None:
        """Add the steps that set the propagation of an attached mount."""
        for flag, recursive in options.propagation:
            self.set_attributes(tree, propagation=flag, recursive=recursive, target=f"propagation of {target}")

    def new_filesystem(
        self,
        kind: str,
        data: list[tuple[str, str | None]],
        attributes: int,
        tree: Slot,
        what: str,
        *,
        ok: tuple[int, ...] = (),
        hint: str = "",
    ) -> tuple[int, int]:
        """Add the steps that make a filesystem, detached. Source: fsopen(2), fsconfig(2), fsmount(2).

        Returns:
            The steps that may fail with one of ``ok``. The caller must set their ``skip_here``.
        """
        tape = self.tape
        context = tape.slot("fsopen")
        opened = tape.call("fsopen", kind.encode(), k.FSOPEN_CLOEXEC, target=what, result=context, ok=ok, hint=hint)
        for name, value in data:
            command = k.FSCONFIG_SET_FLAG if value is None else k.FSCONFIG_SET_STRING
            word: int | bytes = 0 if value is None else os.fsencode(value)
            shown = name if value is None else f"{name}={value}"
            tape.call("fsconfig", context, command, name.encode(), word, 0, target=f"{what}: {shown}")
        tape.call("fsconfig", context, k.FSCONFIG_CMD_CREATE, 0, 0, 0, target=what)
        flags = k.FSMOUNT_CLOEXEC
        mounted = tape.call("fsmount", context, flags, attributes, target=what, result=tree, ok=ok, hint=hint)
        tape.step(k.STEP_CLOSE, "close", context)
        return opened, mounted

    def _classic(
        self,
        mount: Mount,
        data: list[tuple[str, str | None]],
        attributes: int,
        options: Options,
        target: str,
    ) -> None:
        """Use mount(2), which takes a page of options; fsconfig(2) takes values of at most 255 bytes."""
        tape = self.tape
        at = self.targets.reach(target, directory=True)
        words = [name if value is None else f"{name}={value}" for name, value in data if name != "source"]
        flags = 0
        for attribute, flag in _CLASSIC_FLAGS:
            flags |= flag if attributes & attribute else 0
        tape.call("fchdir", at, target=target)
        source, kind = os.fsencode(mount.source or mount.type), mount.type.encode()
        tape.call("mount", source, b".", kind, flags, os.fsencode(",".join(words)), target=f"{mount.type} on {target}")
        tape.call("chdir", b"/", target="/")
        tape.step(k.STEP_CLOSE, "close", at)
        self.targets.note(target)
        if options.propagation:
            at = self.targets.open(target)
            self.propagate(at, options, target)
            tape.step(k.STEP_CLOSE, "close", at)

    # --- tmpfs with a copy of the covered directory

    def _copy_up(self, number: int, target: str, options: Options) -> None:
        if not isinstance(self.root, int) or not self.privileged:
            raise ConfigError(f"mounts[{number}].options", "tmpcopyup needs a runtime that may make mounts")
        from containerkit.oci.copyup import filled_tmpfs

        attributes = (options.set | options.tree_set) & ~k.MOUNT_ATTR_RDONLY
        tree = filled_tmpfs(self.root, target, options.data, attributes)
        self.passed.append(tree)
        if (options.set | options.tree_set) & k.MOUNT_ATTR_RDONLY:
            self.late.append((tree, k.MOUNT_ATTR_RDONLY, target))
        self.attach(tree, target, directory=True)
        self.targets.note(target, view=tree)

    # --- the end

    def console(self, terminal: Slot) -> None:
        """Add the steps that bind the terminal, by its descriptor, onto /dev/console."""
        tree = self.tape.slot("tree")
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
        self.tape.call("open_tree", terminal, b"", flags, target="terminal", result=tree)
        self.attach(tree, "/dev/console", directory=False)

    def make_cwd(self, path: str) -> None:
        """Add the steps that make the working directory if it is missing."""
        target = self.targets.resolve(os.path.normpath("/" + path))
        if target != "/" and not self.targets.is_there(target):
            self.targets.reach(target, directory=True)
            self.tape.step(k.STEP_CLOSE, "close", self.tape.slot("target"))

    def late_attributes(self) -> None:
        """Add the steps that make mounts read-only after the mounts below them were made."""
        for tree, flags, target in self.late:
            self.set_attributes(tree, flags, target=f"make {target} read-only")
        assert self.config.root is not None
        if self.config.root.readonly:
            self.set_attributes(self.root, k.MOUNT_ATTR_RDONLY, target="make the root read-only")

    def propagation(self) -> None:
        """Add the step that sets the propagation of the new root."""
        wanted = self.config.linux.rootfs_propagation
        recursive = wanted.startswith("r") and wanted[1:] in PROPAGATION
        flag = PROPAGATION.get(wanted[1:] if recursive else wanted, 0)
        if flag and flag != k.MS_PRIVATE:
            flags = flag | (k.MS_REC if recursive else 0)
            self.tape.call("mount", b"none", b"/", 0, flags, 0, target=f"rootfsPropagation {wanted}")
