"""Compile a plan once, run it many times, and convert failed steps to errors."""

from __future__ import annotations

import os
from errno import ECANCELED, EINVAL, ETIMEDOUT

from containerkit import _native, late
from containerkit._native import constants as k
from containerkit.errors import SetupError, SpecError
from containerkit.plan.operation import Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from containerkit._native.outcome import Outcome
    from containerkit.plan.operation import Argument
    from containerkit.plan.tape import Plan

__all__ = ["BESIDE", "Program", "proc", "was_killed"]

BESIDE = "beside"
"""The input with the address of what :meth:`Program.begin_beside` returned. The plan waits for it."""

_kept: dict[str, int] = {}


def proc() -> int:
    """Return a descriptor of the caller's /proc, opened once.

    Raises:
        SetupError: there is no procfs at /proc.
    """
    if "proc" not in _kept:
        fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.stat("self/ns", dir_fd=fd)
        except OSError as error:
            os.close(fd)
            hint = "mount a procfs on /proc, which shows this process: mount -t proc proc /proc"
            raise SetupError("stat", error.errno or 0, "/proc/self/ns", hint) from None
        fd = _native.high(fd)
        if _kept.setdefault("proc", fd) != fd:
            os.close(fd)  # another thread did it first
    return _kept["proc"]


def _not_begun(name: str, error: int) -> SetupError:
    """Return the error of a start that failed before or at its first operation."""
    made: SetupError = late.load(late.REFUSALS).not_begun(Operation(name), error)
    return made


def was_killed(what: str) -> SetupError:
    """Return the error of something whose maker was killed."""
    hint = "another process killed the process that makes it; if the kernel did so for lack of memory, raise the limit"
    return SetupError("make", ECANCELED, what, hint)


class Program:
    """A plan that was compiled once.

    Args:
        plan: what to run.

    Raises:
        SpecError: the plan can't be encoded.
        SetupError: there is no procfs at /proc.
    """

    __slots__ = ("_interpreter", "_last", "_names", "_own", "_proc", "_program", "_tape", "plan")

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._tape = plan.encode()
        self._proc = proc()
        self._interpreter = _native.interpreter()
        self._program = self._interpreter.Program(self._tape.steps, self._tape.data)
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
        into: list[Outcome] | None = None,
    ) -> Outcome:
        """Run it.

        Args:
            inputs: the values of slots that the caller provides, by name. Names that the plan does not use are ignored.
            argv, envp: the vectors for the exec.
            blocks: other bytes for named blocks, of the same length as in the plan.
            flags: ``_native.SHARE_FILES``, ``HIDE_MEMORY``, ``NO_PROCESS``.
            into: a list that gets the outcome before this returns. Its owner ends the process if a signal handler
                raises in the meantime.

        Raises:
            SetupError: an operation failed. Everything that was made is removed.
        """
        slots = [inputs.get(name, -1) for name in self._names]
        data = self._patched(blocks) if blocks else None
        try:
            opens = self._tape.descriptors if flags & _native.SHARE_FILES else frozenset()
            beside = inputs.get(BESIDE, 0)
            outcome: Outcome = self._program.run(argv, envp, slots, self._proc, flags, data, opens, into, beside)
        except SetupError:
            raise
        except OSError as error:
            raise _not_begun("clone", error.errno or EINVAL) from None
        if outcome.failed_index >= 0:
            failure = self._failure(outcome)
            if flags & _native.SHARE_FILES:
                self._close_rest(outcome)
            raise failure
        return outcome

    def begin_beside(self, inputs: Mapping[str, int]) -> Any:
        """Let another process walk it, which shares memory and descriptors with this one.

        Args:
            inputs: as for :meth:`run`.

        Returns:
            The compiled interpreter's ``Beside``, whose ``go_on`` takes the result of :meth:`with_blocks`; or None if
            this interpreter can't.

        Raises:
            SetupError: the process could not be created.
        """
        if self._interpreter.Beside is None:
            return None
        slots = [inputs.get(name, -1) for name in self._names]
        try:
            return self._interpreter.Beside(self._program, slots, self._proc, self._tape.descriptors)
        except OSError as error:
            raise _not_begun("clone", error.errno or EINVAL) from None

    def number(self, name: str) -> int:
        """Return the number of a slot."""
        return self._tape.slots[name]

    def captured(self, owner: int | None, limit: int | None, deadline: float | None, *, early: bool, keep: bool) -> Any:
        """Return an object that runs a command of this plan in two calls, with empty stdin and both outputs captured.

        It owns nothing until it is started, and ends a held command when it is garbage-collected.

        Args:
            owner: the owner of the pipes, a uid outside. None for the caller.
            limit: how many bytes it may write (None for no limit).
            deadline: the time on the monotonic clock until which to wait for it (None for no limit).
            early: whether to return when no process runs any more, before the kernel has removed the namespaces.
            keep: whether its pidfd stays open after its end.
        """
        return self._interpreter.Run(self._own, owner, limit, deadline, early=early, keep=keep)

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
        """Start a command of :meth:`captured`. With ``_native.HOLD`` it waits for :meth:`go`.

        Args:
            run: the object that :meth:`captured` returned.
            inputs, argv, envp, blocks, flags: as for :meth:`run`; this call makes the three streams and ``report``.

        Raises:
            SetupError: an operation failed. Everything that was made is removed.
        """
        slots = [inputs.get(name, -1) for name in self._names]
        data = self._patched(blocks) if blocks else None
        beside = inputs.get(BESIDE, 0)
        if problem := run.start(self._program, argv, envp, slots, self._proc, flags, data, beside):
            raise _not_begun("clone", problem)
        if run.failed:
            raise self._failure(run.outcome())

    def go(
        self, run: Any, argv: Sequence[bytes], envp: Sequence[bytes], limit: int | None, deadline: float | None
    ) -> None:
        """Let a held command continue with this plan. Failures are reported at its end.

        Raises:
            SetupError: it could not be continued.
        """
        if problem := run.go(self._program, argv, envp, limit, deadline):
            raise _not_begun("execve", problem)

    def failure_of_either(self, outcome: Outcome, rest: Program) -> SetupError:
        """Return the error of a start that may have failed in this plan or in the one that continued it."""
        if _native.SECOND <= outcome.failed_index < _native.CALLER:
            return rest._failure(outcome._replace(failed_index=outcome.failed_index - _native.SECOND))
        return self._failure(outcome)

    def failure(self, outcome: Outcome) -> SetupError:
        """Return the error of the operation that failed."""
        return self._failure(outcome)

    @property
    def slots(self) -> frozenset[str]:
        """The names of the slots that the plan uses."""
        return frozenset(self._names)

    def slot(self, outcome: Outcome, name: str) -> int:
        """Return the value of a slot at the end of a run."""
        return outcome.slots[self._tape.slots[name]]

    def _patched(self, blocks: Mapping[str, bytes]) -> bytes:
        """Return the data with these blocks. The last result is cached, because the same blocks often come again."""
        last, made = self._last
        if last is not blocks:
            made = self.with_blocks(blocks)
            self._last = blocks, made
        return made

    def with_blocks(self, blocks: Mapping[str, bytes]) -> bytes:
        """Return the data with other bytes for named blocks, of the same length as in the plan."""
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
                return SetupError("execve", ETIMEDOUT, "", "a process inside may have stopped the one that joined")
            return SetupError("pidfd_open", outcome.error, "", "raise the limit on open files: ulimit -n")
        # A container that may trace its processes can write any number to the report of one that joins.
        step = min(outcome.failed_index, len(self._tape.origin) - 1)
        operation = self.plan.operations[self._tape.origin[step]]
        if operation.step == k.STEP_NETLINK:
            operation = self._with_kernel_text(operation, outcome)
        elif operation.step == k.STEP_POPULATE:
            from containerkit.plan import entries

            operation = entries.failed(operation, self._value(operation.args[3], outcome))
        made: SetupError = late.load(late.REFUSALS).explained(operation, outcome.error)
        return made

    def _value(self, slot: Argument, outcome: Outcome) -> int:
        """Return the value of a slot when the run failed, or -1 if it is not known."""
        assert isinstance(slot, Slot)
        number = self._tape.slots[slot.name]
        return outcome.slots[number] if number < len(outcome.slots) else -1

    def _with_kernel_text(self, operation: Operation, outcome: Outcome) -> Operation:
        """Return a netlink operation with the kernel's text as its hint, if its ack can still be read."""
        from containerkit.plan.netlink import reason

        fd = self._value(operation.args[0], outcome)
        words = reason(fd) if fd >= 0 else ""
        return operation._replace(hint=words or operation.hint)
