"""Containers from their start to their end."""

from __future__ import annotations

import atexit
import os
import sys
import time
import warnings

from containerkit import late
from containerkit.compile.facts import Mode
from containerkit.container import running
from containerkit.container.arguments import owns_nothing
from containerkit.container.captured import ArgumentCache
from containerkit.container.commands import Commands
from containerkit.container.join import JoinContext
from containerkit.container.live import guests
from containerkit.container.starting import init_process, wait_for_all, wait_for_others
from containerkit.errors import CleanupError, StateError, telling_of_descriptors
from containerkit.meanings import explained
from containerkit.process.process import kill_and_reap
from containerkit.spec.container import Spec, build
from containerkit.start.cgroup import Freezer
from containerkit.start.context import StartContext
from containerkit.typed import NamedTuple
from containerkit.weak import WeakMembers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any, Literal, Self, Unpack

    from containerkit._native.outcome import Outcome
    from containerkit.cgroup import Limits
    from containerkit.checkpoint import Guard
    from containerkit.container.template import Template
    from containerkit.detached.container import Detached
    from containerkit.options import ConfinementOptions, ContainerOptions, DetachOptions, ListOf, Word
    from containerkit.process.process import Process
    from containerkit.spec.command import Command
    from containerkit.spec.rootfs import RootFS

__all__ = ["Container", "Timings"]


class Timings(NamedTuple):
    """How long the phases of a start took, in microseconds.

    Attributes:
        plan_us: describing and planning in Python.
        clone_us: stage 1, until it releases stage 2.
        setup_us: from then until the exec of the command or init.
        total_us: all of it.
    """

    plan_us: float
    clone_us: float
    setup_us: float
    total_us: float


_alive: WeakMembers[Container] = WeakMembers()

_specs: ArgumentCache[tuple[Spec, ArgumentCache[Command]]] = ArgumentCache()
"""Descriptions of containers, each with the cached commands that were run in such a container."""


def _spec_of(fields: Mapping[str, Any]) -> tuple[Spec, ArgumentCache[Command]]:
    return build(fields), ArgumentCache(16)


@atexit.register
def _stop_all() -> None:
    """Stop the containers that still run at exit, before the interpreter shuts down."""
    for container in list(_alive):
        container.stop()


@explained
class Container(Commands):
    """A Linux container as a context manager: it runs from ``with`` (or :meth:`start`) to its end.

    ::

        with Container() as c:
            done = c.run(["python3", "-c", "print(6 * 7)"], text=True)

    PID 1 is a tiny init. Each ``run`` and ``popen`` starts another process beside it. Any number can run at a time,
    from any thread. When the process that made the container ends for any reason, the container ends immediately.

    Args:
        rootfs: the root filesystem (default ``RootFS.host()``).
        id: its unique name: letters, digits, ``_.-``, at most 64 (default: random).
        options: see :class:`containerkit.options.ContainerOptions`.

    Its confinement applies to each command that does not override it.

    Raises:
        SpecError: a value is invalid. Nothing was made.

    Source: namespaces(7), OCI runtime-spec config-linux.md.
    """

    def __init__(
        self,
        rootfs: RootFS | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the term of the OCI
        **options: Unpack[ContainerOptions],
    ) -> None:
        fields: Mapping[str, Any] = options if rootfs is None else {**options, "rootfs": rootfs}
        spec, known = _specs.get(fields, _spec_of, lambda made: owns_nothing(made[0]))
        super().__init__(spec, id, known)
        self.timings: Timings | None = None
        self._guard: Guard | None = None

    @classmethod
    @explained
    def attach(
        cls,
        id: str,  # noqa: A002 - the term of the OCI
        root: str | None = None,
        **confinement: Unpack[ConfinementOptions],
    ) -> Container:
        """Return a view of a container that this process does not own: a detached one, or one of ``containerkit-oci``.

        ``run``, ``popen``, ``files`` and ``namespace`` work as for any container. Commands run in its namespaces and
        control groups. ``stop()`` and the end of ``with`` only detach from it. The container and the commands continue.

        Args:
            id: its id; for a detached one also its name. Detached ones are searched first, unless ``root`` is given.
            root: the directory of the records: ``--root`` of the OCI command (default: the command's default).
            options: see :class:`containerkit.options.ConfinementOptions`.

        The options apply to commands that don't override them (default: a detached container's own, else the
        library's).

        Raises:
            StateError: it is not recorded, is being created, or has stopped.
            SetupError: the caller may not access it.

        Source: OCI runtime-spec, runtime.md, "State"; setns(2).
        """
        attached: Container = late.load(late.KINDS["attached"])(id, root, confinement)
        return attached

    @explained
    def detach(
        self, name: str = "", *, command: ListOf[Word] | None = None, **options: Unpack[DetachOptions]
    ) -> Detached:
        """Start it with one command and hand it to a keeper, so that it outlives this process. Use this object once.

        Args:
            name: a name to find it by (default: only its id).
            command: the program and its arguments (default: the image's).
            options: see :class:`containerkit.options.DetachOptions`.

        Raises:
            SpecError: a value is invalid. Nothing was made.
            StateError: it was started before, or the name is in use.
            SetupError, ImageError: the start failed. Nothing is left behind.

        Side effects: a record below /run/containerkit, and a directory below /var/lib/containerkit for its data.
        """
        with self._lock:
            self._check_unused()
            self._stopped = True  # another process starts it
        made: Detached = late.load(late.DETACH)(self.spec, name, command, options)
        return made

    @classmethod
    @explained
    def prepare(
        cls,
        rootfs: RootFS | None = None,
        *,
        networks: int = 0,
        ready: int | None = None,
        **options: Unpack[ContainerOptions],
    ) -> Template:
        """Return a template of containers with this description. It makes as much as possible in advance.

        Args:
            rootfs: the root filesystem (default ``RootFS.host()``).
            networks: how many empty network namespaces are kept ready (default 0).
            ready: how many containers are kept ready for :meth:`Template.run` (default: as ``networks``, 16 at most).
            options: see :class:`containerkit.options.ContainerOptions`.

        Raises:
            SpecError, UnsupportedError, SetupError: as for :class:`containerkit.Template`.
        """
        fields: Mapping[str, Any] = options if rootfs is None else {**options, "rootfs": rootfs}
        template: Template = late.load(late.KINDS["template"])(networks=networks, ready=ready, **fields)
        return template

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        *,
        id: str | None = None,  # noqa: A002 - as in Container
        rootfs: RootFS | None = None,
        limits: Limits | Literal["as before"] | None = "as before",
        criu: str | os.PathLike[str] | None = None,
    ) -> Container:
        """Restore a container that :meth:`checkpoint` has written to a directory, in this process or another.

        It runs when this returns. It is a container like any other, owned by this process: use ``with`` or
        :meth:`stop`. The directory is not changed. Any number of containers can be restored from it, even at the same
        time. It must belong to root and be writable only by root, because a user who can write to it decides what runs.

        Args:
            path: the directory.
            id: its unique name (default: random).
            rootfs: the root filesystem, of the same kind (default: at its previous path). Its files are not in the
                checkpoint.
            limits: its limits, None for no control group (default: the previous limits).
            criu: the program, version 4 or later (default: ``criu`` along ``PATH``).

        Raises:
            UnsupportedError: the caller is not root, or there is no such CRIU.
            SetupError: it failed. The error has CRIU's last messages. Nothing is left behind.
            SpecError: the directory is not a checkpoint, or something that it needs no longer exists.

        Source: criu(8).
        """
        made: Container = late.load(late.CHECKPOINT).Restored(path, id=id, rootfs=rootfs, limits=limits, criu=criu)
        return made

    # --- Lifecycle

    @telling_of_descriptors("start")
    def start(self) -> Self:
        """Start it.

        Returns:
            The container itself.

        Raises:
            StateError: it was started before. A container can be started only once.
            SetupError: an operation failed. Nothing is left behind.
            SpecError: something that the description names does not exist.
        """
        ours = False
        try:
            with self._lock:
                self._check_unused()
                ours = True
                self._bring_up()
                if self._has_name and self._init is not None:
                    self._note = running.note(self.id, self._init.pid)
        except BaseException:
            if ours and self._init is not None:  # a signal handler raised after the container had started
                self.stop()
            raise
        return self

    def _check_unused(self) -> None:
        if self._context is not None or self._stopped:
            raise StateError(f"{self!r}: it was started before; make another")

    def _bring_up(self) -> None:
        began = time.perf_counter()
        # These lists own the context and the outcome from the moment they are made.
        contexts: list[StartContext] = []
        born: list[Outcome] = []
        try:
            context = self._prepared(contexts)
            planned = time.perf_counter()
            outcome = self._begin(context, born)
            init = init_process(outcome)
            self._join_context = JoinContext(init, context)
            self.timings = _timings(began, planned, outcome)
            _alive.add(self)
            if self.spec.namespaces.pid not in ("new", "host"):
                guests.add(self)
            self._context, self._init = context, init
        except BaseException:
            while born:
                kill_and_reap(born.pop().pidfd)
            for each in contexts:
                each.release()
            raise

    def _prepared(self, contexts: list[StartContext]) -> StartContext:
        context = StartContext.prepare(self.spec, contexts)
        if tell := getattr(context.joined.get("network"), "named", None):
            tell(self.id)
        return context

    def _begin(self, context: StartContext, born: list[Outcome]) -> Outcome:
        """Make PID 1 and everything that it needs."""
        return context.start(Mode(command=None, reads_upper=True), (), (), {}, born)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, grace_s: float = 0, *, stop_signal: int | None = None) -> None:
        """Kill all its processes and wait until it is gone. May be called twice, and has no effect in a forked child.

        Args:
            grace_s: seconds that its commands have to end after the stop signal (default 0: none).
            stop_signal: the signal that asks them to end (default: the image's, or SIGTERM).

        Source: OCI image specification, config.md, "StopSignal".
        """
        if os.getpid() != self._owner:
            return
        if grace_s > 0 and self._init is not None and not self._stopped:
            self._ask_to_end(time.monotonic() + grace_s, stop_signal or self.rootfs.stop_signal)
        with self._lock:
            init, self._stopped = self._init, True
            if init is None or self._context is None:
                return
            init.kill()
            if self._paused and self._freezer is not None:
                self._freezer.thaw()  # SIGKILL is pending, but a frozen process does not die
                self._paused = False
            wait_for_others(self._idle, self._starting)
            if self._init is None:
                return  # another thread did it first
            # The kernel lets PID 1 end only after all processes that joined its namespace are reaped.
            if not self._has_init:
                self._kill_each()
            for process in list(self._processes):
                process.wait()
            self._wait_for_init(init)
            self._release()

    def _release(self) -> None:
        """Release its resources, after all its processes have ended. May be called twice."""
        assert self._context is not None
        assert self._init is not None
        self._init.release()
        _alive.discard(self)
        guests.discard(self)
        running.forget(self._note)
        while self._supervisions:
            supervision = next(iter(self._supervisions))
            supervision.close()
            self._supervisions.discard(supervision)
        if self._join_context is not None:
            self._join_context.close()
        if self._guard is not None:
            self._guard.close()
        try:
            try:
                if self._freezer is not None:
                    self._freezer.end()
            finally:
                self._context.release()
        except CleanupError:  # reported once
            self._init = None
            raise
        self._init = None

    def _ask_to_end(self, deadline: float, number: int) -> None:
        """Send each command a signal, and wait until all have ended or the time has passed."""
        with self._lock:
            wait_for_others(self._idle, self._starting, deadline)  # what they start is not in the list yet
            asked = list(self._processes)
            for process in asked:
                process.send_signal(number)
            if self._paused:
                self.resume()
        for process in asked:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except TimeoutError:  # a ContainerTimeout, whose own module takes long to import
                return

    def __del__(self) -> None:
        if getattr(self, "_init", None) is not None and self._owner == os.getpid() and not sys.is_finalizing():
            try:
                warnings.warn(f"{self!r} was never stopped: use 'with', or stop()", ResourceWarning, stacklevel=2)
            finally:  # also if warnings are errors
                self.stop()

    def update(self, limits: Limits) -> None:
        """Change the limits while it runs. A limit that is None is not changed.

        It waits for commands that other threads are starting. Until its exec such a command may share the caller's
        memory, to which the new memory limit must not apply.

        Raises:
            StateError: it does not run, has no group, or a signal handler calls this during a start.
            SpecError, UnsupportedError, SetupError: the limits can't be set. The previous ones still apply.
        """
        with self._lock:
            wait_for_all(self._idle, self._starting, self._limited)
            self._limited().update(limits)

    def pause(self) -> None:
        """Freeze all of its processes. :meth:`resume` lets them continue.

        It waits for commands that other threads are starting. If one were frozen, its starter would be blocked.

        Raises:
            StateError: it does not run, or a signal handler calls this during a start.
            UnsupportedError: no freezer is available. Source: cgroup.freeze, and the freezer of version 1.
        """
        with self._lock:
            init = self._settled()  # a command that is frozen during its start would block its starter
            if self._freezer is None:
                self._freezer = Freezer(self._group, self.members)
            self._freezer.freeze(init.pid if self._has_init else None)
            self._paused = True

    def _settled(self) -> Process[Any]:
        """Return PID 1 once no thread is starting a process. The caller holds the lock."""
        wait_for_all(self._idle, self._starting, self._running)
        return self._running()

    def resume(self) -> None:
        """Let its processes continue.

        Raises:
            StateError: it is not paused.
        """
        with self._lock:
            if not self._paused or self._freezer is None:
                raise StateError(f"{self!r}: it is not paused")
            self._freezer.thaw()
            self._paused = False

    def checkpoint(
        self,
        path: str | os.PathLike[str],
        *,
        leave_running: bool = False,
        tcp_established: bool = False,
        file_locks: bool = False,
        criu: str | os.PathLike[str] | None = None,
    ) -> None:
        """Write its processes with their memory to a directory, from which :meth:`restore` restores them.

        Only descendants of its init can be restored: processes that a command has left running in the background. The
        caller's own commands must have ended. Files are not saved: the root filesystem must be the same at the restore.

        Args:
            path: the directory. It must be missing or empty. Afterwards only root can access it.
            leave_running: let it continue (default False: it is stopped after everything is written).
            tcp_established: also save open TCP connections (default False: they are refused).
            file_locks: also save file locks (default False: they are refused).
            criu: the program, version 4 or later (default: ``criu`` along ``PATH``).

        Raises:
            StateError: it does not run, is paused, or has processes or open files that are not its own.
            UnsupportedError: the caller is not root, there is no such CRIU, or the container has something that CRIU
                can't restore unchanged, such as Landlock rules.
            SpecError: the directory is not empty.
            SetupError: CRIU failed. The error has its last messages. The container continues to run.

        Source: criu(8).
        """
        room = late.load(late.CHECKPOINT)
        options = {"--tcp-established": tcp_established, "--file-locks": file_locks}
        with self._lock:
            init = self._settled()
            if self._paused:
                raise StateError(f"{self!r}: it is paused; resume() it first")
            context = self._running_context()
            running = [process for process in self._processes if process.poll() is None]
            supervised = any(not supervision.ended for supervision in self._supervisions)
            subject = room.Subject(
                repr(self), context.spec, init.pid, init.fileno(), running, self._landlocked, supervised
            )
            room.checkpoint(
                subject,
                path,
                self._make_guard,
                leave_running=leave_running,
                arguments=tuple(name for name, wanted in options.items() if wanted),
                program=criu,
            )
        if not leave_running:
            self.stop()

    def _make_guard(self) -> None:
        """Start a process that watches its owner from now on."""
        if self._guard is None:
            self._guard = late.load(late.CHECKPOINT).Guard()
        self._guard.watch(self._running().fileno())


def _timings(began: float, planned: float, outcome: Outcome) -> Timings:
    times = outcome.times_ns
    return Timings(
        plan_us=(planned - began) * 1e6,
        clone_us=(times[1] - times[0]) / 1e3,
        setup_us=(times[3] - times[1]) / 1e3,
        total_us=(time.perf_counter() - began) * 1e6,
    )
