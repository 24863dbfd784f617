"""Containers: their life from the start to the end, and what is run in them."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from weakref import WeakSet

from containerkit import _native
from containerkit.assembly import Mode
from containerkit.command import Command
from containerkit.entrance import Entrance
from containerkit.errand import Errand
from containerkit.errors import ContainerTimeout, SpecError, StateError
from containerkit.ground import Ground, programs
from containerkit.invocation import (
    Recall,
    check_numbers,
    complete,
    describe,
    has_names,
    owns_nothing,
    run_streams,
    unresolved_user,
    with_defaults,
)
from containerkit.membership import Freezer, account, inputs, joining
from containerkit.mount import sequence
from containerkit.namespace import Kind
from containerkit.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.spec import Spec, build
from containerkit.streams import Streams, Text, require_open
from containerkit.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from containerkit._native.outcome import Outcome
    from containerkit.cgroup import CGroup, Limits
    from containerkit.cgroup.stats import Stats
    from containerkit.changes import Change
    from containerkit.command import User
    from containerkit.engine import Program
    from containerkit.files import Files
    from containerkit.namespace import Namespace
    from containerkit.result import CompletedProcess
    from containerkit.rootfs import RootFS
    from containerkit.template import Template

__all__ = ["Container", "Timings"]


class Timings(NamedTuple):
    """How long the phases of a start took, in microseconds.

    Attributes:
        plan_us: describing and planning, in Python.
        clone_us: the first process, up to its release of the second.
        setup_us: from there until the command (or init) had been exec'd.
        total_us: all of it.
    """

    plan_us: float
    clone_us: float
    setup_us: float
    total_us: float


_BY_HAND: Final = frozenset({"stdin", "stdout", "stderr", "pty", "own_group", "syscall_handler"})
"""The arguments of a command for which it is not just started and heard out."""

_ATTACHED: Final = "containerkit.attached"
_TEMPLATE: Final = "containerkit.template"
"""The rooms of the containers that another has started, and of what is ready-made; they build on this one."""

_alive: WeakSet[Container] = WeakSet()
_specs: Recall[tuple[Spec, Recall[Command]]] = Recall()
"""Descriptions of containers, each with those of commands that ran in one."""


def _spec_of(fields: dict[str, Any]) -> tuple[Spec, Recall[Command]]:
    return build(fields), Recall(16)


@atexit.register
def _stop_all() -> None:
    """Stop what still runs when the interpreter ends, while there is still an interpreter to do it."""
    for container in list(_alive):
        container.stop()


class Container:
    """A Linux container as a context manager: it runs from ``with`` (or :meth:`start`) to its end.

    ::

        with Container() as c:
            done = c.run(["python3", "-c", "print(6 * 7)"], text=True)

    PID 1 is a tiny init; each ``run`` and ``popen`` is a process of its own beside it, any number at a time, from any
    thread. When the process that made the container ends, however it ends, the container is dead at once.

    Args:
        rootfs: what is seen as ``/`` (default ``RootFS.host()``).
        mounts: more mounts, in their order.
        namespaces: which of the eight kinds are new, joined or inherited (default: all new).
        hostname, domainname: names of the uts namespace (defaults ``"container"``, none).
        uid_mappings, gid_mappings: ids of the user namespace (default: a range of 65,536 of its own; for an ordinary
            user all ids that it is granted, or its own as root).
        time_offsets: what is added to the clocks of the time namespace.
        sysctls: kernel parameters of the new namespaces, by name.
        masked_paths, readonly_paths: what is hidden and what can't be written to (defaults: the lists of the OCI).
        limits: what it may use: :class:`containerkit.Limits` (default: no control group at all).
        nested_userns: whether it may make user namespaces of its own (default False).
        capabilities, seccomp, landlock, no_new_privs, keyring, oom_score_adj, apparmor, selinux, personality: what its
            commands may do, see :class:`containerkit.security.confinement.Confinement`; a command can be given others.
        id: a name of its own: letters, digits, ``_.-``, at most 64 (default: random).

    Raises:
        SpecError: a value that can't be; nothing was made.

    Source: namespaces(7), OCI runtime-spec config-linux.md.
    """

    def __init__(self, rootfs: RootFS | None = None, *, id: str | None = None, **fields: Any) -> None:  # noqa: A002
        if rootfs is not None:
            fields["rootfs"] = rootfs
        self.spec, self._commands = _specs.get(fields, _spec_of, lambda made: owns_nothing(made[0]))
        self.id = _checked_id(id) if id is not None else os.urandom(6).hex()
        self.timings: Timings | None = None
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._idle = threading.Condition(self._lock)
        self._starting = 0
        self._ground: Ground | None = None
        self._init: Process | None = None
        self._processes: set[Process | Errand] = set()
        self._entrance: Entrance | None = None
        self._supervisions: set[Supervision] = set()
        self._freezer: Freezer | None = None
        self._paused = False
        self._stopped = False
        self._kinds = sum(kind.flag for kind in Kind if self.spec.namespaces[kind] != "host")

    @classmethod
    def attach(cls, id: str, root: str | None = None, **confinement: Any) -> Container:  # noqa: A002
        """Return a view of a container that ``containerkit-oci`` has created and that is alive.

        ``run``, ``popen``, ``files`` and ``namespace`` are those of any container; commands are in its namespaces and
        control groups. ``stop()``, and the end of ``with``, let go of it: it goes on, as do the commands.

        Args:
            id: its id.
            root: where it is on record: ``--root`` of the command (default: the command's own default).
            confinement: what commands may do that don't say otherwise, as for :class:`Container` (default: the
                library's, not that of the container's configuration).

        Raises:
            StateError: it is not on record, is being created, or has stopped.
            SetupError: it is not the caller's to look into.

        Source: OCI runtime-spec, runtime.md, "State"; setns(2).
        """
        from importlib import import_module

        attached: Container = import_module(_ATTACHED).Attached(id, root, **confinement)
        return attached

    @classmethod
    def prepare(
        cls, rootfs: RootFS | None = None, *, networks: int = 0, ready: int | None = None, **fields: Any
    ) -> Template:
        """Return a template of containers with this description, for which all that can be made beforehand is.

        Args:
            rootfs, fields: as for :class:`Container`, without ``id``.
            networks: how many empty network namespaces are kept ready (default 0).
            ready: how many containers are kept ready for :meth:`Template.run` (default: as ``networks``, 16 at most).

        Raises:
            SpecError, UnsupportedError, SetupError: as for :class:`containerkit.Template`.
        """
        from importlib import import_module

        if rootfs is not None:
            fields["rootfs"] = rootfs
        template: Template = import_module(_TEMPLATE).Template(networks=networks, ready=ready, **fields)
        return template

    # --- Life

    def start(self) -> Self:
        """Start it.

        Returns:
            The container itself.

        Raises:
            StateError: it was started before; a used container is not used again.
            SetupError: an operation failed; nothing is left behind.
            SpecError: something that the description names is not there.
        """
        with self._lock:
            if self._ground is not None or self._stopped:
                raise StateError(f"{self!r}: it was started before; make another")
            began = time.perf_counter()
            ground = Ground.prepare(self.spec)
            try:
                planned = time.perf_counter()
                outcome = ground.start(Mode(command=None, reads_upper=True), (), (), {})
            except BaseException:
                ground.release()
                raise
            self._ground = ground
            self._init = _init_process(outcome)
            self._entrance = Entrance(self._init, ground, self._kinds)
            _alive.add(self)
            self.timings = _timings(began, planned, outcome)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self, grace_s: float = 0, *, stop_signal: int | None = None) -> None:
        """Kill all that runs in it and wait until it is gone; harmless when repeated, or in a forked child.

        Args:
            grace_s: seconds that its commands have to end by themselves, once they were asked to (default 0: none).
            stop_signal: what asks them (default: what their image says, or SIGTERM).

        Source: OCI image specification, config.md, "StopSignal".
        """
        if os.getpid() != self._owner:
            return
        if grace_s > 0 and self._init is not None and not self._stopped:
            self._ask_to_end(time.monotonic() + grace_s, stop_signal or self.rootfs.stop_signal)
        with self._lock:
            init, self._stopped = self._init, True
            if init is None or self._ground is None:
                return
            init.kill()
            if self._paused and self._freezer is not None:
                self._freezer.thaw()  # SIGKILL is queued, but a frozen process can't die of it
                self._paused = False
            while self._starting:  # whoever is in the midst of starting a process will enter it into the books
                self._idle.wait()
            if self._init is None:
                return  # another thread was sooner
            # The kernel lets PID 1 go only when all who joined its namespace are reaped.
            if not self._has_init:
                self._kill_each()
            for process in list(self._processes):
                process.wait()
            init.wait()
            self._init = None
            _alive.discard(self)
            while self._supervisions:
                self._supervisions.pop().close()
            if self._entrance is not None:
                self._entrance.close()
            try:
                if self._freezer is not None:
                    self._freezer.end()
            finally:
                self._ground.release()

    def _ask_to_end(self, deadline: float, number: int) -> None:
        """Send each command a signal, and wait until all have ended or the time is up."""
        with self._lock:
            asked = list(self._processes)
            for process in asked:
                process.send_signal(number)
            if self._paused:
                self.resume()
        for process in asked:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except ContainerTimeout:
                return

    def _kill_each(self) -> None:
        """Kill the processes of a container without a PID 1 with which they would go: as far as its group reaches."""
        for process in list(self._processes):
            process.kill()
        group = self._group
        if group is not None:
            group.kill()

    @property
    def _has_init(self) -> bool:
        return bool(self.spec.namespaces.pid == "new")

    def __del__(self) -> None:
        if getattr(self, "_init", None) is not None and self._owner == os.getpid() and not sys.is_finalizing():
            warnings.warn(f"{self!r} was never stopped: use 'with', or stop()", ResourceWarning, stacklevel=2)
            self.stop()

    def __repr__(self) -> str:
        init = self._init
        pid = f", pid {init.pid}" if init is not None else ""
        return f"<Container {self.id} {self.state}{pid}>"

    @property
    def state(self) -> str:
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
    def pid(self) -> int:
        """The pid of its init, outside.

        Raises:
            StateError: it does not run.
        """
        return self._running().pid

    def _running(self) -> Process:
        init = self._init
        if init is None or self._stopped:
            raise StateError(f"{self!r}: it does not run")
        return init

    def namespace(self, kind: Kind | str) -> Namespace:
        """Return a handle on one of its namespaces, for others to join.

        Raises:
            StateError: it does not run.
        """
        from containerkit.namespace import Namespace

        return Namespace.from_pidfd(self._running().fileno(), kind)

    # --- Running things

    def popen(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        pty: bool | tuple[int, int] = False,
        own_group: bool = True,
        syscall_handler: Callable[[Any], Any] | None = None,
        **command: Any,
    ) -> Process:
        """Start a command in the container.

        Args:
            argv: its words; the first is looked up inside.
            stdin, stdout, stderr: as in :class:`subprocess.Popen`: None shares the caller's.
            text, encoding, errors: as in subprocess; text is UTF-8 unless an encoding is given.
            pty: give it a terminal, True or (rows, columns); ``stdin`` and ``stdout`` of the result are then its other
                side, and the three arguments of these names are not used.
            own_group: with limits: a control group of its own within the container's, so that ``usage`` tells what it
                alone used, ``cause`` whether it was killed for memory, and a timeout reaches all that it has started
                (default True); else it is counted with the container as a whole.
            syscall_handler: decides the system calls that the seccomp filter notifies of; gets a
                :class:`containerkit.security.notify.SyscallRequest`, returns a reply; may be a coroutine function.
            command: fields of :class:`containerkit.command.Command`: ``env``, ``cwd``, ``user`` (``"uid:gid"``, or
                names as the container's /etc/passwd and /etc/group know them), ``groups`` (ids or names), ``umask``,
                ``rlimits``, ``nice``,
                ``pass_fds``. In a root made from an image ``env``, ``cwd`` and ``user`` are the image's unless they are
                given here; each replaces the image's as a whole.

        Raises:
            StateError: the container does not run, or is paused.
            SpecError: a value that can't be.
            SetupError: an operation failed; for a program that is not there its ``errno`` is ENOENT.
        """
        wanted_text = Text.of(text, encoding, errors)
        with self._entering() as init:
            ground = self._standing()
            wanted = self._command(argv, command, terminal=bool(pty))
            streams = (
                self._terminal(pty, wanted.user)
                if pty
                else Streams.open(stdin, stdout, stderr, ground.outside(wanted.user.uid))
            )
            leaf: CGroup | None = None
            supervision: Supervision | None = None
            process: Process | None = None
            try:
                supervision = Supervision.of(wanted.confinement, syscall_handler)
                leaf = self._seat(init.pid, own=own_group)
                calls = supervision.inputs() if supervision is not None else {}
                finish, kill_tree = self._forget, None
                if leaf is not None and own_group:
                    finish, kill_tree = partial(self._account, leaf=leaf), leaf.kill
                outcome = self._join(wanted, {**streams.inputs(), **calls}, leaf)
                process = Process(
                    wanted, outcome.pid, outcome.pidfd, streams, text=wanted_text, finish=finish, kill_tree=kill_tree
                )
                process.supervision = supervision
                self._processes.add(process)
                streams.close_child()
                if supervision is not None:
                    supervision.started()
                    self._supervisions.add(supervision)
            except BaseException:
                streams.close()
                if process is not None:  # the handler of a signal has raised
                    process.close()
                    raise
                if supervision is not None:
                    supervision.close()
                self._retire(leaf if own_group else None)
                raise
            return process

    @contextmanager
    def _entering(self) -> Iterator[Process]:
        """Let :meth:`stop` wait until a process that is being started is in the books."""
        with self._lock:
            init = self._running()
            if self._paused:
                raise StateError(f"{self!r}: nothing can be started in it while it is paused; resume() it first")
            self._starting += 1
        try:
            yield init
        finally:
            with self._lock:
                self._starting -= 1
                self._idle.notify_all()

    def _join(self, command: Command, slots: dict[str, int], group: CGroup | None) -> Outcome:
        """Start a command among what runs already."""
        entrance = self._entrance
        assert entrance is not None
        return entrance.program(command, joining(group, self._group)).run(
            {**entrance.inputs(), **slots, **inputs(group)},
            argv=command.argv,
            envp=command.envp,
            flags=_native.HIDE_MEMORY,
        )

    exec = popen

    def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        input: Any = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = True,
        output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
        **more: Any,
    ) -> CompletedProcess:
        """Run a command in the container and wait for its end.

        Args:
            argv: its words.
            input: what it finds on stdin (default: nothing, /dev/null).
            timeout: seconds; when they are over the command is killed.
            check: raise when its status is not 0.
            capture_output: keep what it writes, unless ``stdout`` or ``stderr`` say otherwise (default True).
            output_limit_bytes: kill it when it writes more than this (default 256 MiB; None for no limit).
            more: as for :meth:`popen`.

        Raises:
            ContainerTimeout: with what it had written by then.
            ExitError: with ``check``; :class:`OutOfMemory` when the memory limit was why.
        """
        check_numbers(timeout, output_limit_bytes)
        began = time.monotonic()
        if input is None and capture_output and self._runs_at_once(more):
            return self._run_at_once(argv, more, began, timeout, output_limit_bytes, check=check)
        process = self.popen(argv, **run_streams(input, more, capture=capture_output))
        return complete(process, began, input, timeout, output_limit_bytes, check=check)

    def _runs_at_once(self, more: dict[str, Any]) -> bool:
        """Whether nothing has to be done for a command, or asked of it, between its start and its end."""
        return (
            self._has_init
            and self._group is None
            and _BY_HAND.isdisjoint(more)
            and _native.interpreter().Run is not None
        )

    def _run_at_once(
        self, argv: Any, more: dict[str, Any], began: float, timeout: float | None, limit: int | None, *, check: bool
    ) -> CompletedProcess:
        fields = dict(more)
        text = Text.of(fields.pop("text", None), fields.pop("encoding", None), fields.pop("errors", None))
        with self._entering():
            command = self._command(argv, fields, terminal=False)
            Supervision.of(command.confinement, None)  # refuses a filter that needs a supervisor
            owner = self._standing().outside(command.user.uid)
            entrance = self._entrance
            assert entrance is not None
            errand = Errand(entrance.program(command), command, text, owner, limit, timeout)
            self._processes.add(errand)
            try:
                errand.start(entrance.inputs(), _native.HIDE_MEMORY)
            except BaseException:
                self._processes.discard(errand)
                raise
        try:
            left = errand.see_out()
            if left.ending is None:
                process = errand.taken_over(left, self._forget)
                self._processes.add(process)
        finally:
            self._processes.discard(errand)
        if left.ending is None:
            until = errand.capture.deadline
            return complete(process, began, None, timeout, limit, check=check, heard=left.heard, deadline=until)
        from containerkit.result import Fate

        return Fate.of(left.ending).completed(command.words, text, left.heard, began, check=check)

    def _command(self, argv: Any, fields: dict[str, Any], *, terminal: bool) -> Command:
        if terminal:
            command = self._described(fields, terminal=True)
        else:
            command = self._commands.get(fields, self._described, lambda _: self._is_lasting(fields))
        command = command.with_argv(argv)
        for fd in command.pass_fds:
            require_open(fd, "pass_fds")
        return command

    def _is_lasting(self, fields: dict[str, Any]) -> bool:
        """Whether these fields mean the same in each container of this description, whatever files are inside."""
        return self.rootfs is self.spec.rootfs and not has_names(self.rootfs, fields)

    def _described(self, fields: dict[str, Any], *, terminal: bool = False) -> Command:
        """Return the command of these arguments, with words that are to be replaced."""
        resolved = with_defaults(self.rootfs, fields)
        user = unresolved_user(self.rootfs, fields)
        if user is not None:
            resolved["user"] = self.files.user(user)
        if fields.get("groups") is not None:
            resolved["groups"] = [
                self.files.group(g) if isinstance(g, str) else g for g in sequence(fields["groups"], "groups")
            ]
        return describe(self.spec, ["-"], resolved, terminal=terminal)

    def _terminal(self, size: bool | tuple[int, int], user: User) -> Streams:  # noqa: FBT001 - popen's own argument
        master, slave = self.files.open_terminal(None if isinstance(size, bool) else size, user)
        return Streams.of_terminal(master, slave)

    @property
    def _group(self) -> CGroup | None:
        membership = self._standing().membership
        return None if membership is None else membership.group

    def _seat(self, init: int, *, own: bool) -> CGroup | None:
        membership = self._standing().membership
        if membership is None:
            return None
        return membership.leaf(init) if own else membership.shared(init)

    def _retire(self, leaf: CGroup | None, oom_kills: int = 0) -> None:
        membership = self._standing().membership
        if leaf is not None and membership is not None:
            membership.retire(leaf, oom_kills)

    def _account(self, process: Process, leaf: CGroup) -> None:
        """Read what the leaf of a run says, and remove it; with what the run left behind it stays."""
        self._forget(process)
        oom_kills = 0
        try:
            oom_kills = account(process, leaf, self._group)
        finally:
            self._retire(leaf, oom_kills)

    def _forget(self, process: Process) -> None:
        self._processes.discard(process)
        supervision = process.supervision
        if supervision is not None and supervision.ended:  # else something that it left behind still has the filter
            self._supervisions.discard(supervision)
            supervision.close()

    @property
    def kinds(self) -> int:
        """The kinds of namespace in which the container differs from the caller."""
        return self._kinds

    # --- Control groups

    @property
    def cgroup(self) -> CGroup | None:
        """The container's control group: its events, its pressure, its counters; None without ``limits``.

        Raises:
            StateError: it was never started.
        """
        return self._group

    def stats(self) -> Stats:
        """Return the report of every controller that the container's group is in.

        Raises:
            StateError: it does not run, or has no ``limits`` and so no group.
        """
        return self._limited().stats()

    def update(self, limits: Limits) -> None:
        """Change the limits while it runs; what is None stays.

        Raises:
            StateError: it does not run, or has no group.
            SpecError, UnsupportedError, SetupError: the limits can't be had; the former ones hold.
        """
        self._limited().update(limits)

    def _limited(self) -> CGroup:
        self._running()
        group = self._group
        if group is None:
            raise StateError(f"{self!r}: it has no control group; give it limits=Limits(...)")
        return group

    def pause(self) -> None:
        """Stop all of its processes where they are; :meth:`resume` lets them go on.

        Raises:
            StateError: it does not run.
            UnsupportedError: no freezer is at hand. Source: cgroup.freeze, and freezer of version 1.
        """
        with self._lock:
            init = self._running()
            while self._starting:  # one that is frozen in the midst of its start would keep its starter waiting
                self._idle.wait()
                self._running()
            if self._freezer is None:
                self._freezer = Freezer(self._group, self.members)
            self._freezer.freeze(init.pid if self._has_init else None)
            self._paused = True

    def resume(self) -> None:
        """Let its processes go on.

        Raises:
            StateError: it is not paused.
        """
        with self._lock:
            if not self._paused or self._freezer is None:
                raise StateError(f"{self!r}: it is not paused")
            self._freezer.thaw()
            self._paused = False

    def members(self) -> list[int]:
        """Return the pids, outside, of all its processes.

        Raises:
            StateError: it does not run, or has neither a pid namespace of its own nor a group that would tell them
                apart.
        """
        if not self._has_init:
            self._running()
            if self._group is None:
                reason = "it shares a pid namespace; without limits its processes can't be told apart"
                raise StateError(f"{self!r}: {reason}")
            return sorted(self._group.processes())
        with self.namespace(Kind.PID) as namespace:
            return namespace.members()

    # --- Files

    def fileno(self) -> int:
        """Return a pidfd of its init: readable once the container has ended.

        Raises:
            StateError: it does not run.
        """
        return self._running().fileno()

    def program(self, key: Any, make: Callable[[], Program]) -> Program:
        """Return a compiled plan for this container, from the cache where it is there."""
        ground = self._standing()
        return programs.get((ground.host, self.kinds, key), make)

    def staging_inputs(self) -> dict[str, int]:
        """Return the slots of the staging that it was started from."""
        return self._standing().staging.inputs()

    @property
    def rootfs(self) -> RootFS:
        """What it sees as ``/``: what a description such as ``RootFS.image`` stood for when it was started.

        Raises:
            StateError: it was never started.
        """
        return self._standing().spec.rootfs

    @property
    def shown_programs(self) -> tuple[str, ...]:
        """The folders of the host that ``RootFS.host()`` shows in it."""
        return self._standing().host.programs

    @property
    def sets_groups(self) -> bool:
        """Whether supplementary groups can be set inside."""
        return self._standing().host.sets_groups

    def _standing(self) -> Ground:
        if self._ground is None:
            raise StateError(f"{self!r}: it does not run")
        return self._ground

    @property
    def files(self) -> Files:
        """The files inside: read, write, put, get; see :class:`containerkit.files.Files`."""
        from containerkit.files import Files

        return Files(self)

    def changes(self) -> Iterator[Change]:
        """Yield what the container has added, changed and deleted below its root, read from the writable layer.

        Raises:
            StateError: it does not run, or its root has no writable layer of its own.
        """
        from containerkit.files import changed

        yield from changed(self)


_ID_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def _checked_id(value: str) -> str:
    good = isinstance(value, str) and 0 < len(value) <= 64 and set(value) <= _ID_CHARACTERS
    if not good or value[0] in ".-":
        raise SpecError(f"id: {value!r} must be 1 to 64 letters, digits, '_', '.', '-', and begin with none of '.-'")
    return value


@lru_cache(maxsize=1)
def _init() -> Command:
    return Command(argv=["init"])


def _init_process(outcome: Outcome) -> Process:
    return Process(_init(), outcome.pid, outcome.pidfd, Streams([], [None, None, None], []))


def _timings(began: float, planned: float, outcome: Outcome) -> Timings:
    times = outcome.times_ns
    return Timings(
        plan_us=(planned - began) * 1e6,
        clone_us=(times[1] - times[0]) / 1e3,
        setup_us=(times[3] - times[1]) / 1e3,
        total_us=(time.perf_counter() - began) * 1e6,
    )
