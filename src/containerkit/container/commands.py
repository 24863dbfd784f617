"""The commands in a container: started by ``popen``, or run to their end by ``run``."""

from __future__ import annotations

import os
from functools import partial

from containerkit import _native
from containerkit.container.arguments import (
    POPEN_ARGUMENTS,
    RUN_ARGUMENTS,
    confine_for_streams,
    describe,
    has_names,
    run_streams,
    unresolved_user,
    with_defaults,
)
from containerkit.container.captured import ArgumentCache, Captured, Terms, complete
from containerkit.container.live import Live
from containerkit.container.log import Log
from containerkit.container.starting import Entering
from containerkit.container.starting_process import StartingProcess
from containerkit.descriptors import keep, lend
from containerkit.errors import SpecError, StateError, of_descriptors, telling_of_descriptors
from containerkit.meanings import explained
from containerkit.process.communicate import LineCallbacks
from containerkit.process.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.process.seccomp_notify import Supervision
from containerkit.process.stdio import Streams, Text, require_open
from containerkit.spec.container import Spec, check_names
from containerkit.spec.words import sequence
from containerkit.start.cgroup import account, inputs, joining, throttled_us
from containerkit.typed import overload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final, Literal, Unpack

    from containerkit.cgroup import CGroup
    from containerkit.options import (
        AnyPopenOptions,
        CommandOptions,
        Handler,
        Input,
        Listener,
        ListOf,
        PopenOptions,
        RunOptions,
        Stream,
        Word,
    )
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.command import Command, User

__all__ = ["Commands"]

_BY_HAND: Final = frozenset({"stdin", "stdout", "stderr", "pty", "own_group", "syscall_handler"})
"""The arguments that need more than starting the command and reading its output."""


class Commands(Live):
    """A container in which commands are run.

    Args:
        spec: its description.
        id: its name (None: a random one).
        known: the cached commands of containers with this description.
    """

    def __init__(self, spec: Spec, id: str | None, known: ArgumentCache[Command]) -> None:  # noqa: A002 - the term of the OCI
        super().__init__(spec, id)
        self._commands = known
        self._log: Log | None = None

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[PopenOptions],
    ) -> Process[str]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[PopenOptions],
    ) -> Process[str]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[PopenOptions],
    ) -> Process[bytes]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[PopenOptions],
    ) -> Process[str] | Process[bytes]: ...

    @explained  # without a decorator that calls it: the process could be lost in its wrapper
    def popen(
        self,
        argv: ListOf[Word],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        pty: bool | tuple[int, int] = False,
        own_group: bool = True,
        syscall_handler: Handler | None = None,
        **command: Unpack[CommandOptions],
    ) -> Process[Any]:
        """Start a command in the container.

        A command that has ended without being waited for is reaped when others are started or the container ends.

        Args:
            argv: the program, which is looked up inside, and its arguments.
            text, encoding, errors: as in :class:`subprocess.Popen`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.options.PopenOptions`.

        In a root made from an image, ``env``, ``cwd`` and ``user`` default to the image's. Each argument replaces the
        image's value as a whole.

        Raises:
            StateError: the container does not run, or is paused.
            SpecError: a value is invalid.
            SetupError: an operation failed. ``errno`` is ENOENT if the program does not exist.
        """
        check_names("popen", command, POPEN_ARGUMENTS)
        starting = StartingProcess(Text.of(text, encoding, errors))
        streams = stdin, stdout, stderr
        try:
            self._start_process(starting, argv, streams, pty, command, own_group=own_group, handler=syscall_handler)
            assert starting.process is not None
            return starting.process  # noqa: TRY300 - a handler may raise before another block begins
        except BaseException as error:
            self._call_off(starting)
            if told := of_descriptors("popen", error):
                raise told from error
            raise

    def _start_process(
        self,
        starting: StartingProcess,
        argv: ListOf[Word],
        streams: tuple[Stream, Stream, Stream],
        pty: bool | tuple[int, int],  # noqa: FBT001 - popen's own argument
        fields: Mapping[str, Any],
        *,
        own_group: bool,
        handler: Handler | None,
    ) -> None:
        with self._entering() as init:
            context = self._running_context()
            command = self._command(argv, fields, terminal=bool(pty))
            if pty:
                self._open_terminal(starting.streams, pty, command.user)
            else:
                starting.streams.add(*streams, context.outside(command.user.uid))
            command = confine_for_streams(command, starting.streams, self.spec, fields)
            starting.supervision = Supervision.of(command.confinement, handler)
            leaf = self._group_for_command(init.pid, own=own_group)
            starting.leaf = leaf if own_group else None
            starting.throttled_us = throttled_us(self._group) if self._group is not None and own_group else None
            calls = starting.supervision.inputs() if starting.supervision is not None else {}
            self._join(starting, command, {**starting.streams.inputs(), **calls}, leaf)
            self._enter(starting, command)

    def _enter(self, starting: StartingProcess, command: Command) -> None:
        """Add a started process to the container's list."""
        leaf, supervision = starting.leaf, starting.supervision
        finish, kill_tree = self._forget, None
        if leaf is not None:
            finish, kill_tree = partial(self._account, leaf=leaf, throttled_us=starting.throttled_us), leaf.kill
        process = starting.enter(command, finish, kill_tree)
        self._processes.add(process)
        self._unwaited.add(process)
        starting.close_child()
        if supervision is not None:
            supervision.started()
            self._supervisions.add(supervision)

    def _call_off(self, starting: StartingProcess) -> None:
        """Undo a start that failed, or in which a signal handler raised."""
        starting.call_off()
        if starting.process is None and starting.leaf is not None:
            self._retire(starting.leaf)

    def _entering(self) -> Entering:
        """Return a context manager that makes :meth:`stop` wait until the new process is in the list."""
        if os.getpid() == self._owner:
            self._unwaited.reap()
        return Entering(self._lock, self._idle, self._starting, self._admit)

    def _admit(self) -> Process[Any]:
        """Return PID 1 if a process may be started now.

        Raises:
            StateError: it does not run, or is paused.
        """
        init = self._running()
        if self._paused:
            raise StateError(f"{self!r}: nothing can be started in it while it is paused; resume() it first")
        return init

    def _join(self, starting: StartingProcess, command: Command, slots: dict[str, int], group: CGroup | None) -> None:
        """Start a command in the running container."""
        join_context = self._join_context
        assert join_context is not None
        join_context.program(command, joining(group, self._group)).run(
            {**join_context.inputs(), **slots, **inputs(group)},
            argv=command.argv,
            envp=command.envp,
            flags=_native.HIDE_MEMORY,
            into=starting.outcomes,
        )

    exec = popen

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[bytes]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[str] | CompletedProcess[bytes]: ...

    @explained
    @telling_of_descriptors("run")
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = True,
        output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
        on_stdout: Listener | None = None,
        on_stderr: Listener | None = None,
        **more: Unpack[AnyPopenOptions],
    ) -> CompletedProcess[Any]:
        """Run a command in the container and wait for its end.

        Args:
            argv: the program and its arguments.
            input: its standard input (default: empty, /dev/null).
            text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.options.RunOptions`.

        Raises:
            ContainerTimeout: the timeout expired. The error has the output so far.
            ExitError: with ``check``; :class:`OutOfMemory` if the memory limit was the cause.
        """
        check_names("run", more, RUN_ARGUMENTS)
        callbacks: LineCallbacks | None = None
        if on_stdout is not None or on_stderr is not None:
            callbacks = LineCallbacks.of(on_stdout, on_stderr, kept=capture_output)
        terms = Terms.of(timeout, output_limit_bytes, check=check, callbacks=callbacks)
        if input is None and capture_output and callbacks is None and self._captures(more):
            return self._captured(argv, more, terms)
        options = run_streams(input, more, capture=capture_output, callbacks=callbacks)
        born: list[Process[Any]] = []
        try:
            process = keep(born, partial(self.popen, **options), argv)
            return complete(process, input, terms)
        except BaseException:
            for process in born:
                process.close()
            raise

    @property
    def log(self) -> Log:
        """A log for its commands: ``c.popen(argv, stdout=c.log, stderr=c.log)``; :meth:`logs` returns it.

        The first use starts a thread, which reads the logs of all containers of this process.

        Raises:
            StateError: it does not run.
        """
        with self._lock:
            if self._log is None:
                self._running()
                self._log = Log(self._running_context().outside(0))
                self.keep_until_stopped("log", self._log)
            return self._log

    def logs(self, *, tail: int | None = None) -> str:
        """Return the last MiB that its commands have written to :attr:`log`, also after it has stopped.

        Other output is in the result of ``run`` or in the streams of ``popen``.

        Args:
            tail: the number of last lines to return (default: all).

        Raises:
            SpecError: ``tail`` is not a number of lines.
        """
        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise SpecError(f"tail: {tail!r:.100} is not a number of lines")
        text = "" if self._log is None else self._log.read().decode(errors="replace")
        return text if tail is None else "".join(text.splitlines(keepends=True)[-tail:] if tail else ())

    def _captures(self, more: Mapping[str, Any]) -> bool:
        """Return whether a command needs no work between its start and its end."""
        return (
            self._has_init
            and self._group is None
            and _BY_HAND.isdisjoint(more)
            and _native.interpreter().Run is not None
        )

    def _captured(self, argv: ListOf[Word], more: Mapping[str, Any], terms: Terms) -> CompletedProcess[Any]:
        fields = dict(more)
        text = Text.of(fields.pop("text", None), fields.pop("encoding", None), fields.pop("errors", None))
        captured: Captured | None = None
        try:
            with self._entering():
                command = self._command(argv, fields, terminal=False)
                Supervision.of(command.confinement, None)  # refuses a filter that needs a supervisor
                owner = self._running_context().outside(command.user.uid)
                join_context = self._join_context
                assert join_context is not None
                captured = Captured(command, text, terms, owner, self._forget, self._processes)
                direct = join_context.direct
                program = join_context.program(command, direct=direct)
                flags = _native.JOIN if direct else _native.HIDE_MEMORY
                captured.begin(program, join_context.inputs(), flags=flags)
            return captured.complete()
        except BaseException:
            if captured is not None:
                captured.call_off()
            raise

    def _command(self, argv: ListOf[Word], fields: Mapping[str, Any], *, terminal: bool) -> Command:
        if terminal:
            command = self._described(fields, terminal=True)
        else:
            command = self._commands.get(fields, self._described, lambda _: self._is_lasting(fields))
        command = command.with_argv(argv)
        if command.confinement.landlock is not None:
            self._landlocked = True
        for fd in command.pass_fds:
            require_open(fd, "pass_fds")
        return command

    def _is_lasting(self, fields: Mapping[str, Any]) -> bool:
        """Return whether these fields mean the same in each container of this description, independent of its files."""
        return self.rootfs is self.spec.rootfs and not has_names(self.rootfs, fields)

    def _described(self, fields: Mapping[str, Any], *, terminal: bool = False) -> Command:
        """Return the command for these arguments, with a placeholder as argv."""
        user = unresolved_user(self.rootfs, fields)
        resolved = with_defaults(self.rootfs, fields, None if user is None else self.files.user(user))
        if fields.get("groups") is not None:
            resolved["groups"] = [
                self.files.group(g) if isinstance(g, str) else g for g in sequence(fields["groups"], "groups")
            ]
        return describe(self.spec, ["-"], resolved, terminal=terminal, rootfs=self.rootfs)

    def _open_terminal(self, streams: Streams, size: bool | tuple[int, int], user: User) -> None:  # noqa: FBT001 - popen's
        def work(opened: list[int]) -> None:
            self.files.open_terminal(opened, None if isinstance(size, bool) else size, user)
            streams.add_terminal(opened)

        lend(work)

    def _group_for_command(self, init: int, *, own: bool) -> CGroup | None:
        membership = self._running_context().membership
        if membership is None:
            return None
        return membership.leaf(init) if own else membership.shared(init)

    def _retire(self, leaf: CGroup | None, oom_kills: int = 0) -> None:
        membership = self._running_context().membership
        if leaf is not None and membership is not None:
            membership.retire(leaf, oom_kills)

    def _account(self, process: Process[Any], leaf: CGroup, throttled_us: int | None) -> None:
        """Read the counters of a run's leaf, and remove it. It stays if the run left processes behind."""
        self._forget(process)
        oom_kills = 0
        try:
            oom_kills = account(process, leaf, self._group, throttled_us)
        finally:
            self._retire(leaf, oom_kills)

    def _forget(self, process: Process[Any] | Captured) -> None:
        self._processes.discard(process)
        supervision = process.supervision
        if (
            supervision is not None and supervision.ended
        ):  # otherwise a process that it left behind still has the filter
            self._supervisions.discard(supervision)
            supervision.close()
