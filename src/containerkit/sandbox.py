"""A sandbox without namespaces, for hosts that forbid them: Landlock, seccomp and no capabilities.

It restricts a command, or the calling process itself, and needs no privileges. Its report lists what is not enforced:
without namespaces other processes, the host's name, its mounts and its network interfaces stay visible, and without a
control group nothing limits memory or time. ::

    box = Sandbox(landlock=Landlock().allow_execute("/usr", "/bin", "/lib").allow_write("/tmp/work"))
    done = box.run(["python3", "script.py"], cwd="/tmp/work", timeout=5)
    print(box.report())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, overload

import attrs

from containerkit._native import constants as k
from containerkit.compile import process
from containerkit.compile.payload import strip
from containerkit.container.arguments import run_streams
from containerkit.container.captured import Terms, complete
from containerkit.errors import SpecError, StateError, telling_of_descriptors
from containerkit.meanings import explained
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.process.communicate import LineCallbacks
from containerkit.process.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.process.seccomp_notify import Supervision
from containerkit.process.stdio import Streams, Text, require_open
from containerkit.security import landlock as walls
from containerkit.security.capabilities import Capabilities, after_setuid, no_new_privs
from containerkit.security.checks import check_bool
from containerkit.security.confinement import Confinement
from containerkit.security.landlock import Landlock
from containerkit.spec.command import Command, extend_environment
from containerkit.start.context import own_pidfd, sealed_init

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Unpack

    from containerkit.options import (
        AnySandboxPopenOptions,
        Handler,
        Input,
        Listener,
        ListOf,
        SandboxCommandOptions,
        SandboxPopenOptions,
        SandboxRunOptions,
        Stream,
        Word,
    )
    from containerkit.plan.operation import Operation
    from containerkit.process.result import CompletedProcess
    from containerkit.security.landlock import Report
    from containerkit.security.seccomp import Seccomp

__all__ = ["Sandbox"]

_FIELDS: Final = frozenset({"env", "extra_env", "cwd", "umask", "rlimits", "nice", "pass_fds"})
_EXECUTE_HINT: Final = "it must exist and be allowed with its loader and libraries: Landlock.allow_execute(...)"
_UNCOVERED: Final = (
    "host names, mounts, network interfaces and other processes are visible, because there are no namespaces",
    "memory, processor time and the number of processes are unlimited, because there is no control group",
    "processes that start their own session outlive the command, because there is no init",
    "the user is the caller's own, with the caller's permissions on allowed files",
)


@attrs.frozen(kw_only=True)
class Sandbox:
    """The restrictions of a process without namespaces.

    Args:
        landlock: the files, ports and processes it may access. Default: none, not even its program.
        seccomp: the system calls it may make: ``"default"`` for those of a container, or None for all.
        set_id_bits: whether it may set set-user-ID and set-group-ID bits on files. Default False, because its files
            belong to users of the host.
        other_processes: whether it may limit, schedule and prioritise processes that it did not start, and share System
            V IPC and POSIX message queues with them. Default False: only the calling thread is allowed, as pid 0, not
            by its id as in ``pthread_setaffinity_np``. Both arguments override the rules of ``seccomp``, and have no
            effect if that is None.

    Raises:
        SpecError: a value is invalid.

    Source: landlock(7), seccomp(2), PR_SET_NO_NEW_PRIVS(2const).
    """

    landlock: Landlock = attrs.field(factory=Landlock)
    seccomp: Seccomp | Literal["default"] | None = "default"
    set_id_bits: bool = False
    other_processes: bool = False

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.landlock, Landlock):
            raise SpecError(f"landlock: {self.landlock!r} is not a Landlock")
        for name in ("set_id_bits", "other_processes"):
            check_bool(getattr(self, name), name)
        _ = self._confinement  # raises an error for an invalid filter

    @property
    def filter(self) -> Seccomp | None:
        """The filter of system calls. The default is resolved."""
        from containerkit.security.seccomp.guards import only_own_processes

        chosen = self._confinement.filter
        return chosen if chosen is None or self.other_processes else only_own_processes(chosen)

    @property
    def _confinement(self) -> Confinement:
        return Confinement(seccomp=self.seccomp, landlock=self.landlock, set_id_bits=self.set_id_bits)

    def _install(self) -> Iterable[Operation]:
        if self.seccomp == "default" and not (self.set_id_bits or self.other_processes):
            from containerkit.security.seccomp import ready

            prepared = ready.operations(ready.SANDBOX)
            if prepared is not None:
                return prepared
        return attrs.evolve(self._confinement, seccomp=self.filter, set_id_bits=True).install()

    def operations(self, kernel_abi: int, limits: Iterable[Operation] = ()) -> tuple[Operation, ...]:
        """Return the operations for the end of a plan. ``execve`` must come next.

        Args:
            kernel_abi: the result of :func:`containerkit.security.landlock.abi`.
            limits: operations that must come before the filter can refuse them.

        Raises:
            UnsupportedError: the ruleset is strict, and the kernel can't enforce all of it.
        """
        return (
            no_new_privs(),
            *self.landlock.operations(kernel_abi),
            # The bounding set stays, because clearing it needs privileges. After no_new_privs no execve uses it.
            *after_setuid(Capabilities.none()),
            *limits,
            *self._install(),
        )

    def report(self, kernel_abi: int | None = None) -> Report:
        """Return what is enforced and what is not.

        Args:
            kernel_abi: the Landlock ABI to report for. Default: this kernel's.
        """
        files = self.landlock.report(walls.abi() if kernel_abi is None else kernel_abi)
        also = ["no capabilities", "no new privileges"]
        if self.seccomp is not None:
            also.append("seccomp")
            also += [] if self.set_id_bits else ["no set-id bits"]
            also += [] if self.other_processes else ["no limits, schedules, IPC of other processes"]
        return attrs.evolve(files, enforced=(*files.enforced, *also), uncovered=(*files.uncovered, *_UNCOVERED))

    def apply(self, *, this_thread_only: bool = False) -> Report:
        """Restrict this process and everything it starts from now on, permanently.

        Args:
            this_thread_only: do not restrict the other threads of the process; see :meth:`Landlock.apply`.

        Raises:
            StateError: there are other threads.
            SpecError: the filter notifies, which needs a supervisor outside.
            UnsupportedError: the ruleset is strict, and the kernel can't enforce all of it.
            SetupError: a path of a rule does not exist, or the kernel refuses.
        """
        check_bool(this_thread_only, "this_thread_only")
        from containerkit.security.direct import perform

        if not this_thread_only and walls.has_other_threads():
            raise StateError("sandbox: other threads would stay unrestricted: apply it before they start")
        Supervision.of(self._confinement, None)
        kernel_abi = walls.abi()
        perform(self.operations(kernel_abi))
        return self.report(kernel_abi)

    # --- Commands

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxPopenOptions],
    ) -> Process[str]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[SandboxPopenOptions],
    ) -> Process[str]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[SandboxPopenOptions],
    ) -> Process[bytes]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxPopenOptions],
    ) -> Process[str] | Process[bytes]: ...

    @explained
    @telling_of_descriptors("popen")
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
        syscall_handler: Handler | None = None,
        **command: Unpack[SandboxCommandOptions],
    ) -> Process[Any]:
        """Start a command in the sandbox. It is killed when the thread that started it ends.

        Args:
            argv: its arguments. The first one is a path, or a name that is looked up along the PATH of ``env``.
            text, encoding, errors: as in :class:`subprocess.Popen`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.options.SandboxPopenOptions`.

        The user of the command is the caller's own.

        Raises:
            SpecError: a value is invalid.
            UnsupportedError: the ruleset is strict, and the kernel can't enforce all of it.
            SetupError: an operation failed; EACCES from ``execve`` if no rule allows the program or its loader.
        """
        if unknown := sorted(set(command) - _FIELDS):
            raise SpecError(f"unknown argument {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}")
        fields: dict[str, Any] = dict(command)
        extend_environment(fields)
        wanted = Command(argv=argv, confinement=self._confinement, **fields)
        for fd in wanted.pass_fds:
            require_open(fd, "pass_fds")
        program = Program(Plan(self._start(wanted)))
        streams = Streams.open(stdin, stdout, stderr)
        supervision: Supervision | None = None
        try:
            supervision = Supervision.of(wanted.confinement, syscall_handler)
            calls = supervision.inputs() if supervision is not None else {}
            outcome = program.run(
                {**streams.inputs(), **calls, "image": sealed_init(), "owner": own_pidfd()},
                argv=wanted.argv,
                envp=wanted.envp,
            )
        except BaseException:
            streams.close()
            if supervision is not None:
                supervision.close()
            raise
        streams.close_child()
        if supervision is not None:
            supervision.started()
        process = Process(
            wanted, outcome.pid, outcome.pidfd, streams, text=Text.of(text, encoding, errors), finish=_finish
        )
        process.supervision = supervision
        return process

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[SandboxRunOptions],
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
        **options: Unpack[SandboxRunOptions],
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
        **options: Unpack[SandboxRunOptions],
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
        **options: Unpack[SandboxRunOptions],
    ) -> CompletedProcess[str] | CompletedProcess[bytes]: ...

    @explained
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
        **more: Unpack[AnySandboxPopenOptions],
    ) -> CompletedProcess[Any]:
        """Run a command in the sandbox and wait until it ends.

        Args:
            argv: its arguments.
            input: the data for stdin. Default: none, /dev/null.
            text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.options.SandboxRunOptions`.

        Raises:
            ContainerTimeout: the timeout expired. The error has the output up to then.
            ExitError: the status is not 0, and ``check`` is True.
        """
        callbacks = LineCallbacks.of(on_stdout, on_stderr, kept=capture_output)
        terms = Terms.of(timeout, output_limit_bytes, check=check, callbacks=callbacks)
        process = self.popen(argv, **run_streams(input, more, capture=capture_output, callbacks=callbacks))
        return complete(process, input, terms)

    def _start(self, command: Command) -> tuple[Operation, ...]:
        confinement = command.confinement
        return (
            calls.clone(k.CLONE_PARENT | k.CLONE_FILES, "command", pid=Slot("pid"), target="command"),
            calls.release(),
            calls.leave(),
            calls.await_release("command"),
            *process.session(command),
            calls.enter(Slot("image"), process.passed(command)),
            *confinement.own_keyring(),
            *process.place(command),
            *calls.die_with_owner(Slot("owner")),
            strip(command),
            calls.reset_signals(),
            # The limits come after everything that opens files, because new descriptors may exceed them.
            *self.operations(walls.abi(), limits=process.limits_and_priority(command)),
            *(step._replace(hint=_EXECUTE_HINT) for step in process.execute(command)),
        )


def _finish(process: Process[Any]) -> None:
    """End the supervision, unless processes that the command left behind still have the filter."""
    if process.supervision is not None and process.supervision.ended:
        process.supervision.close()
