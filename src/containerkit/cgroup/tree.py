"""Where new groups go: one base directory in each hierarchy, and which hierarchy serves which controller.

The bases are found once and kept open. By default they are the groups that this process is in, so that what limits the
caller limits its containers too.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EBUSY, ENODEV
from typing import TYPE_CHECKING, Any, Final

from containerkit._linux.cgroupfs import Hierarchy, offered_controllers, read_hierarchies
from containerkit._native import high
from containerkit.cgroup.controllers import CONTROLLERS, controller
from containerkit.cgroup.directory import Directory, refused
from containerkit.cgroup.quantities import group_name
from containerkit.errors import SetupError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.cgroup.controllers import Attachment, Setting
    from containerkit.cgroup.limits import Limits

__all__ = ["Tree"]

_IMPLICIT: Final = frozenset({"freezer", "devices", "perf_event"})
"""On version 2 every group has them, in the form of cgroup.freeze, of a BPF program and of a directory descriptor."""

_ONLY_VERSION_1: Final = frozenset({"cpuacct", "net_cls", "net_prio", "freezer", "devices", "perf_event"})
"""Controllers that have no files on version 2."""

_ACCOUNTED: Final = frozenset({"memory", "cpu", "io", "pids"})
"""Enabled on version 2 where they can be, for the sake of their reports."""

Room = tuple[Directory, tuple[Any, ...]]
"""A base and what has to be written into a new group below it."""


class Tree:
    """The bases in all hierarchies. It owns their descriptors.

    Attributes:
        bases: one directory for each hierarchy, version 2 last.
        unified: the one of version 2; None where it is not mounted or may not be written.
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
        """Return the tree whose bases are this process's own groups, found once in a process."""
        global _current  # noqa: PLW0603 - the machine's mounts do not change under a process
        with _lock:
            if _current is None or refresh:
                _current = cls(_open_bases())
            return _current

    @classmethod
    def delegated(cls) -> Tree:
        """Return the tree in a scope that systemd hands to this process; asked for once, it lasts as long as we do.

        Raises:
            UnsupportedError: there is no systemd here, or it can't be reached.
            SetupError: it refuses.
        """
        global _delegated  # noqa: PLW0603 - one scope is enough for a process
        with _lock:
            if _delegated is None or _delegated[0] != os.getpid():
                import atexit

                from containerkit.cgroup.systemd import Scope

                scope = Scope()
                atexit.register(scope.close)
                tree = cls(_open_bases(pid=scope.pid))
                if tree.unified is not None and not _step_aside(tree.unified, scope.pid):
                    raise refused("write", OSError(EBUSY, os.strerror(EBUSY)), tree.unified.path)
                _delegated = os.getpid(), tree
            return _delegated[1]

    @classmethod
    def beneath(cls, parent: str, *, refresh: bool = False) -> Tree:
        """Return the tree whose bases are the group ``parent``, made where it is not there.

        Args:
            parent: an absolute path, as /proc/PID/cgroup shows it, the same in every hierarchy.
            refresh: whether to look again instead of taking what was found before.

        Raises:
            SpecError: not absolute, or with components that no group can have.
            SetupError: the kernel refused to make it.
        """
        with _lock:
            known = _beneath.pop(parent, None)
            if known is not None and not refresh:
                _beneath[parent] = known  # the last used is the last to go
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
                del _beneath[next(iter(_beneath))]  # its descriptors close when nobody uses it any more
            tree = _beneath[parent] = cls(bases, tuple(parts))
        return tree

    def close(self) -> None:
        """Close all descriptors. May be called twice."""
        for base in self.bases:
            base.close()

    def serving(self, name: str) -> Directory | None:
        """Return the base of the hierarchy that serves a controller, None if there is none."""
        old = "blkio" if name == "io" else name
        for base in self.bases:
            if base.version == 1 and old in base.names:
                return base
        if self.unified is not None and (name in _IMPLICIT or name in self.unified.available()):
            return self.unified
        return None

    def plan(self, limits: Limits, controllers: frozenset[str]) -> tuple[Room, ...]:
        """Return what has to be made in which hierarchy for these limits; kept for the next time.

        Args:
            limits: what is wished.
            controllers: further controllers to join.

        Raises:
            UnsupportedError: no hierarchy serves a controller, or none of this version has the limit.
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
        """Return what has to be made for a group within the one whose directories are the bases, in all of them.

        On version 2 the controllers of the limits are handed down, and of ``further`` those that are at hand.

        Raises:
            UnsupportedError, SetupError: as for :meth:`plan`.
        """
        for name in sorted(limits.controllers()):
            if self.serving(name) is None:
                hint = (
                    f"the group above is not in that hierarchy; create it with controllers=[{name!r}] or such a limit"
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
            UnsupportedError: the kernel refused it.
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
            base = self.serving(name) or self._hand_down(name)
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
        """Return what these limits mean in one hierarchy, the raw keys last."""
        found: list[Setting | Attachment] = []
        for name in names:
            if name in CONTROLLERS:
                found += controller(name).settings(limits, base.version)
        if limits.unified:
            from containerkit.cgroup.controllers.raw import settings

            found += settings(limits, base, self)
        return tuple(found)

    def _hand_down(self, name: str) -> Directory | None:
        """Enable a controller of version 2 in every group above the base, if this tree was asked for by its parent."""
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
        """Return what every group should be able to do: be frozen, and tell its processor time."""
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
            if error.errno != EBUSY or not _step_aside(unified):
                raise
            unified.enable(needed)
        for name in sorted(extra):
            try:
                unified.enable({name})
            except SetupError:  # only a report would have come from it
                continue


def _kernel_freezes() -> bool:
    """Tell whether version 2 has cgroup.freeze, which came with kernel 5.2; the root group does not show it."""
    major, _, rest = os.uname().release.partition(".")
    minor = rest.split(".")[0].split("-")[0]
    return (int(major), int(minor) if minor.isdigit() else 0) >= (5, 2)


def _step_aside(base: Directory, pid: int | None = None) -> bool:
    """Move a process into a leaf of its own group, if it is alone there, so that inner groups may be made."""
    pid = os.getpid() if pid is None else pid
    if base.processes() != [pid]:
        return False
    leaf = base.make("supervisor", exist_ok=True)
    try:
        leaf.write("cgroup.procs", b"%d" % pid)
    except OSError:
        return False
    finally:
        leaf.close()
    return True


def not_served(name: str, unified: Directory | None) -> UnsupportedError:
    """Return the error for a controller that no hierarchy serves: it says what would provide it.

    Args:
        name: the controller.
        unified: the base on version 2, if there is one.
    """
    old = "blkio" if name == "io" else name
    offered = offered_controllers()
    if name not in CONTROLLERS:
        hint = f"there is no such controller; the kernel knows {', '.join(CONTROLLERS)}"
    elif old not in offered:
        hint = f"the kernel was built or booted without it; see CONFIG_CGROUP_{old.upper()} and cgroup_disable="
    elif offered[old]:
        mounted = next((one.mountpoint for one in read_hierarchies() if old in one.controllers), None)
        hint = f"no mount of its hierarchy is visible here; mount -t cgroup -o {old}, as root"
        if mounted is not None:
            hint = f"its mount on {mounted} is not writable here: run as root, mount it writable, or do without {name}"
    elif unified is not None and name not in _ONLY_VERSION_1:
        hint = f"{unified.path} was not handed it; write +{name} to cgroup.subtree_control of the groups above, or "
        hint += "set Delegate=yes in the systemd unit"
    elif unified is None and name not in _ONLY_VERSION_1 and any(one.version == 2 for one in read_hierarchies()):
        hint = "the caller's group of version 2 is not writable here: run as root, or inside a delegated subtree "
        hint += "(systemd-run --user --scope -p Delegate=yes ...)"
    else:
        hint = f"the kernel has it but nothing mounts it: mount=True mounts it privately, or mount -t cgroup -o {old}"
    return UnsupportedError("find controller", ENODEV, name, hint)


def _open_bases(*, own: bool = True, pid: int | None = None) -> list[Directory]:
    bases: list[Directory] = []
    for hierarchy in read_hierarchies("self" if pid is None else pid):
        if hierarchy.version == 1 and not hierarchy.controllers:
            continue  # a named hierarchy limits nothing
        base = _open_base(hierarchy, own=own)
        if base is not None:
            bases.append(base)
    return bases


def _open_base(hierarchy: Hierarchy, *, own: bool) -> Directory | None:
    """Open this process's group in a hierarchy, or its root; None where it is out of sight or may not be written."""
    path = hierarchy.locate(hierarchy.own) if own else hierarchy.mountpoint
    if path is None:
        return None
    try:
        fd = high(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return None
    base = Directory(fd, path, hierarchy.version, hierarchy.controllers)
    if not os.access(".", os.W_OK, dir_fd=fd, effective_ids=True):
        base.close()
        return None
    if own and path.endswith("/supervisor") and hierarchy.version == 2:  # where an earlier step aside has put us
        above = high(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd))
        base.close()
        return Directory(above, path.rpartition("/")[0], hierarchy.version)
    return base


def _descend(base: Directory, parts: list[str], controllers: frozenset[str] = _ACCOUNTED) -> Directory:
    """Open the group below, made with its parents where it is not there, and close the base."""
    for part in parts:
        above = base
        try:
            if above.version == 2:
                above.enable(controllers & above.available())
            base = above.make(part, exist_ok=True)
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
    """Give a new version 1 cpuset the parent's lists; a group without them takes no process."""
    for kind in ("cpuset.cpus", "cpuset.mems"):
        if not (group.read(kind) or "").strip():
            group.write(kind, (group.read(f"../{kind}") or "").strip().encode())


_lock = allocate_lock()
_current: Tree | None = None
_beneath: dict[str, Tree] = {}
_delegated: tuple[int, Tree] | None = None
