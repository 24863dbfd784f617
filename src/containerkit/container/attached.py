"""Containers that another process started: a view of a recorded container."""

from __future__ import annotations

import os

from containerkit import late
from containerkit.compile.facts import Host
from containerkit.container.join import JoinContext
from containerkit.container.lifecycle import Container
from containerkit.container.starting import wait_for_others
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Kind, Namespaces
from containerkit.process.process import Process
from containerkit.process.stdio import Streams
from containerkit.spec.command import Command
from containerkit.spec.container import CONFINEMENT
from containerkit.spec.idmap import IdMapping
from containerkit.spec.rootfs import RootFS
from containerkit.start.cgroup import Membership
from containerkit.start.context import StartContext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, NoReturn, Self, Unpack

    from containerkit._linux.cgroupfs import Hierarchy
    from containerkit.cgroup import CGroup, Limits
    from containerkit.cgroup.directory import Directory
    from containerkit.container.changes import Change
    from containerkit.container.live import State
    from containerkit.options import AnyPopenOptions, ConfinementOptions, ListOf, Word
    from containerkit.spec.container import Spec

__all__ = ["Attached", "attach", "group_at"]


class Attached(Container):
    """A container that another process owns, made by :meth:`containerkit.Container.attach`.

    ``stop()``, and the end of ``with``, only detach from it: neither the container nor the commands started in it end.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - as in attach
        root: str | None = None,
        **confinement: Unpack[ConfinementOptions],
    ) -> None:
        if unknown := sorted(set(confinement) - CONFINEMENT):
            raise SpecError(f"attach: unknown argument {unknown[0]!r}; there are {', '.join(sorted(CONFINEMENT))}")
        record = late.load(late.KEEPERS["oci"]).find(id, root)
        self._adopt(record, lambda: {"rootfs": RootFS.dir(record.rootfs or "/"), **confinement})

    def _adopt(self, record: Any, fields: Callable[[], dict[str, Any]]) -> None:
        """Become a view of a recorded container. This object owns the record and its pidfd."""
        group: CGroup | None = None
        try:
            super().__init__(namespaces=_differing(record.pid), **fields())
            group = group_at(record.id, record.groups)
            self._context = _AttachedContext(self.spec, record.pid, group)
        except BaseException:
            if group is not None:
                group.close()
            os.close(record.pidfd)
            record.close()
            raise
        self.id = record.id
        self._record = record
        self._init = Process(Command(argv=["init"]), record.pid, record.pidfd, Streams([], [None, None, None], []))
        self._join_context = JoinContext(self._init, self._context)

    def __enter__(self) -> Self:
        self._running()
        return self

    def stop(self, grace_s: float = 0, *, stop_signal: int | None = None) -> None:  # noqa: ARG002 - there is no end
        """Detach from it. It continues to run.

        May be called twice, and has no effect in a forked child.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._stopped = True
            wait_for_others(self._idle, self._starting)
            init, self._init = self._init, None
            if init is None:
                return
            os.close(init.fileno())
            if self._join_context is not None:
                self._join_context.close()
            self._running_context().release()
            self._record.close()

    @property
    def state(self) -> State:
        """``"created"`` before its start, ``"running"``, ``"paused"``, ``"stopped"``.

        ``"detached"`` after :meth:`stop`.
        """
        if self._init is None:
            return "detached"
        status: State = self._record.status()
        return status

    def _admit(self) -> Process[Any]:
        init = super()._admit()
        state = self.state
        if state == "stopped":
            raise StateError(f"{self!r}: it has stopped")
        if state == "paused":  # a process that joins its group would be frozen during its start
            remedy = self._remedy("resume")
            raise StateError(f"{self!r}: nothing can be started in it while it is paused: {remedy}")
        return init

    def popen(self, argv: ListOf[Word], **options: Unpack[AnyPopenOptions]) -> Process[Any]:
        """Start a command in the container, in the container's own group; see :meth:`Container.popen`."""
        options["own_group"] = False
        process: Process[Any] = super().popen(argv, **options)
        return process

    exec = popen

    def members(self) -> list[int]:
        """Return the host's pids of all its processes."""
        self._running()
        return super().members() if self._group is None else sorted(self._group.processes())

    # --- What only the OCI command can do

    def update(self, limits: Limits) -> None:  # noqa: ARG002 - the base class's
        """Raise StateError: the OCI command records its limits."""
        self._refuse("the OCI command records its limits", "update")

    def pause(self) -> None:
        """Raise StateError: the OCI command would not know that it is paused."""
        self._refuse("only the OCI command can record that it is paused", "pause")

    def resume(self) -> None:
        """Raise StateError, as :meth:`pause` does."""
        self._refuse("only the OCI command can record that it is resumed", "resume")

    def checkpoint(self, path: str | os.PathLike[str], **options: Any) -> None:  # noqa: ARG002 - the base class's
        """Raise StateError: only the OCI command can do it."""
        self._refuse("the OCI command owns it", "checkpoint")

    def changes(self) -> Iterator[Change]:
        """Raise StateError: only the process that made the root knows its lower layers."""
        raise StateError(f"{self!r}: its root was made by another program; only that program can determine the changes")

    def _limited(self) -> CGroup:
        self._running()
        group = self._group
        if group is None:
            raise StateError(f"{self!r}: it was created without a control group")
        return group

    def _refuse(self, why: str, verb: str) -> NoReturn:
        raise StateError(f"{self!r}: {why}: {self._remedy(verb)}")

    def _remedy(self, verb: str) -> str:
        return f"containerkit-oci --root {self._record.root} {verb} {self.id}"


def attach(name: str, root: str | None, confinement: Mapping[str, Any]) -> Container:
    """Return a view of a recorded container: a detached one unless ``root`` is given, or one of the OCI command."""
    kept: Container | None = late.load(late.KEEPERS["detached"]).view(name, confinement) if root is None else None
    return Attached(name, root, **confinement) if kept is None else kept


class _AttachedContext(StartContext):
    """The context of a start by another process: there is no staging, and nothing to release."""

    def __init__(self, spec: Spec, pid: int, group: CGroup | None) -> None:
        self.spec = spec
        self.host = Host(privileged=os.geteuid() == 0, sets_groups=_text(pid, "setgroups").strip() == "allow")
        self.mappings = _mappings(pid, "uid_map"), _mappings(pid, "gid_map")
        self.ids = None
        self.joined = {}
        self.membership = None if group is None else _AttachedGroups(group)


class _AttachedGroups(Membership):
    """The groups of a container that another process owns."""

    def __init__(self, group: CGroup) -> None:
        super().__init__()
        self._made.append(group)

    def shared(self, init: int) -> CGroup:  # noqa: ARG002 - the base class's
        return self.group

    def end(self) -> None:
        self.group.close()


def _differing(pid: int) -> Namespaces:
    """Return the namespaces of a process: those that differ from the caller's are new, the others are the host's."""
    wishes: dict[str, str] = {}
    for kind in Kind:
        path = f"/proc/{pid}/ns/{kind.file}"
        try:
            same = os.readlink(path) == os.readlink(f"/proc/self/ns/{kind.file}")
        except OSError as error:
            hint = "only its user or root can attach to it" if os.path.exists(f"/proc/{pid}") else "it has stopped"
            raise SetupError("readlink", error.errno or 0, path, hint) from None
        wishes[kind.value] = "host" if same else "new"
    return Namespaces(**wishes)


def _mappings(pid: int, name: str) -> tuple[IdMapping, ...]:
    numbers = [int(word) for word in _text(pid, name).split()]
    return tuple(IdMapping(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))


def _text(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise SetupError("open", error.errno or 0, f"/proc/{pid}/{name}", "the container has stopped") from None


def group_at(name: str, places: Sequence[str]) -> CGroup | None:
    """Return the groups at these directories as one, or None if there are none.

    Raises:
        SetupError: one of them can't be opened. A command outside of them would not have their limits.
    """
    if not places:
        return None
    from containerkit._linux.cgroupfs import read_hierarchies
    from containerkit.cgroup import CGroup, Limits

    hierarchies = read_hierarchies()
    parts: list[Directory] = []
    try:
        for place in places:
            parts.append(_part(place, hierarchies))  # noqa: PERF401 - those that were opened must be closed
    except BaseException:
        for part in parts:
            part.close()
        raise
    return CGroup(name, sorted(parts, key=lambda part: part.version), Limits(), owned=False)


def _part(place: str, hierarchies: Sequence[Hierarchy]) -> Directory:
    from containerkit.cgroup.directory import OpenedDirectory, refused

    # Its mount is the one with the longest path.
    above = [each for each in hierarchies if f"{place}/".startswith(f"{each.mountpoint.rstrip('/')}/")]
    if not above:
        raise StateError(f"{place}: the hierarchy of the container's control group is not mounted here")
    lies = max(above, key=lambda each: len(each.mountpoint))
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refused("open", error, place) from None
    return OpenedDirectory(fd, place, lies.version, lies.controllers)
