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

__all__ = ["Capture", "Program"]

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


class Program:
    """A plan that was compiled once.

    Args:
        plan: what to run.

    Raises:
        SpecError: the plan can't be encoded.
    """

    __slots__ = ("_last", "_names", "_program", "_tape", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tape = plan.encode()
        self._program = _native.interpreter().Program(self._tape.steps, self._tape.data)
        self._names = list(self._tape.slots)
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
        slots = [inputs.get(name, -1) for name in self._names]
        data = self._patched(blocks) if blocks else None
        numbers = self._tape.slots
        own = numbers.get("stdin", -1), numbers.get("stdout", -1), numbers.get("stderr", -1), numbers.get("report", -1)
        capture.deadline = None if capture.timeout is None else time.monotonic() + capture.timeout
        run = _native.interpreter().Run(own, capture.owner, capture.limit, capture.deadline)
        try:
            self._to_the_end(run, slots, data, argv, envp, flags)
            left: Left = run.left()
        except BaseException:
            rest = run.left()
            if rest.ending is None and rest.pidfd >= 0:  # a signal handler has raised
                capture.abandon(rest)
            raise
        return left

    def _to_the_end(
        self,
        run: Any,
        slots: list[int],
        data: bytes | None,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        flags: int,
    ) -> None:
        if problem := run.start(self._program, argv, envp, slots, _native.proc(), flags, data):
            raise self._error(Operation("clone"), problem)
        if run.failed:
            raise self._failure(run.outcome())
        while run.see_out() == EINTR:  # Python runs its signal handlers, and may raise
            continue

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
