"""Where new groups are created: a base directory in each hierarchy, and which hierarchy serves which controller.

The bases are found once and kept open. By default they are the groups that this process is in, so the limits of the
caller also limit its containers.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING, Any, Final

from containerkit._linux.cgroupfs import Hierarchy, offered_controllers, read_hierarchies
from containerkit._native import high
from containerkit.cgroup.controllers import CONTROLLERS, controller
from containerkit.cgroup.directory import Directory, OpenedDirectory, refused
from containerkit.cgroup.quantities import group_name
from containerkit.errors import SetupError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.cgroup.controllers import Attachment, Setting
    from containerkit.cgroup.limits import Limits

__all__ = ["Tree"]

_IMPLICIT: Final = frozenset({"freezer", "devices", "perf_event"})
"""Every group of version 2 has these: as cgroup.freeze, as a BPF program, and as a directory descriptor."""

_ONLY_VERSION_1: Final = frozenset({"cpuacct", "net_cls", "net_prio", "freezer", "devices", "perf_event"})
"""Controllers that have no files on version 2."""

_ACCOUNTED: Final = frozenset({"memory", "cpu", "io", "pids"})
"""Controllers to enable on version 2 if possible, for their reports."""

Room = tuple[Directory, tuple[Any, ...]]
"""A base, and what to write into a new group below it."""


class Tree:
    """The base directories in all hierarchies. It owns their descriptors.

    Attributes:
        bases: one directory for each hierarchy, version 2 last.
        unified: the base of version 2, or None if version 2 is not mounted or not writable.
    """

    __slots__ = ("_parent", "_plans", "bases", "unified")

    def __init__(self, bases: Iterable[Directory], parent: tuple[str, ...] = ()) -> None:
        self.bases = tuple(sorted(bases, key=lambda base: base.version))
        self.unified = next((base for base in self.bases if base.version == 2), None)
        self._parent = parent
        self._plans: dict[object, tuple[Room, ...]] = {}

    def __repr__(self) -> str:
        return f"<Tree {', '.join(base.path for base in self.bases)}>"

    @classmethod
    def current(cls, *, refresh: bool = False) -> Tree:
        """Return the tree whose bases are this process's own groups. It is built once in a process."""
        global _current  # noqa: PLW0603 - the machine's mounts do not change under a process
        with _lock:
            if _current is None or refresh:
                _current = cls(_open_bases())
            return _current

    @classmethod
    def delegated(cls) -> Tree:
        """Return the tree in a scope that systemd delegates to this process. One scope lasts until the process ends.

        Raises:
            UnsupportedError: there is no systemd here, or it can't be reached.
            SetupError: systemd refuses.
        """
        global _delegated  # noqa: PLW0603 - one scope is enough for a process
        with _lock:
            if _delegated is None or _delegated[0] != os.getpid():
                import atexit

                from containerkit.cgroup.systemd import Scope

                scope = Scope()
                atexit.register(scope.close)
                tree = cls(_open_bases(pid=scope.pid))
                if tree.unified is not None and not _move_to_leaf(tree.unified, scope.pid):
                    raise refused("write", OSError(EBUSY, os.strerror(EBUSY)), tree.unified.path)
                _delegated = os.getpid(), tree
            return _delegated[1]

    @classmethod
    def beneath(cls, parent: str, *, refresh: bool = False) -> Tree:
        """Return the tree whose bases are the group ``parent``, which is created where it does not exist.

        Args:
            parent: an absolute path as in /proc/PID/cgroup, the same path in every hierarchy.
            refresh: whether to look again instead of using the cached tree.

        Raises:
            SpecError: the path is not absolute, or a component is not a valid group name.
            SetupError: the kernel refused to create the group.
        """
        with _lock:
            known = _beneath.pop(parent, None)
            if known is not None and not refresh:
                _beneath[parent] = known  # moved to the end: the tree used last is dropped last
                return known
        parts = [part for part in parent.split("/") if part]
        if not parent.startswith("/"):
            raise SpecError(f"parent: {parent!r} is not absolute")
        for part in parts:
            group_name(part, "parent")
        bases: list[Directory] = []
        try:
            bases.extend(_descend(root, parts) for root in _open_bases(own=False))
        except BaseException:
            for base in bases:
                base.close()
            raise
        with _lock:
            if len(_beneath) >= 16:
                del _beneath[next(iter(_beneath))]  # its descriptors are closed when nobody uses it
            tree = _beneath[parent] = cls(bases, tuple(parts))
        return tree

    def close(self) -> None:
        """Close all descriptors. May be called twice."""
        for base in self.bases:
            base.close()

    def serving(self, name: str) -> Directory | None:
        """Return the base of the hierarchy that serves a controller, or None if there is none."""
        old = "blkio" if name == "io" else name
        for base in self.bases:
            if base.version == 1 and old in base.names:
                return base
        if self.unified is not None and (name in _IMPLICIT or name in self.unified.available()):
            return self.unified
        return None

    def plan(self, limits: Limits, controllers: frozenset[str]) -> tuple[Room, ...]:
        """Return what to create in which hierarchy for these limits. The result is cached.

        Args:
            limits: the limits of the group.
            controllers: more controllers to join.

        Raises:
            UnsupportedError: no hierarchy serves a controller, or the controller's version does not have the limit.
            SetupError: the controllers could not be enabled.
        """
        key = limits, controllers
        found = self._plans.get(key)
        if found is None:
            if len(self._plans) > 64:
                self._plans.clear()
            found = self._plans[key] = self._plan(limits, controllers)
        return found

    def plan_within(self, limits: Limits, further: frozenset[str] = frozenset()) -> tuple[Room, ...]:
        """Return what to create for a group inside the group whose directories are the bases, in all of them.

        On version 2 the controllers of the limits are enabled, and those of ``further`` that are available.

        Raises:
            UnsupportedError, SetupError: as for :meth:`plan`.
        """
        for name in sorted(limits.controllers()):
            if self.serving(name) is None:
                hint = (
                    f"the parent group is not in that hierarchy; create it with controllers=[{name!r}] or such a limit"
                )
                raise UnsupportedError("find controller", ENODEV, name, hint)
        if self.unified is not None:
            self._enable(frozenset((limits.controllers() | further) & self.unified.available()))
        found = self._plans.get(limits)
        if found is None:
            found = self._plans[limits] = tuple((base, self._settings_within(base, limits)) for base in self.bases)
        return found

    def _settings_within(self, base: Directory, limits: Limits) -> tuple[Setting | Attachment, ...]:
        return self.settings(base, sorted({"io" if name == "blkio" else name for name in base.available()}), limits)

    def mount(self, controllers: Iterable[str]) -> None:
        """Mount privately those of these version 1 controllers that the kernel offers and nothing mounts.

        Raises:
            UnsupportedError: the kernel refuses it.
        """
        from containerkit.cgroup.private import companions, mount_privately

        for name in sorted("blkio" if name == "io" else name for name in controllers):
            if self.serving(name) is None and (together := companions(name)):
                self.bases = (mount_privately(together), *self.bases)
                self._plans.clear()

    def _plan(self, limits: Limits, controllers: frozenset[str]) -> tuple[Room, ...]:
        needed = limits.controllers()
        serving: dict[str, Directory] = {}
        for name in sorted(needed | controllers):
            base = self.serving(name) or self._enable_above(name)
            if base is None:
                raise not_served(name, self.unified)
            serving[name] = base
        for name in sorted(self._basics() - serving.keys()):
            base = self.serving(name)
            if base is not None:
                serving[name] = base
        if self.unified is not None:
            self._enable(frozenset(name for name, base in serving.items() if base is self.unified) - _IMPLICIT)
        rooms: list[Room] = []
        for base in self.bases:
            mine = sorted(name for name, served in serving.items() if served is base)
            if mine or base is self.unified:
                rooms.append((base, self.settings(base, mine, limits)))
        return tuple(rooms)

    def settings(self, base: Directory, names: Iterable[str], limits: Limits) -> tuple[Setting | Attachment, ...]:
        """Return the settings for these limits in one hierarchy, the raw keys last."""
        found: list[Setting | Attachment] = []
        for name in names:
            if name in CONTROLLERS:
                found += controller(name).settings(limits, base.version)
        if limits.unified:
            from containerkit.cgroup.controllers.raw import settings

            found += settings(limits, base, self)
        return tuple(found)

    def _enable_above(self, name: str) -> Directory | None:
        """Enable a version 2 controller in every group above the base, if this tree was requested by its parent."""
        if self.unified is None or not self._parent:
            return None
        roots = _open_bases(own=False)
        try:
            for root in roots:
                if root.version == 2 and name in root.available():
                    _descend(root, list(self._parent), frozenset({name})).close()
                    self.unified.look_again()
                    return self.unified if name in self.unified.available() else None
        finally:
            for root in roots:
                root.close()
        return None

    def _basics(self) -> frozenset[str]:
        """Return the controllers that every group should have: a freezer and a report of its processor time."""
        if self.unified is None:
            return frozenset({"freezer", "cpuacct"})
        return frozenset() if _kernel_freezes() else frozenset({"freezer"})

    def _enable(self, needed: frozenset[str]) -> None:
        unified = self.unified
        if unified is None:
            return
        extra = (_ACCOUNTED & unified.available()) - needed
        try:
            unified.enable(needed)
        except SetupError as error:
            if error.errno != EBUSY or not _move_to_leaf(unified):
                raise
            unified.enable(needed)
        for name in sorted(extra):
            try:
                unified.enable({name})
            except SetupError:  # only a report will be missing
                continue


def _kernel_freezes() -> bool:
    """Return whether version 2 has cgroup.freeze, which is new in kernel 5.2. The root group does not have the file."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.split(".")[0].split("-")[0]
    return (int(major), int(minor) if minor.isdigit() else 0) >= (5, 2)


def _move_to_leaf(base: Directory, pid: int | None = None) -> bool:
    """Move a process into a leaf of its own group, if it is alone there, so that child groups can have controllers."""
    pid = os.getpid() if pid is None else pid
    if base.processes() != [pid]:
        return False
    leaf = base.make("supervisor")
    try:
        leaf.write("cgroup.procs", b"%d" % pid)
    except OSError:
        return False
    finally:
        leaf.close()
    return True


def not_served(name: str, unified: Directory | None) -> UnsupportedError:
    """Return the error for a controller that no hierarchy serves. Its hint names what would provide the controller.

    Args:
        name: the controller.
        unified: the base on version 2, or None.
    """
    old = "blkio" if name == "io" else name
    offered = offered_controllers()
    if name not in CONTROLLERS:
        hint = f"no such controller exists; the known ones are {', '.join(CONTROLLERS)}"
    elif old not in offered:
        hint = f"the kernel was built or booted without it; see CONFIG_CGROUP_{old.upper()} and cgroup_disable="
    elif offered[old]:
        mounted = next((one.mountpoint for one in read_hierarchies() if old in one.controllers), None)
        hint = f"no mount of its hierarchy is visible here; run mount -t cgroup -o {old}, as root"
        if mounted is not None:
            hint = f"its mount on {mounted} is not writable here: run as root, mount it writable, or leave out {name}"
    elif unified is not None and name not in _ONLY_VERSION_1:
        hint = f"it is not enabled for {unified.path}; write +{name} to cgroup.subtree_control of the groups above, or "
        hint += "set Delegate=yes in the systemd unit"
    elif (
        unified is None
        and (name in _IMPLICIT or name not in _ONLY_VERSION_1)
        and any(one.version == 2 for one in read_hierarchies())
    ):
        hint = "the caller's group of version 2 is not writable here: run as root, or inside a delegated subtree "
        hint += "(systemd-run --user --scope -p Delegate=yes ...)"
    else:
        hint = f"the kernel has it but nothing mounts it: run mount -t cgroup -o {old}, as root; "
        hint += "or pass mount=True to CGroup.create()"
    return UnsupportedError("find controller", ENODEV, name, hint)


def _open_bases(*, own: bool = True, pid: int | None = None) -> list[Directory]:
    bases: list[Directory] = []
    for hierarchy in read_hierarchies("self" if pid is None else pid):
        if hierarchy.version == 1 and not hierarchy.controllers:
            continue  # a named hierarchy has no limits
        base = _open_base(hierarchy, own=own)
        if base is not None:
            bases.append(base)
    return bases


def _open_base(hierarchy: Hierarchy, *, own: bool) -> Directory | None:
    """Open this process's group in a hierarchy, or the root group; return None if it is not visible or not writable."""
    path = hierarchy.locate(hierarchy.own) if own else hierarchy.mountpoint
    if path is None:
        return None
    try:
        fd = high(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return None
    base = OpenedDirectory(fd, path, hierarchy.version, hierarchy.controllers)
    if not os.access(".", os.W_OK, dir_fd=fd, effective_ids=True):
        base.close()
        return None
    if own and path.endswith("/supervisor") and hierarchy.version == 2:  # _move_to_leaf moved this process there
        above = high(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))
        base.close()
        return OpenedDirectory(above, path.rpartition("/")[0], hierarchy.version)
    return base


def _descend(base: Directory, parts: list[str], controllers: frozenset[str] = _ACCOUNTED) -> Directory:
    """Open a group below the base, creating it and its parents where needed, and close the base."""
    for part in parts:
        above = base
        try:
            if above.version == 2:
                above.enable(controllers & above.available())
            base = above.make(part)
            if above.version == 1 and "cpuset" in above.names:
                _inherit_cpuset(base)
        except FileNotFoundError as error:
            raise refused("mkdir", error, f"{above.path}/{part}") from None
        except OSError as error:
            raise error if isinstance(error, SetupError) else refused("write", error, base.path) from None
        finally:
            above.close()
    return base


def _inherit_cpuset(group: Directory) -> None:
    """Copy the parent's lists to a new version 1 cpuset. A group without lists accepts no process."""
    for kind in ("cpuset.cpus", "cpuset.mems"):
        if not (group.read(kind) or "").strip():
            group.write(kind, (group.read(f"../{kind}") or "").strip().encode())


_lock = allocate_lock()
_current: Tree | None = None
_beneath: dict[str, Tree] = {}
_delegated: tuple[int, Tree] | None = None
