"""Containers that somebody else has started: the library's view of one that the OCI command has on record."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Self

from containerkit.assembly import Host
from containerkit.command import Command
from containerkit.container import Container
from containerkit.entrance import Entrance
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.ground import Ground
from containerkit.idmap import IdMapping
from containerkit.membership import Membership
from containerkit.namespace import Kind, Namespaces
from containerkit.process import Process
from containerkit.records import keeper
from containerkit.rootfs import RootFS
from containerkit.spec import CONFINEMENT
from containerkit.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from containerkit._linux.cgroupfs import Hierarchy
    from containerkit.cgroup import CGroup, Limits
    from containerkit.cgroup.directory import Directory
    from containerkit.changes import Change
    from containerkit.spec import Spec

__all__ = ["Attached"]


class Attached(Container):
    """A container that goes on without us; made by :meth:`containerkit.Container.attach`.

    ``stop()``, and the end of ``with``, let go of it and no more: neither it nor what was started in it ends.
    """

    def __init__(self, id: str, root: str | None = None, **confinement: Any) -> None:  # noqa: A002 - as in attach
        if unknown := sorted(set(confinement) - CONFINEMENT):
            raise SpecError(f"attach: unknown argument {unknown[0]!r}; there are {', '.join(sorted(CONFINEMENT))}")
        record = keeper().find(id, root)
        group: CGroup | None = None
        try:
            rootfs = RootFS.dir(record.rootfs or "/")
            super().__init__(rootfs, namespaces=_differing(record.pid), **confinement)
            group = _group(record.id, record.groups)
            self._ground = _Standing(self.spec, record.pid, group)
        except BaseException:
            if group is not None:
                group.close()
            os.close(record.pidfd)
            record.close()
            raise
        self.id = record.id
        self._record = record
        self._init = Process(Command(argv=["init"]), record.pid, record.pidfd, Streams([], [None, None, None], []))
        self._entrance = Entrance(self._init, self._ground, self._kinds)

    def __enter__(self) -> Self:
        self._running()
        return self

    def stop(self, grace_s: float = 0, *, stop_signal: int | None = None) -> None:  # noqa: ARG002 - there is no end
        """Let go of it; it goes on, so nothing is asked to end. Harmless when repeated, or in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            self._stopped = True
            while self._starting:
                self._idle.wait()
            init, self._init = self._init, None
            if init is None:
                return
            os.close(init.fileno())
            if self._entrance is not None:
                self._entrance.close()
            self._standing().release()
            self._record.close()

    @property
    def state(self) -> str:
        """``"created"`` before its start, ``"running"``, ``"paused"``, ``"stopped"``; ``"detached"`` once let go."""
        if self._init is None:
            return "detached"
        status: str = self._record.status()
        return status

    @contextmanager
    def _entering(self) -> Iterator[Process]:
        with super()._entering() as init:
            state = self.state
            if state == "stopped":
                raise StateError(f"{self!r}: it has stopped")
            if state == "paused":  # what joins its group would be frozen in the midst of its start
                remedy = self._remedy("resume")
                raise StateError(f"{self!r}: nothing can be started in it while it is paused: {remedy}")
            yield init

    def popen(self, argv: Sequence[str | bytes | os.PathLike[str]], **options: Any) -> Process:
        """Start a command in the container, counted with the container as a whole; see :meth:`Container.popen`."""
        return super().popen(argv, **{**options, "own_group": False})

    exec = popen

    def members(self) -> list[int]:
        """Return the pids, outside, of all its processes."""
        self._running()
        return super().members() if self._group is None else sorted(self._group.processes())

    # --- What belongs to whoever keeps it on record

    def update(self, limits: Limits) -> None:  # noqa: ARG002 - the base class's
        """Raise StateError: the command has its limits on record."""
        self._refuse("its limits are on record", "update")

    def pause(self) -> None:
        """Raise StateError: the command would not know of it."""
        self._refuse("who pauses it must tell its record", "pause")

    def resume(self) -> None:
        """Raise StateError, as :meth:`pause` does."""
        self._refuse("who resumes it must tell its record", "resume")

    def changes(self) -> Iterator[Change]:
        """Raise StateError: whoever made the root knows what was below it."""
        raise StateError(f"{self!r}: its root was made by another, who alone can tell what has changed in it")

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


class _Standing(Ground):
    """What is known of a start that another made: there is no staging, and nothing to give back."""

    def __init__(self, spec: Spec, pid: int, group: CGroup | None) -> None:
        self.spec = spec
        self.host = Host(privileged=os.geteuid() == 0, sets_groups=_text(pid, "setgroups").strip() == "allow")
        self.mappings = _mappings(pid, "uid_map"), _mappings(pid, "gid_map")
        self.ids = None
        self.joined = {}
        self.membership = None if group is None else _Seat(group)


class _Seat(Membership):
    """The groups of a container that another looks after: what joins them is in the midst of it."""

    def __init__(self, group: CGroup) -> None:
        self.group = group

    def shared(self, init: int) -> CGroup:  # noqa: ARG002 - the base class's
        return self.group

    def end(self) -> None:
        self.group.close()


def _differing(pid: int) -> Namespaces:
    """Return in which namespaces a process is that are not ours: as new ones, the others as the host's."""
    wishes: dict[str, str] = {}
    for kind in Kind:
        path = f"/proc/{pid}/ns/{kind.file}"
        try:
            same = os.readlink(path) == os.readlink(f"/proc/self/ns/{kind.file}")
        except OSError as error:
            hint = "only its user, or root, can attach to it" if os.path.exists(f"/proc/{pid}") else "it has stopped"
            raise SetupError("readlink", error.errno or 0, path, hint) from None
        wishes[kind.value] = "host" if same else "new"
    return Namespaces(**wishes)


def _mappings(pid: int, name: str) -> tuple[IdMapping, ...]:
    numbers = [int(word) for word in _text(pid, name).split()]
    return tuple(IdMapping(*numbers[at : at + 3]) for at in range(0, len(numbers), 3))


def _text(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="ascii") as file:
            return file.read()
    except OSError as error:
        raise SetupError("open", error.errno or 0, f"/proc/{pid}/{name}", "the container has stopped") from None


def _group(name: str, places: Sequence[str]) -> CGroup | None:
    """Return the groups at these directories as one; None where there are none.

    Raises:
        SetupError: one of them can't be opened: a command outside of them would be outside of their limits.
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
    return CGroup(name, tuple(sorted(parts, key=lambda part: part.version)), Limits(), owned=False)


def _part(place: str, hierarchies: Sequence[Hierarchy]) -> Directory:
    from containerkit.cgroup.directory import Directory, refused

    # The mount on which it lies is the one with the longest path.
    above = [each for each in hierarchies if f"{place}/".startswith(f"{each.mountpoint.rstrip('/')}/")]
    if not above:
        raise StateError(f"{place}: the container's control group is on no hierarchy that is mounted here")
    lies = max(above, key=lambda each: len(each.mountpoint))
    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise refused("open", error, place) from None
    return Directory(fd, place, lies.version, lies.controllers)
