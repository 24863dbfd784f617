"""A sandbox without namespaces, for hosts that forbid them: Landlock, seccomp and no capabilities.

It holds a command, or the very process that asks for it; no privilege is needed. What that doesn't give is said in its
report: without namespaces other processes, the host's name, its mounts and its network interfaces stay in sight, and
without a control group nothing limits memory or time. ::

    box = Sandbox(landlock=Landlock().allow_execute("/usr", "/bin", "/lib").allow_write("/tmp/work"))
    done = box.run(["python3", "script.py"], cwd="/tmp/work", timeout=5)
    print(box.report())
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import command as commands
from containerkit import plan
from containerkit._native import constants as k
from containerkit.command import Command
from containerkit.engine import Program
from containerkit.errors import SpecError, StateError
from containerkit.invocation import check_numbers, complete, run_streams
from containerkit.plan import Plan, Slot
from containerkit.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.security import landlock as walls
from containerkit.security.capabilities import Capabilities, after_setuid, no_new_privs
from containerkit.security.confinement import Confinement
from containerkit.security.landlock import Landlock
from containerkit.streams import Streams, Text, require_open
from containerkit.supervision import Supervision

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

    from containerkit.plan import Operation
    from containerkit.result import CompletedProcess
    from containerkit.security.landlock import Report
    from containerkit.security.seccomp import Seccomp

__all__ = ["Sandbox"]

_FIELDS: Final = frozenset({"env", "cwd", "umask", "rlimits", "nice", "pass_fds"})
_EXECUTE_HINT: Final = "it has to be there, and allowed with its loader and libraries: Landlock.allow_execute(...)"
_UNCOVERED: Final = (
    "host names, mounts, network interfaces and other processes stay in sight: there is no namespace",
    "memory, processor time and the number of processes are unlimited: there is no control group",
    "what a command leaves behind in a session of its own outlives it: there is no init",
    "the user is the caller's own, on files that a rule allows as everywhere",
)


@attrs.frozen(kw_only=True)
class Sandbox:
    """What a process without namespaces is held by.

    Args:
        landlock: the files, ports and processes it may reach; by default none at all, not even the program.
        seccomp: the system calls it may make: ``"default"`` for those of a container, or None for all.

    Raises:
        SpecError: something else was given.

    Source: landlock(7), seccomp(2), PR_SET_NO_NEW_PRIVS(2const).
    """

    landlock: Landlock = attrs.field(factory=Landlock)
    seccomp: Any = "default"

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.landlock, Landlock):
            raise SpecError(f"landlock: {self.landlock!r} is no Landlock")
        if self.seccomp not in ("default", None) and type(self.seccomp).__name__ != "Seccomp":
            raise SpecError(f"seccomp: {self.seccomp!r} is neither 'default', None nor a Seccomp")

    @property
    def filter(self) -> Seccomp | None:
        """The filter of system calls, with the default resolved."""
        return self._confinement.filter

    @property
    def _confinement(self) -> Confinement:
        return Confinement(seccomp=self.seccomp, landlock=self.landlock)

    def operations(self, kernel_abi: int, limits: Iterable[Operation] = ()) -> tuple[Operation, ...]:
        """Return the operations, for the end of a plan; ``execve`` comes next.

        Args:
            kernel_abi: what :func:`containerkit.security.landlock.abi` says.
            limits: what is done before the filter can refuse it.

        Raises:
            UnsupportedError: the kernel can't hold all of a strict ruleset.
        """
        return (
            no_new_privs(),
            *self.landlock.operations(kernel_abi),
            # The bounding set stays, since emptying it takes privilege; after no_new_privs no execve gains from it.
            *after_setuid(Capabilities.none()),
            *limits,
            *self._confinement.install(),
        )

    def report(self, kernel_abi: int | None = None) -> Report:
        """Return what is enforced and what is not.

        Args:
            kernel_abi: of which Landlock ABI (default: this kernel's).
        """
        files = self.landlock.report(walls.abi() if kernel_abi is None else kernel_abi)
        also = ["no capabilities", "no new privileges", *(["seccomp"] if self.seccomp is not None else [])]
        return attrs.evolve(files, enforced=(*files.enforced, *also), uncovered=(*files.uncovered, *_UNCOVERED))

    def apply(self, *, this_thread_only: bool = False) -> Report:
        """Restrict this process, for good, and all it starts from now on.

        Args:
            this_thread_only: leave the process's other threads as they are; see :meth:`Landlock.apply`.

        Raises:
            StateError: there are other threads.
            SpecError: a filter that notifies: it needs a supervisor outside.
            UnsupportedError: the kernel can't hold all of a strict ruleset.
            SetupError: a path of a rule isn't there, or the kernel refuses.
        """
        from containerkit.security.direct import perform

        if not this_thread_only and walls.has_other_threads():
            raise StateError("other threads would stay unrestricted: apply it before they start")
        Supervision.of(self._confinement, None)
        kernel_abi = walls.abi()
        perform(self.operations(kernel_abi))
        return self.report(kernel_abi)

    # --- Commands

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
        syscall_handler: Callable[[Any], Any] | None = None,
        **command: Any,
    ) -> Process:
        """Start a command in the sandbox; it is killed when the thread that started it ends.

        Args:
            argv: its words; the first is a path, or looked up along the PATH of ``env``.
            stdin, stdout, stderr, text, encoding, errors: as for :meth:`containerkit.Container.popen`.
            syscall_handler: decides the calls that the filter notifies of, as there.
            command: ``env``, ``cwd``, ``umask``, ``rlimits``, ``nice``, ``pass_fds``, as there; the user stays the
                caller's own.

        Raises:
            SpecError: a value that can't be.
            UnsupportedError: the kernel can't hold all of a strict ruleset.
            SetupError: an operation failed; EACCES from ``execve`` where no rule allows the program, or its loader.
        """
        if unknown := sorted(set(command) - _FIELDS):
            raise SpecError(f"unknown argument {unknown[0]!r}; there are {', '.join(sorted(_FIELDS))}")
        wanted = Command(argv=argv, confinement=self._confinement, **command)
        for fd in wanted.pass_fds:
            require_open(fd, "pass_fds")
        program = Program(Plan(self._start(wanted)))
        streams = Streams.open(stdin, stdout, stderr)
        supervision: Supervision | None = None
        try:
            supervision = Supervision.of(wanted.confinement, syscall_handler)
            calls = supervision.inputs() if supervision is not None else {}
            outcome = program.run({**streams.inputs(), **calls}, argv=wanted.argv, envp=wanted.envp)
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
        """Run a command in the sandbox and wait for its end.

        Args:
            argv: its words.
            input, timeout, check, capture_output, output_limit_bytes: as for :meth:`containerkit.Container.run`.
            more: as for :meth:`popen`.

        Raises:
            ContainerTimeout: with what it had written by then.
            ExitError: with ``check``.
        """
        check_numbers(timeout, output_limit_bytes)
        began = time.monotonic()
        process = self.popen(argv, **run_streams(input, more, capture=capture_output))
        return complete(process, began, input, timeout, output_limit_bytes, check=check)

    def _start(self, command: Command) -> tuple[Operation, ...]:
        confinement = command.confinement
        return (
            plan.clone(k.CLONE_PARENT | k.CLONE_FILES, "command", pid=Slot("pid"), target="command"),
            plan.release(),
            plan.leave(),
            plan.await_release("command"),
            *commands.session(command),
            *confinement.first(),
            *confinement.own_keyring(),
            *commands.place(command),
            *commands.close_the_rest(command.pass_fds),
            plan.prctl("die with the parent", k.PR_SET_PDEATHSIG, 9),
            plan.reset_signals(),
            # The limits come after all that opens files: the numbers of new descriptors may lie beyond them.
            *self.operations(walls.abi(), limits=commands.surroundings(command)),
            *(step._replace(hint=_EXECUTE_HINT) for step in commands.execute(command)),
        )


def _finish(process: Process) -> None:
    """End the supervision, unless something that the command left behind still has the filter."""
    if process.supervision is not None and process.supervision.ended:
        process.supervision.close()
