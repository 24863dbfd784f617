"""Compiles a plan once and runs it many times; turns a step that failed into an error for people."""

from __future__ import annotations

import os
import time
from errno import EACCES, EAGAIN, EINTR, EINVAL, EMFILE, ENOENT, ENOSPC, ENOSYS, EPERM, ETIMEDOUT, EUSERS
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit.errors import SetupError, SpecError, UnsupportedError
from containerkit.plan import Operation, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from containerkit._native.outcome import Left, Outcome

__all__ = ["Capture", "Held", "Program", "see_out"]

_HINTS: Final = {
    ("clone", EPERM): "this host forbids namespaces to this user; `containerkit probe` tells more",
    ("clone", ENOSPC): "a limit on namespaces is reached: see user.max_*_namespaces, or nesting is deeper than 32",
    ("clone", EAGAIN): "a limit on processes is reached: see ulimit -u, pids.max and kernel.pid_max",
    ("clone", EMFILE): "raise the limit on open files: ulimit -n",
    ("clone", EINVAL): "the kernel lacks one of these namespaces, or they can't be combined",
    ("clone", ENOSYS): "clone3 needs Linux 5.5 and a seccomp filter around this process that lets it through",
    ("execve", ENOENT): "the command, or the interpreter that it names, is not inside the container",
    ("mount_setattr", ENOSYS): "mount_setattr needs Linux 5.12",
}


_FORBIDDEN: Final = frozenset({EPERM, EACCES, ENOSPC, EUSERS})
"""How the kernel, or a security module, answers those that may make no namespaces."""


class Capture:
    """What is to become of what a command writes.

    Args:
        abandon: what ends a command in the midst of which an exception comes.
        owner: who shall own the pipes, a uid outside; None for the caller.
        limit: how many bytes it may write at most (None for any).
        timeout: how many seconds to wait for it (None for ever).

    Attributes:
        deadline: until when, by the monotonic clock; known once it is being started.
    """

    def __init__(
        self, *, abandon: Callable[[Left], None], owner: int | None, limit: int | None, timeout: float | None
    ) -> None:
        self.abandon = abandon
        self.owner = owner
        self.limit = limit
        self.timeout = timeout
        self.deadline: float | None = None

    def begin(self) -> None:
        """Let the time run from now on."""
        self.deadline = None if self.timeout is None else time.monotonic() + self.timeout

    def left(self, run: Any, do: Callable[[], None]) -> Left:
        """Do what brings a run to its end, and return what is left of it."""
        try:
            do()
            left: Left = run.left()
        except BaseException:
            self.give_up(run)
            raise
        return left

    def give_up(self, run: Any) -> None:
        """End what still runs where a signal handler has raised."""
        rest = run.left()
        if rest.ending is None and rest.pidfd >= 0:
            self.abandon(rest)


def see_out(run: Any) -> None:
    """Hear a run out to its end, or to what keeps it from that."""
    while run.see_out() == EINTR:  # Python runs its signal handlers, and may raise
        continue


class Program:
    """A plan that was compiled once.

    Args:
        plan: what to run.

    Raises:
        SpecError: the plan can't be encoded.
    """

    __slots__ = ("_last", "_names", "_own", "_program", "_tape", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tape = plan.encode()
        self._program = _native.interpreter().Program(self._tape.steps, self._tape.data)
        self._names = list(self._tape.slots)
        self._own = tuple(self._tape.slots.get(name, -1) for name in ("stdin", "stdout", "stderr", "report"))
        self._last: tuple[Mapping[str, bytes] | None, bytes] = None, b""

    def run(
        self,
        inputs: Mapping[str, int],
        *,
        argv: Sequence[bytes] = (),
        envp: Sequence[bytes] = (),
        blocks: Mapping[str, bytes] | None = None,
        flags: int = 0,
    ) -> Outcome:
        """Run it.

        Args:
            inputs: the values of slots that the caller fills, by name; names that the plan lacks are left out.
            argv, envp: the vectors for the exec.
            blocks: other bytes for named blocks, each of the length that it has in the plan.
            flags: ``_native.SHARE_FILES``, ``HIDE_MEMORY``, ``NO_PROCESS``.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        slots = [inputs.get(name, -1) for name in self._names]
        data = self._patched(blocks) if blocks else None
        try:
            outcome: Outcome = self._program.run(argv, envp, slots, _native.proc(), flags, data)
        except OSError as error:
            raise self._error(Operation("clone"), error.errno or EINVAL) from None
        if outcome.failed_index >= 0:
            if flags & _native.SHARE_FILES:
                self._close_rest(outcome)
            raise self._failure(outcome)
        return outcome

    def complete(
        self,
        inputs: Mapping[str, int],
        *,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        blocks: Mapping[str, bytes] | None = None,
        flags: int = 0,
        capture: Capture,
    ) -> Left:
        """Run a command to its end in one call: nothing on its stdin, both outputs heard.

        Args:
            inputs, argv, envp, blocks, flags: as for :meth:`run`; the three streams, and ``report``, are made here.
            capture: what is to become of what it writes.

        Returns:
            What is left; without an ending it still runs, and the rest is the caller's.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        run = self.prepared(capture)

        def do() -> None:
            self.begin(run, inputs, argv=argv, envp=envp, blocks=blocks, flags=flags)
            see_out(run)

        return capture.left(run, do)

    def prepared(self, capture: Capture, *, keep: bool = False) -> Any:
        """Return what a command runs as in one call, its time running from now on.

        Args:
            capture: what is to become of what it writes.
            keep: its pidfd stays open at its end.
        """
        capture.begin()
        return _native.interpreter().Run(self._own, capture.owner, capture.limit, capture.deadline, keep=keep)

    def begin(
        self,
        run: Any,
        inputs: Mapping[str, int],
        *,
        argv: Sequence[bytes] = (),
        envp: Sequence[bytes] = (),
        blocks: Mapping[str, bytes] | None = None,
        flags: int = 0,
    ) -> None:
        """Start what was :meth:`prepared`; the arguments are those of :meth:`complete`.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        slots = [inputs.get(name, -1) for name in self._names]
        data = self._patched(blocks) if blocks else None
        if problem := run.start(self._program, argv, envp, slots, _native.proc(), flags, data):
            raise self._error(Operation("clone"), problem)
        if run.failed:
            raise self._failure(run.outcome())

    def hold(self, inputs: Mapping[str, int], *, blocks: Mapping[str, bytes], owner: int | None, early: bool) -> Held:
        """Run it up to where its command is held.

        Args:
            inputs, blocks: as for :meth:`run`; the three streams, and ``report``, are made here.
            owner: as for :class:`Capture`.
            early: the command is over once nothing runs any more, though init has yet to take the namespaces down.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        run = _native.interpreter().Run(self._own, owner, early=early)
        self.begin(run, inputs, blocks=blocks, flags=_native.HOLD)
        return Held(self, run)

    def go(self, run: Any, argv: Sequence[bytes], envp: Sequence[bytes], capture: Capture) -> None:
        """Let a run that was held go on with this plan."""
        if problem := run.go(self._program, argv, envp, capture.limit, capture.deadline):
            raise self._error(Operation("execve"), problem)

    def failure_of_either(self, outcome: Outcome, rest: Program) -> SetupError:
        """Return the error of a start that this plan had brought to where another went on."""
        if _native.SECOND <= outcome.failed_index < _native.CALLER:
            return rest._failure(outcome._replace(failed_index=outcome.failed_index - _native.SECOND))
        return self._failure(outcome)

    @property
    def slots(self) -> frozenset[str]:
        """The names of the slots that the plan uses."""
        return frozenset(self._names)

    def slot(self, outcome: Outcome, name: str) -> int:
        """Return what a slot held at the end of a run."""
        return outcome.slots[self._tape.slots[name]]

    def _patched(self, blocks: Mapping[str, bytes]) -> bytes:
        """Return the data with these blocks; that of the last ones is kept, since they often come again."""
        last, made = self._last
        if last is not blocks:
            made = self._with_blocks(blocks)
            self._last = blocks, made
        return made

    def _with_blocks(self, blocks: Mapping[str, bytes]) -> bytes:
        data = bytearray(self._tape.data)
        for name, content in blocks.items():
            if name not in self._tape.blocks:
                continue
            offset, length = self._tape.blocks[name]
            if len(content) != length:
                raise SpecError(f"block {name}: {len(content)} bytes where the plan has room for {length}")
            data[offset : offset + length] = content
        return bytes(data)

    def _close_rest(self, outcome: Outcome) -> None:
        for number in self._tape.descriptors:
            if number < len(outcome.slots) and outcome.slots[number] >= 0:
                os.close(outcome.slots[number])

    def _failure(self, outcome: Outcome) -> SetupError:
        if outcome.failed_index == _native.CALLER:
            if outcome.error == ETIMEDOUT:
                return SetupError("execve", ETIMEDOUT, "", "something inside may have stopped the process that joined")
            return SetupError("pidfd_open", outcome.error, "", "raise the limit on open files: ulimit -n")
        operation = self.plan.operations[self._tape.origin[outcome.failed_index]]
        return self._error(operation, outcome.error)

    @staticmethod
    def _error(operation: Operation, error: int) -> SetupError:
        hint = operation.hint or _HINTS.get((operation.name, error), "")
        forbidden = operation.name in ("clone", "unshare") and error in _FORBIDDEN
        if forbidden:
            from containerkit._linux.features import why_no_namespaces

            hint = why_no_namespaces(error) or hint
        kind = UnsupportedError if error == ENOSYS or forbidden else SetupError
        return kind(operation.name, error, operation.target, hint)


class Held:
    """A start whose command waits for its words; made by :meth:`Program.hold`, used once.

    Args:
        program: the plan that came so far.
        run: what it runs as.
    """

    __slots__ = ("_program", "_run")

    def __init__(self, program: Program, run: Any) -> None:
        self._program = program
        self._run = run

    def complete(self, rest: Program, *, argv: Sequence[bytes], envp: Sequence[bytes], capture: Capture) -> Left:
        """Run the command to its end, as :meth:`Program.complete` does.

        Args:
            rest: what is left to do for it.
            argv, envp: the vectors for the exec.
            capture: what is to become of what it writes; its ``owner`` was given before.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        capture.begin()
        return capture.left(self._run, lambda: self._go(rest, argv, envp, capture))

    def _go(self, rest: Program, argv: Sequence[bytes], envp: Sequence[bytes], capture: Capture) -> None:
        run = self._run
        rest.go(run, argv, envp, capture)
        if run.failed:
            raise self._program.failure_of_either(run.outcome(), rest)
        see_out(run)

    @property
    def waits(self) -> bool:
        """Whether it waits for its words still."""
        return bool(self._run.is_held)

    @property
    def is_leaving(self) -> bool:
        """Whether the command has ended, and all that it has started; init is yet to be reaped."""
        return bool(self._run.is_leaving)

    def end(self) -> None:
        """Kill it if it waits, and wait for its end if it is leaving; harmless otherwise."""
        self._run.drop()
        self._run.reap()


def encode(words: Sequence[str | bytes | os.PathLike[str]], what: str) -> list[bytes]:
    """Return the words of a vector as bytes.

    Raises:
        SpecError: one of them is no string or has a NUL inside.
    """
    encoded: list[bytes] = []
    for word in words:
        if not isinstance(word, (str, bytes, os.PathLike)):
            raise SpecError(f"{what}: {word!r} must be a string, bytes or a path, not {type(word).__name__}")
        raw = os.fsencode(word)
        if b"\0" in raw:
            raise SpecError(f"{what}: {word!r} has a NUL byte inside")
        encoded.append(raw)
    return encoded
