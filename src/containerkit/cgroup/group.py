"""CGroup: one group in every hierarchy that it needs, as one object."""

from __future__ import annotations

import contextlib
import itertools
import os
from errno import EOPNOTSUPP
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Self

from containerkit.cgroup.create import create_directories, make, resolved
from containerkit.cgroup.directory import Directory, OpenedDirectory, refused
from containerkit.cgroup.hierarchy import Tree
from containerkit.cgroup.limits import Limits
from containerkit.cgroup.owner import Owner
from containerkit.cgroup.quantities import group_name
from containerkit.cgroup.view import GroupView
from containerkit.descriptors import close_all, keep
from containerkit.errors import SpecError, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from containerkit._linux.cgroupfs import Hierarchy
    from containerkit.cgroup.events import EventKind, Events
    from containerkit.cgroup.perf import PerfCounters
    from containerkit.cgroup.pressure import PressureTrigger
    from containerkit.options import ListOf

__all__ = ["CGroup"]

_NO_LIMITS: Final = Limits()
_numbers = itertools.count(1)


class CGroup(GroupView):
    """A group of processes that is limited, counted, frozen and killed together.

    It has one directory in each hierarchy that serves it. On version 2 this is one directory. As a context manager it
    kills the remaining processes and removes the group at the end. It owns a descriptor of each directory.

    Get one with :meth:`create`, :meth:`create_leaf`, :meth:`open`, :meth:`of` or :meth:`current`.

    Source: cgroups(7).
    """

    __slots__ = ()

    @classmethod
    def create(
        cls,
        name: str | None = None,
        limits: Limits | None = None,
        *,
        parent: str | None = None,
        controllers: ListOf[str] = (),
        owned: bool = True,
        mount: bool = False,
        systemd: bool | None = None,
        into: list[CGroup] | None = None,
    ) -> CGroup:
        """Create a group with its limits in force. It contains no process.

        Args:
            name: letters, digits and ``_ . : @ + -``. Default: a number.
            limits: the limits. Default: none.
            parent: the group in which to create it, an absolute path as in /proc/PID/cgroup. It is created if it does
                not exist. Default: the caller's own group in each hierarchy.
            controllers: more controllers to join for their reports, such as ``["memory", "io"]``.
            owned: whether the group belongs to this process. The name then contains the owner, and :func:`sweep`
                removes the groups of owners that were killed. With False, ``name`` is used literally, and the process
                that opens the group later removes it. Default True.
            mount: whether to mount, privately, a version 1 hierarchy that the kernel offers and that is not mounted.
            systemd: whether to create the group in a delegated scope, which each process requests from systemd once.
                Default: only if the caller's own group can't have such groups and systemd is the init of the machine.
            into: a list to which the group is appended before anything is created. If a signal handler raises
                before the caller has stored the result, the caller finds the group there and removes it. Default None.

        Raises:
            SpecError: the name or the parent is invalid.
            StateError: a group of that name exists.
            UnsupportedError: no hierarchy enforces one of the limits. The hint says what would provide it.
            SetupError: the kernel refused an operation. What had been created is removed again.
        """
        name = str(next(_numbers)) if name is None else group_name(name)
        wish = resolved(limits or _NO_LIMITS)
        label = Owner.current().label(name) if owned else name
        group = cls(label, [], wish, owned=owned)
        if into is not None:
            into.append(group)
        create_directories(group._parts, label, wish, frozenset(controllers), parent, mount=mount, systemd=systemd)
        return group

    @classmethod
    def current(cls) -> CGroup:
        """Return the group that contains this process. Processes in it can't remove it.

        Source: /proc/self/cgroup in cgroups(7).
        """
        return cls.of("self")

    @classmethod
    def of(cls, pid: int | Literal["self"]) -> CGroup:
        """Return the group that contains a process.

        Raises:
            StateError: the process does not exist, or its groups are not visible here.
        """
        from containerkit._linux.cgroupfs import read_hierarchies

        try:
            found = [(hierarchy, hierarchy.locate(hierarchy.own)) for hierarchy in read_hierarchies(pid)]
        except OSError:
            raise StateError(f"process {pid}: it does not exist") from None
        return cls._from_paths(
            str(pid), [(where, path) for where, path in found if path is not None and not where.name]
        )

    @classmethod
    def open(cls, path: str) -> CGroup:
        """Open an existing group.

        Args:
            path: as in /proc/PID/cgroup (``"/kubepods/pod1"``), the same path in each hierarchy. Hierarchies without
                such a group are left out.

        Raises:
            SpecError: the path is not absolute, or contains ``..``.
            StateError: the group does not exist.
        """
        from containerkit._linux.cgroupfs import read_hierarchies

        if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise SpecError(f"path: {path!r} is not the absolute path of a group")
        found = [(hierarchy, hierarchy.locate(path)) for hierarchy in read_hierarchies() if not hierarchy.name]
        return cls._from_paths(path, [(where, place) for where, place in found if place is not None])

    @classmethod
    def _from_paths(cls, what: str, found: list[tuple[Hierarchy, str]]) -> CGroup:
        parts: list[Directory] = []
        for hierarchy, path in found:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                continue
            parts.append(OpenedDirectory(fd, path, hierarchy.version, hierarchy.controllers))
        if not parts:
            raise StateError(f"{what}: the group does not exist in any hierarchy")
        parts.sort(key=lambda part: part.version)
        return cls(parts[-1].path.rpartition("/")[2] or "/", parts, _NO_LIMITS, owned=False)

    def create_leaf(
        self,
        name: str | None = None,
        limits: Limits | None = None,
        *,
        controllers: ListOf[str] = (),
        without: ListOf[str] = (),
        into: list[CGroup] | None = None,
    ) -> CGroup:
        """Create a group within this one, in the same hierarchies.

        On version 2 a group with processes of its own can't enable controllers for child groups. Therefore add
        processes only to leaves.

        Args:
            name: as for :meth:`create`, used literally. Default: a number.
            limits: the limits of the leaf, in addition to the limits of this group.
            controllers: on version 2, more controllers to enable for the leaf's reports, if they are available.
            without: on version 1, controllers for which the leaf gets no group. A process that joins the leaf joins
                this group in their hierarchies. Default: none.
            into: as for :meth:`create`.

        Raises:
            SpecError, StateError, UnsupportedError, SetupError: as for :meth:`create`.
        """
        self._check_open()
        name = f"leaf-{next(_numbers)}" if name is None else group_name(name)
        wish = resolved(limits or _NO_LIMITS)
        try:
            self._inner = self._inner or Tree(self.parts)
            plan = self._inner.plan_within(wish, frozenset(controllers))
            spared = {part for part in self._parts if part.names and part.names <= frozenset(without)}
            others = tuple(part for part in self._parts if part in spared)
            leaf = CGroup(name, [], wish, owned=self._owned, others=others)
            if into is not None:
                into.append(leaf)
            make(leaf._parts, tuple(room for room in plan if room[0] not in spared), name)
        except FileNotFoundError as error:
            raise refused("mkdir", error, f"{self.path}/{name}", "this group no longer exists") from None
        return leaf

    # Joining -------------------------------------------------------------------------------------------------------

    def attach_files(self, *, into: bool = False) -> tuple[int, ...]:
        """Return descriptors of the cgroup.procs files, open for writing. A process that writes ``0`` to each joins.

        The group still owns the descriptors and closes them.

        Args:
            into: whether to leave out the version 2 directory, because the process is cloned into it.
        """
        self._check_open()
        joined = self._joined
        for part in joined[len(self._attach) :]:
            keep(self._attach, partial(os.open, dir_fd=part.fd), "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        return tuple(self._attach[:-1] if into and self.directory_fd is not None else self._attach)

    def join_directories(self) -> tuple[int, ...]:
        """Return descriptors of the version 1 directories. A thread that writes ``0`` to ``tasks`` in each joins.

        This is for a process with one thread that is about to execute a program. A write to cgroup.procs takes a lock
        of the whole machine, and waits some milliseconds for an RCU grace period if nobody has taken the lock lately.
        The version 2 directory is left out: a process is cloned into it (:attr:`directory_fd`).

        The group still owns the descriptors and closes them.

        Source: cgroup_procs_write_start() in the kernel's kernel/cgroup/cgroup.c.
        """
        self._check_open()
        return tuple(part.fd for part in self._joined if part.version == 1)

    def limiting_memory(self) -> tuple[int, ...]:
        """Return the positions of the memory controller's directories in :meth:`join_directories`."""
        old = [part.names for part in self._joined if part.version == 1]
        return tuple(number for number, names in enumerate(old) if "memory" in names)

    # Operations ----------------------------------------------------------------------------------------------------

    def add(self, pid: int) -> None:
        """Move a process with all its threads into the group. 0 is the caller.

        Raises:
            SpecError: the pid is negative.
            SetupError: the kernel refuses it. The error is ESRCH if the process has ended.

        Source: cgroup.procs in cgroups(7).
        """
        if isinstance(pid, bool) or not isinstance(pid, int) or pid < 0:
            raise SpecError(f"pid: {pid!r} is not a process id")
        for fd, part in zip(self.attach_files(), self._joined, strict=True):
            try:
                os.write(fd, b"%d" % pid)
            except OSError as error:
                raise refused("write", error, f"{pid} to {part.path}/cgroup.procs") from None

    def update(self, limits: Limits) -> None:
        """Change the limits. A limit that is None stays unchanged. If a change fails, the previous limits are restored.

        Raises:
            SpecError: a limit is invalid for this group.
            UnsupportedError: the group is not in the controller of a limit.
            SetupError: the kernel refuses a value.
        """
        from containerkit.cgroup.update import update

        self._check_open()
        self.limits = update(self.parts, self.limits, limits)

    def freeze(self, timeout: float = 10.0) -> None:
        """Stop all processes of the group. Return when they have stopped.

        Args:
            timeout: how long to wait, in seconds.

        Raises:
            UnsupportedError: the group has no freezer.
            StateError: a process has not stopped in time. The group is thawed again.

        Source: cgroup.freeze in Documentation/admin-guide/cgroup-v2.rst; freezer-subsystem.rst.
        """
        from containerkit.cgroup.controllers.freezer import freeze

        self._check_open()
        freeze(self._freezer(), timeout)

    @property
    def can_freeze(self) -> bool:
        """Whether one of the directories has a freezer."""
        return any("freezer" in p.names or (p.version == 2 and p.exists("cgroup.freeze")) for p in self._parts)

    def thaw(self) -> None:
        """Let the processes continue.

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
        """Send a signal to every process in the group and below it. No process can escape by forking.

        Args:
            signal: its number. Default SIGKILL.

        Source: cgroup.kill in Documentation/admin-guide/cgroup-v2.rst.
        """
        from containerkit.cgroup.processes import kill

        self._check_open()
        kill(self.parts, signal)

    def wait_empty(self, timeout: float | None = None) -> bool:
        """Wait until no process is in the group or below it. Return False if the timeout expires first.

        Args:
            timeout: in seconds. Default: no timeout.
        """
        from containerkit.cgroup.processes import wait_empty

        self._check_open()
        return wait_empty(self.parts, timeout)

    def remove(self, timeout: float = 10.0, *, kill: bool = False) -> None:
        """Wait for the last process, remove the group with all groups below it, and close it. May be called twice.

        Args:
            timeout: how long to wait for processes, in seconds.
            kill: whether to kill the remaining processes first. Default False.

        Raises:
            CleanupError: processes remained when the timeout expired. The error names them, and the group stays.
        """
        if self._state != "open":
            self._end(self._state)
            return
        self._leave_partition()
        for part in self._parts:  # the usual case: the group is empty and has no child groups
            try:
                part.remove_self()
            except OSError:
                break
        else:
            self._end("removed")
            return
        from containerkit.cgroup.processes import remove

        if kill:
            self.kill()
        remove(self.parts, timeout)
        self._end("removed")

    def _leave_partition(self) -> None:
        """Return the processors of a partition now. The kernel does so only some time after the removal."""
        if self.limits.cpuset_partition in {"root", "isolated"} and self.unified is not None:
            with contextlib.suppress(OSError):  # it has been removed already
                self.unified.write("cpuset.cpus.partition", b"member")

    def retire(self) -> bool:
        """Remove the group if it is empty, otherwise leave it to the removal of its parent. Close it in both cases.

        This is for the leaf of a run that may have left processes behind. May be called twice.

        Returns:
            Whether the group is removed.
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
        """Remove a group within this one if it is empty. Return True if no group of that name exists afterwards.

        Args:
            name: the name of the leaf.
            oom_kills: how many of its processes were killed for lack of memory. Version 1 counts a kill only in the
                group of the victim, so this number is added to what this group reports from now on. Default 0.
        """
        self._check_open()
        with self._removing:
            left = [part for part in self._parts if not part.remove(name)]
            if not left and any("memory" in part.names for part in self._parts):
                self._former_kills += oom_kills
        return not left

    def close(self) -> None:
        """Close the descriptors and leave the group as it is. May be called twice."""
        self._end("closed" if self._state == "open" else self._state)

    def _end(self, state: Literal["removed", "closed"]) -> None:
        """Release the group's resources. May be called again if it was interrupted."""
        self._state = state
        close_all(self._attach)
        for known in self._events:
            events = known()
            if events is not None:
                events.stop()
        for part in self._parts:
            part.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state != "open":
            return
        if not self._owned or self._maker != os.getpid():  # after fork(2) the group belongs to the parent only
            self.close()
            return
        try:
            self.kill()
            self.remove()
        finally:
            self.close()

    # Events and counters -------------------------------------------------------------------------------------------

    def events(self, kinds: Iterable[EventKind] | None = None, *, triggers: Iterable[PressureTrigger] = ()) -> Events:
        """Return the events of the group from now on, for use with ``for``, ``async for`` and ``with``.

        Args:
            kinds: which of ``oom``, ``oom_kill``, ``memory_high``, ``memory_max``, ``pids_max``, ``frozen``,
                ``thawed``, ``populated``, ``empty``. Default: all that this group can report.
            triggers: pressure thresholds to report as well. Default: none.

        Raises:
            SpecError: an unknown kind.
            UnsupportedError: a requested kind is reported by no file of the group.
        """
        from weakref import ref

        from containerkit.cgroup.events import Events

        self._check_open()
        events = Events(self, kinds, triggers)
        self._events = [known for known in self._events if known() is not None]
        self._events.append(ref(events))
        return events

    def perf_counters(self, events: ListOf[str] | None = None) -> PerfCounters:
        """Count hardware and software events of all processes of the group from now on. Close the result at the end.

        Args:
            events: such as ``["task-clock", "context-switches", "page-faults", "cycles", "instructions"]``. Default:
                those of these five that the machine supports.

        Raises:
            UnsupportedError: the group is in no perf_event hierarchy, or the machine does not support an event.
            SetupError: the kernel refuses it.

        Source: perf_event_open(2), PERF_FLAG_PID_CGROUP.
        """
        from containerkit.cgroup.perf import PerfCounters

        self._check_open()
        return PerfCounters(self, events)
