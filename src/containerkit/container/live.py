"""The state of a running container: its processes, control group, namespaces and files.

The calls that start commands (:mod:`containerkit.container.commands`) and those that begin and end the container
(:mod:`containerkit.container.lifecycle`) are both built on it.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from containerkit import late
from containerkit.container.starting import LOOK_AGAIN_S, Unwaited
from containerkit.errors import ContainerError, StateError
from containerkit.meanings import explained
from containerkit.namespace import Kind
from containerkit.spec.words import checked_id
from containerkit.typed import Literal, Protocol
from containerkit.weak import WeakMembers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Final, Unpack

    from containerkit.cgroup import CGroup
    from containerkit.cgroup.stats import Stats
    from containerkit.container.captured import Captured
    from containerkit.container.changes import Change
    from containerkit.container.files import Files
    from containerkit.container.inside import InsidePath
    from containerkit.container.join import JoinContext
    from containerkit.container.starting import Entering
    from containerkit.image import Image
    from containerkit.image.options import CommitOptions
    from containerkit.namespace import Namespace
    from containerkit.namespace.kind import KindName
    from containerkit.process.process import Process
    from containerkit.process.seccomp_notify import Supervision
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS
    from containerkit.start.cgroup import Freezer
    from containerkit.start.context import StartContext

__all__ = ["Live", "State", "guests"]

State = Literal["created", "running", "paused", "stopped", "detached"]
"""The state of a container. ``"detached"`` is a view by :meth:`Container.attach` after it has detached."""

_FIRST_LOOK_S: Final = 0.001
"""Seconds after which :meth:`Container.stop` first checks for other containers' processes in its pid namespace."""


class Handle(Protocol):
    """An object with a descriptor that is closed with a container."""

    def fileno(self) -> int:
        """Return the descriptor."""

    def close(self) -> None:
        """Close it."""


guests: WeakMembers[Live] = WeakMembers()
"""Containers that joined a pid namespace. Their processes may be in that of another container."""


class Live:
    """A container: its description, and its state while it runs.

    Args:
        spec: its description.
        id: its name (None: a random one).

    Raises:
        SpecError: the name is invalid.
    """

    def __init__(self, spec: Spec, id: str | None) -> None:  # noqa: A002 - the term of the OCI
        self.spec = spec
        self.id: str = checked_id(id) if id is not None else os.urandom(6).hex()
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._starting: WeakMembers[Entering] = WeakMembers()
        self._context: StartContext | None = None
        self._init: Process[Any] | None = None
        self._processes: set[Process[Any] | Captured] = set()
        self._unwaited = Unwaited()
        self._join_context: JoinContext | None = None
        self._supervisions: set[Supervision] = set()
        self._freezer: Freezer | None = None
        self._paused = False
        self._stopped = False
        self._landlocked = False
        self._has_name = id is not None
        self._note: str | None = None

    def __repr__(self) -> str:
        init = self._init
        pid = f", pid {init.pid}" if init is not None else ""
        return f"<Container {self.id} {self.state}{pid}>"

    @property
    def state(self) -> State:
        """``"created"`` before its start, ``"running"``, ``"paused"``, ``"stopped"``."""
        if self._stopped:
            return "stopped"
        init = self._init
        if init is None:
            return "created"
        if init.poll() is not None:
            return "stopped"
        return "paused" if self._paused else "running"

    @property
    def rootfs(self) -> RootFS:
        """Its root filesystem, as the provider resolved a description such as ``RootFS.image`` at the start.

        Raises:
            StateError: it was never started.
        """
        return self._running_context().spec.rootfs

    def _running_context(self) -> StartContext:
        if self._context is None:
            raise StateError(f"{self!r}: it does not run")
        return self._context

    # --- Processes

    @property
    def pid(self) -> int:
        """The host's pid of its init.

        Raises:
            StateError: it does not run.
        """
        return self._running().pid

    def fileno(self) -> int:
        """Return a pidfd of its init: readable once the container has ended.

        Raises:
            StateError: it does not run.
        """
        return self._running().fileno()

    def members(self) -> list[int]:
        """Return the host's pids of all its processes.

        Raises:
            StateError: it does not run, or it has neither its own pid namespace nor a group to identify them.
        """
        if not self._has_init:
            self._running()
            if self._group is None:
                reason = "it shares a pid namespace; without limits its processes can't be identified"
                raise StateError(f"{self!r}: {reason}")
            return sorted(self._group.processes())
        with self.namespace(Kind.PID) as namespace:
            return namespace.members()

    def _running(self) -> Process[Any]:
        init = self._init
        if init is None or self._stopped:
            raise StateError(f"{self!r}: it does not run")
        return init

    @property
    def _has_init(self) -> bool:
        return bool(self.spec.namespaces.pid == "new")

    def _wait_for_init(self, init: Process[Any]) -> None:
        """Wait for PID 1. Meanwhile reap processes of this process's other containers in its pid namespace."""
        pause_s = _FIRST_LOOK_S
        while others := [guest for guest in guests if guest is not self]:
            for guest in others:
                guest.reap(init)
            try:
                init.wait(pause_s)
            except TimeoutError:  # a ContainerTimeout, whose own module takes long to import
                pause_s = min(2 * pause_s, LOOK_AGAIN_S)
            else:
                return
        init.wait()

    def reap(self, dying: Process[Any]) -> None:
        """Reap ended processes. If they are in the pid namespace of an ending container, thaw them first."""
        if self._paused and self._freezer is not None and self._is_in_namespace_of(dying):
            self._freezer.thaw()
            self._paused = False
        for process in (self._init, *self._processes):
            if process is not None:
                process.poll()

    def _is_in_namespace_of(self, dying: Process[Any]) -> bool:
        """Return whether it has joined the pid namespace of another container."""
        from containerkit.namespace import Namespace

        joined = self._context.joined.get("pid") if self._context is not None else None
        try:
            with Namespace.from_pidfd(dying.fileno(), Kind.PID) as namespace:
                return bool(namespace == joined)
        except ContainerError:  # it has ended in the meantime
            return False

    def _kill_each(self) -> None:
        """Kill the processes in the group of a container that has no PID 1 of its own."""
        for process in list(self._processes):
            process.kill()
        group = self._group
        if group is not None:
            group.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to each of its commands. SIGKILL ends all processes, and so the container.

        Call :meth:`stop`, or end the ``with`` block, to release its resources.

        Args:
            number: the signal (default SIGKILL).

        Raises:
            StateError: it does not run.
        """
        with self._lock:
            init = self._running()
            for process in list(self._processes):
                process.send_signal(number)
            if number == signal.SIGKILL:
                init.kill()
                self._kill_each()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until all commands that ``popen`` has started have ended. The container keeps running.

        Args:
            timeout: seconds (default: no limit).

        Raises:
            ContainerTimeout: one of them is still running.
        """
        from containerkit.process.process import Process

        deadline = None if timeout is None else time.monotonic() + timeout
        while running := [
            process for process in list(self._processes) if isinstance(process, Process) and process.poll() is None
        ]:
            process = running[0]
            process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    @explained
    def commit(
        self, reference: str | None = None, *, author: str = "", message: str = "", **defaults: Unpack[CommitOptions]
    ) -> Image:
        """Make an image of its changes, on top of the image that it was made from.

        Args:
            reference: the new image's name, or None.
            author: its author.
            message: the message in its history.
            options: see :class:`containerkit.image.options.CommitOptions`.

        :func:`containerkit.image.commit` has more options.

        Raises:
            StateError, SpecError, ImageError: as for :func:`containerkit.image.commit`.
        """
        made: Image = late.load(late.COMMIT)(self, reference, author=author, message=message, **defaults)
        return made

    # --- Control group

    @property
    def cgroup(self) -> CGroup | None:
        """The container's control group: its events, its pressure, its counters; None without ``limits``.

        Its limits are changed by :meth:`update`, which waits for commands that are being started.

        Raises:
            StateError: it was never started.
        """
        return self._group

    def stats(self) -> Stats:
        """Return the report of each controller of the container's group.

        Raises:
            StateError: it does not run, or has no ``limits`` and so no group.
        """
        return self._limited().stats()

    def _limited(self) -> CGroup:
        self._running()
        group = self._group
        if group is None:
            raise StateError(f"{self!r}: it has no control group; pass limits=Limits(...)")
        return group

    @property
    def _group(self) -> CGroup | None:
        membership = self._running_context().membership
        return None if membership is None else membership.group

    # --- Namespaces

    def namespace(self, kind: Kind | KindName) -> Namespace:
        """Return a handle on one of its namespaces, for others to join.

        Raises:
            StateError: it does not run.
        """
        from containerkit.namespace import Namespace

        def opened(pidfd: int) -> Namespace:
            if pidfd < 0:  # another thread has stopped it in the meantime
                raise StateError(f"{self!r}: it does not run")
            return Namespace.from_pidfd(pidfd, kind)

        return self._running().watched(opened)

    def joined(self) -> dict[str, Any]:
        """Return the namespaces that it joined, by kind, and those of :meth:`keep_until_stopped`, which it still owns.

        Raises:
            StateError: it was never started.
        """
        return dict(self._running_context().joined)

    def keep_until_stopped(self, name: str, handle: Handle | None) -> None:
        """Close a handle when the container ends. None removes it again.

        Args:
            name: the key of the handle.
            handle: an object with ``fileno`` and ``close``.

        Raises:
            StateError: it does not run.
        """
        with self._lock:
            self._running()
            joined = self._running_context().joined
            if handle is None:
                joined.pop(name, None)
            else:
                joined[name] = handle  # type: ignore[assignment] # a namespace, or a replacement for one

    # --- Files

    @property
    def files(self) -> Files:
        """The files inside: read, write, put, get; see :class:`containerkit.container.files.Files`."""
        from containerkit.container.files import Files

        return Files(self, self._running_context)

    def path(self, path: str | os.PathLike[str]) -> InsidePath:
        """Return a path inside with methods like those of :mod:`pathlib`: ``c.path("/etc/hostname").read_text()``.

        Args:
            path: absolute, as inside.

        Raises:
            SpecError: the path is invalid.
        """
        from containerkit.container.inside import InsidePath

        return InsidePath(self.files, path)

    def changes(self) -> Iterator[Change]:
        """Yield what the container has added, changed and deleted below its root, read from the writable layer.

        If ``hostname`` is set on ``RootFS.host()``, /etc/hosts is included, because the name is added there.

        Raises:
            StateError: it does not run, or its root has no writable layer of its own.
        """
        from containerkit.container.files import changed

        yield from changed(self, self._running_context())
