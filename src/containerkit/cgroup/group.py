"""CGroup: one group in every hierarchy that it needs, as one object."""

from __future__ import annotations

import itertools
import os
from _thread import allocate_lock
from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Final, Literal, Self

from containerkit.cgroup.directory import Directory, refused
from containerkit.cgroup.limits import Limits
from containerkit.cgroup.making import make, resolved, rooms
from containerkit.cgroup.owner import Owner
from containerkit.cgroup.quantities import group_name
from containerkit.cgroup.tree import Tree
from containerkit.errors import SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from weakref import ReferenceType

    from containerkit.cgroup.events import Events
    from containerkit.cgroup.perf import PerfCounters
    from containerkit.cgroup.pressure import PressureReader, PressureTrigger
    from containerkit.cgroup.stats import Stats, Usage

__all__ = ["CGroup"]

_NO_LIMITS: Final = Limits()
_numbers = itertools.count(1)


class CGroup:
    """A group of processes that is limited, counted, frozen and killed together.

    It has one directory in each hierarchy that serves it; on version 2 that is one. As a context manager it kills what
    is still in it and removes itself at the end. It owns a descriptor of each directory.

    Make one with :meth:`create`, :meth:`create_leaf`, :meth:`open` or :meth:`current`.

    Source: cgroups(7).
    """

    __slots__ = (
        "_attach",
        "_events",
        "_former_kills",
        "_inner",
        "_joined",
        "_maker",
        "_owned",
        "_parts",
        "_removing",
        "_state",
        "limits",
        "name",
    )

    def __init__(
        self,
        name: str,
        parts: tuple[Directory, ...],
        limits: Limits,
        *,
        owned: bool,
        others: tuple[Directory, ...] = (),
    ) -> None:
        self.name = name
        self.limits = limits
        self._parts = parts
        self._joined = (*others, *parts)
        self._owned = owned
        self._maker = os.getpid()
        self._attach: tuple[int, ...] = ()
        self._inner: Tree | None = None
        self._events: list[ReferenceType[Events]] = []
        self._former_kills = 0
        self._removing = allocate_lock()
        self._state: Literal["open", "removed", "closed"] = "open"

    @classmethod
    def create(
        cls,
        name: str | None = None,
        limits: Limits | None = None,
        *,
        parent: str | None = None,
        controllers: Iterable[str] = (),
        owned: bool = True,
        mount: bool = False,
        systemd: bool | None = None,
    ) -> CGroup:
        """Make a group with its limits in force, with no process in it.

        Args:
            name: letters, digits and ``_ . : @ + -``. Default a number.
            limits: what it may use. Default no limits.
            parent: the group to make it in, an absolute path as /proc/PID/cgroup shows it, made if need be. Default
                the caller's own group in each hierarchy.
            controllers: further controllers to join, for the sake of their reports, such as ``["memory", "io"]``.
            owned: whether it goes with this process: its name tells the owner, and what a killed owner left is swept.
                False takes ``name`` literally and leaves the removal to whoever opens it later.
            mount: whether a version 1 hierarchy that the kernel offers but nothing mounts is mounted privately.
            systemd: whether the group goes into a delegated scope that systemd is asked for, once in a process. Default
                when the caller's own group can't have such groups and systemd is the machine's init.

        Raises:
            SpecError: the name or the parent can't be meant.
            StateError: there is a group of that name.
            UnsupportedError: no hierarchy enforces one of the limits; the hint says what would provide it.
            SetupError: the kernel refused something. What had been made by then is gone again.
        """
        name = str(next(_numbers)) if name is None else group_name(name)
        wish = resolved(limits or _NO_LIMITS)
        label = Owner.current().label(name) if owned else name
        place = (wish, frozenset(controllers), parent)
        try:
            parts = make(rooms(*place, mount=mount, systemd=systemd), label)
        except FileNotFoundError:
            # A base can vanish: this process was moved and its former group removed. Look once more, then give up.
            try:
                parts = make(rooms(*place, mount=mount, systemd=systemd, refresh=True), label)
            except FileNotFoundError as error:
                raise refused("mkdir", error, f"{error.filename}/{label}", "the parent group is gone") from None
        return cls(label, parts, wish, owned=owned)

    @classmethod
    def current(cls) -> CGroup:
        """Return the group that this process is in. Removing it is not for its own processes to do.

        Source: /proc/self/cgroup in cgroups(7).
        """
        return cls.of("self")

    @classmethod
    def of(cls, pid: int | Literal["self"]) -> CGroup:
        """Return the group that a process is in.

        Raises:
            StateError: there is no such process, or its groups are out of sight.
        """
        from containerkit._linux.cgroupfs import read_hierarchies

        try:
            found = [(hierarchy, hierarchy.locate(hierarchy.own)) for hierarchy in read_hierarchies(pid)]
        except OSError:
            raise StateError(f"process {pid}: not there") from None
        return cls._from_paths(
            str(pid), [(where, path) for where, path in found if path is not None and not where.name]
        )

    @classmethod
    def open(cls, path: str) -> CGroup:
        """Return a group that is there.

        Args:
            path: as /proc/PID/cgroup shows it (``"/kubepods/pod1"``), the same in each hierarchy; those that have no
                such group are left out.

        Raises:
            SpecError: not absolute, or with ``..`` in it.
            StateError: there is no such group.
        """
        from containerkit._linux.cgroupfs import read_hierarchies

        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise SpecError(f"path: {path!r} is not the absolute path of a group")
        found = [(hierarchy, hierarchy.locate(path)) for hierarchy in read_hierarchies() if not hierarchy.name]
        return cls._from_paths(path, [(where, place) for where, place in found if place is not None])

    @classmethod
    def _from_paths(cls, what: str, found: list[tuple[object, str]]) -> CGroup:
        parts: list[Directory] = []
        for hierarchy, path in found:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            parts.append(Directory(fd, path, hierarchy.version, hierarchy.controllers))  # type: ignore[attr-defined]
        if not parts:
            raise StateError(f"{what}: there is no such group in any hierarchy")
        parts.sort(key=lambda part: part.version)
        return cls(parts[-1].path.rpartition("/")[2] or "/", tuple(parts), _NO_LIMITS, owned=False)

    def create_leaf(
        self,
        name: str | None = None,
        limits: Limits | None = None,
        *,
        controllers: Iterable[str] = (),
        without: Iterable[str] = (),
    ) -> CGroup:
        """Make a group within this one, in the same hierarchies.

        On version 2 a group that has processes of its own can't hand controllers on: add processes to leaves only.

        Args:
            name: as for :meth:`create`, taken literally. Default a number.
            limits: what the leaf may use within what this group may use.
            controllers: on version 2, further ones to hand down where they are at hand, for the sake of their reports.
            without: on version 1, controllers whose hierarchies have no group for the leaf: what joins the leaf joins
                this group there. Default none.

        Raises:
            SpecError, StateError, UnsupportedError, SetupError: as for :meth:`create`.
        """
        self._check_open()
        name = f"leaf-{next(_numbers)}" if name is None else group_name(name)
        wish = resolved(limits or _NO_LIMITS)
        try:
            self._inner = self._inner or Tree(self._parts)
            plan = self._inner.plan_within(wish, frozenset(controllers))
            spared = {part for part in self._parts if part.names and part.names <= frozenset(without)}
            parts = make(tuple(room for room in plan if room[0] not in spared), name)
        except FileNotFoundError as error:
            raise refused("mkdir", error, f"{self.path}/{name}", "this group is gone") from None
        others = tuple(part for part in self._parts if part in spared)
        return CGroup(name, parts, wish, owned=self._owned, others=others)

    # What it is ----------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        kinds = ", ".join(",".join(sorted(part.names)) or "version 2" for part in self._parts)
        return f"<CGroup {self.name} {self._state} ({kinds})>"

    @property
    def path(self) -> str:
        """Its directory, of version 2 if it is there, else of the first hierarchy."""
        return self._parts[-1].path

    @property
    def paths(self) -> dict[str, str]:
        """Its directory for each controller of version 1, and for version 2 by the empty name."""
        return {name: part.path for part in self._parts for name in (part.names or {""})}

    @property
    def directory_fd(self) -> int | None:
        """A descriptor of the version 2 directory, for CLONE_INTO_CGROUP; None where it has none. Not the caller's."""
        last = self._parts[-1]
        return last.fd if last.version == 2 and last.fd >= 0 else None

    def attach_files(self, *, into: bool = False) -> tuple[int, ...]:
        """Return descriptors, open for writing, of the cgroup.procs files; a process that writes ``0`` joins.

        They stay the group's own and are closed with it.

        Args:
            into: whether the version 2 directory is left out because the process is cloned into it.
        """
        self._check_open()
        if not self._attach:
            self._attach = tuple(part.open_file("cgroup.procs", os.O_WRONLY) for part in self._joined)
        return self._attach[:-1] if into and self.directory_fd is not None else self._attach

    def join_directories(self) -> tuple[int, ...]:
        """Return descriptors of the version 1 directories; a thread that writes ``0`` to ``tasks`` in each joins.

        For a process of one thread that is about to become something else: a write to cgroup.procs takes a lock of the
        whole machine, and waits for an RCU grace period, some milliseconds, when nobody has taken it lately. The
        version 2 directory is left out: a process is cloned into it (:attr:`directory_fd`).

        They stay the group's own and are closed with it.

        Source: cgroup_procs_write_start() in the kernel's kernel/cgroup/cgroup.c.
        """
        self._check_open()
        return tuple(part.fd for part in self._joined if part.version == 1)

    def processes(self) -> frozenset[int]:
        """Return the pids of all processes in it and in the groups below it, as this pid namespace numbers them."""
        from containerkit.cgroup.members import processes

        self._check_open()
        return processes(self._parts)

    def part(self, controller: str) -> Directory | None:
        """Return its directory in the hierarchy of a controller, None where it has none."""
        old = "blkio" if controller == "io" else controller
        for part in self._parts:
            if old in part.names or (part.version == 2 and controller in part.available()):
                return part
        return None

    @property
    def parts(self) -> tuple[Directory, ...]:
        """Its directories, version 2 last."""
        return self._parts

    @property
    def unified(self) -> Directory | None:
        """Its version 2 directory."""
        return self._parts[-1] if self._parts[-1].version == 2 else None

    # What it does --------------------------------------------------------------------------------------------------

    def add(self, pid: int) -> None:
        """Move a process with all of its threads into the group; 0 is the caller.

        Raises:
            SpecError: a negative number.
            SetupError: the kernel refused it; ESRCH when the process is gone.

        Source: cgroup.procs in cgroups(7).
        """
        if isinstance(pid, bool) or not isinstance(pid, int) or pid < 0:
            raise SpecError(f"pid: {pid!r} is no process")
        for fd, part in zip(self.attach_files(), self._joined, strict=True):
            try:
                os.write(fd, b"%d" % pid)
            except OSError as error:
                raise refused("write", error, f"{pid} to {part.path}/cgroup.procs") from None

    def update(self, limits: Limits) -> None:
        """Change the limits; what is None stays. Either all of them hold afterwards or the former ones do.

        Raises:
            SpecError: none of it can be meant here.
            UnsupportedError: a limit of a controller that the group is not in.
            SetupError: the kernel refused a value.
        """
        from containerkit.cgroup.change import update

        self._check_open()
        self.limits = update(self, limits)

    def freeze(self, timeout_s: float = 10.0) -> None:
        """Stop all of its processes, and return when they have stopped.

        Args:
            timeout_s: how long to wait, in seconds.

        Raises:
            UnsupportedError: the group has no freezer.
            StateError: a process has not stopped in time; the group is thawed again.

        Source: cgroup.freeze in Documentation/admin-guide/cgroup-v2.rst; freezer-subsystem.rst.
        """
        from containerkit.cgroup.controllers.freezer import freeze

        self._check_open()
        freeze(self._freezer(), timeout_s)

    @property
    def can_freeze(self) -> bool:
        """Whether one of its directories has a freezer."""
        return any("freezer" in p.names or (p.version == 2 and p.exists("cgroup.freeze")) for p in self._parts)

    def thaw(self) -> None:
        """Let its processes go on.

        Raises:
            UnsupportedError: the group has no freezer.
        """
        from containerkit.cgroup.controllers.freezer import thaw

        self._check_open()
        thaw(self._freezer())

    def _freezer(self) -> Directory:
        for part in reversed(self._parts):
            if "freezer" in part.names or (part.version == 2 and part.exists("cgroup.freeze")):
                return part
        hint = 'join the version 1 freezer with controllers=["freezer"], or use kernel 5.2 with version 2'
        raise UnsupportedError("freeze", EOPNOTSUPP, self.path, hint)

    def kill(self, signal: int = 9) -> None:
        """Send a signal to every process in it and below, so that none slips away by forking.

        Args:
            signal: its number. Default SIGKILL.

        Source: cgroup.kill in Documentation/admin-guide/cgroup-v2.rst.
        """
        from containerkit.cgroup.members import kill

        self._check_open()
        kill(self._parts, signal)

    def wait_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until no process is in it or below; return whether that came in time.

        Args:
            timeout_s: seconds. Default forever.
        """
        from containerkit.cgroup.members import wait_empty

        self._check_open()
        return wait_empty(self._parts, timeout_s)

    def remove(self, timeout_s: float = 10.0, *, kill: bool = False) -> None:
        """Wait for its last process, remove it with all groups below, and close it. May be called twice.

        Args:
            timeout_s: how long to wait for processes, in seconds.
            kill: whether processes that are still in it are killed first. Default False.

        Raises:
            CleanupError: processes were still there when the time was up; it says which, and the group stays.
        """
        if self._state != "open":
            return
        for part in self._parts:  # the usual case: empty, with no groups below
            try:
                part.remove_self()
            except OSError:
                break
        else:
            self._end("removed")
            return
        from containerkit.cgroup.members import remove

        if kill:
            self.kill()
        remove(self._parts, timeout_s)
        self._end("removed")

    def retire(self) -> bool:
        """Remove it if nothing is in it any more, else leave it to the removal of the group above; close it either way.

        For the leaf of a run that may have left something behind. May be called twice.

        Returns:
            Whether it is gone.
        """
        if self._state != "open":
            return self._state == "removed"
        try:
            for part in self._parts:
                part.remove_self()
        except OSError:
            self._end("closed")
            return False
        self._end("removed")
        return True

    def remove_leaf(self, name: str, oom_kills: int = 0) -> bool:
        """Remove a group within this one, if nothing is in it; return whether there is none of that name any more.

        Args:
            name: of the leaf.
            oom_kills: how many of its processes were killed for memory. Version 1 counts each in the victim's own group
                only, and so these are added to what this group reports from now on. Default 0.
        """
        self._check_open()
        with self._removing:
            left = [part for part in self._parts if not part.remove(name)]
            if not left and any("memory" in part.names for part in self._parts):
                self._former_kills += oom_kills
        return not left

    def close(self) -> None:
        """Close its descriptors and leave the group as it is. May be called twice."""
        if self._state == "open":
            self._end("closed")

    def _end(self, state: Literal["removed", "closed"]) -> None:
        self._state = state
        files, self._attach = self._attach, ()
        for fd in files:
            os.close(fd)
        for known in self._events:
            events = known()
            if events is not None:
                events.stop()
        for part in self._parts:
            part.close()

    def _check_open(self) -> None:
        if self._state != "open":
            raise StateError(f"group {self.name}: it is {self._state}")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state != "open":
            return
        if not self._owned or self._maker != os.getpid():  # a fork's child leaves it to its parent
            self.close()
            return
        try:
            self.kill()
            self.remove()
        finally:
            self.close()

    # What it reports -----------------------------------------------------------------------------------------------

    def usage(self) -> Usage:
        """Return what its processes have used up to now, cheaply: for the end of a run."""
        from containerkit.cgroup.usage import usage

        self._check_open()
        with self._removing:
            return usage(self._parts, self._former_kills)

    def stats(self) -> Stats:
        """Return the report of every controller it is in."""
        from containerkit.cgroup.usage import stats

        self._check_open()
        with self._removing:
            return stats(self._parts, self._former_kills)

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed one of its processes for the group's memory."""
        return bool(self.oom_kills)

    @property
    def oom_kills(self) -> int | None:
        """How many of its processes the kernel killed for memory; None without a memory controller."""
        from containerkit.cgroup.usage import oom_kills

        self._check_open()
        with self._removing:
            return oom_kills(self._parts, self._former_kills)

    @property
    def pressure(self) -> PressureReader:
        """The group's pressure stall information: ``.cpu``, ``.memory``, ``.io``, and triggers."""
        from containerkit.cgroup.pressure import PressureReader

        self._check_open()
        return PressureReader(self.unified, self.path)

    def events(self, kinds: Iterable[str] | None = None, *, triggers: Iterable[PressureTrigger] = ()) -> Events:
        """Return what happens to the group from now on, for ``for``, ``async for`` and ``with``.

        Args:
            kinds: which of ``oom``, ``oom_kill``, ``memory_high``, ``memory_max``, ``pids_max``, ``frozen``,
                ``thawed``, ``populated``, ``empty``. Default all that this group can tell.
            triggers: pressure to be told of too.

        Raises:
            SpecError: an unknown kind.
            UnsupportedError: a kind that was asked for and that no file of the group tells.
        """
        from weakref import ref

        from containerkit.cgroup.events import Events

        self._check_open()
        events = Events(self, kinds, triggers)
        self._events = [known for known in self._events if known() is not None]
        self._events.append(ref(events))
        return events

    def perf_counters(self, events: Iterable[str] | None = None) -> PerfCounters:
        """Count hardware and software events of all of its processes from now on; close it at the end.

        Args:
            events: such as ``["task-clock", "context-switches", "page-faults", "cycles", "instructions"]``. Default
                those that this machine has of them.

        Raises:
            UnsupportedError: the group is in no perf_event hierarchy, or the machine has not the event.
            SetupError: the kernel refused it.

        Source: perf_event_open(2), PERF_FLAG_PID_CGROUP.
        """
        from containerkit.cgroup.perf import PerfCounters

        self._check_open()
        return PerfCounters(self, events)
