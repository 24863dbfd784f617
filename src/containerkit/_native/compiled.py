"""The C interpreter of the tape, as used from Python."""

from __future__ import annotations

import contextlib
import os
import signal
from errno import EINTR, ENOMEM

from containerkit._native._lib import ffi, lib
from containerkit._native.outcome import Ending, Left, Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

__all__ = ["NAME", "Beside", "Program", "Run", "listen", "wait"]

NAME = "compiled"

_LATEST_NS = 2**62


class Program:
    """A tape that is checked once and can be run many times, from any thread.

    Args:
        steps: packed ``struct ck_step``.
        data: the data that the steps refer to.

    Raises:
        ValueError: a step is malformed.
    """

    __slots__ = ("_data", "_steps", "_tape")

    def __init__(self, steps: bytes, data: bytes) -> None:
        self._steps = ffi.from_buffer(steps)
        self._data = ffi.from_buffer(data)
        self._tape = ffi.new("struct ck_tape *", (self._steps, len(steps) // 72, self._data, len(data)))
        if bad := lib.ck_check(self._tape):
            raise ValueError(f"step {bad - 1} of the tape is malformed")

    def run(
        self,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
        flags: int = 0,
        data: bytes | None = None,
        opens: frozenset[int] = frozenset(),
        into: list[Outcome] | None = None,
        beside: int = 0,
    ) -> Outcome:
        """Walk the tape in a new process. Return when all of its processes have exec'd or exited.

        Args:
            argv, envp: the vectors of the exec, without NULs inside.
            slots: the values of the first slots, which the outcome reports. All others are -1.
            proc_fd: the caller's /proc.
            flags: ``SHARE_FILES``, ``HIDE_MEMORY``, ``NO_PROCESS``.
            data: other data of the same length for this run.
            opens: the slots in which the tape opens descriptors for the caller, with ``SHARE_FILES``.
            into: a list that gets the outcome, and with it the process; otherwise the caller gets it.
            beside: the address of a :class:`Beside` for which the tape waits, 0 for none.

        Raises:
            OSError: the process could not be created.
        """
        tape = self.tape(data, beside)
        registers = ffi.new("int64_t[]", slots)
        result = ffi.new("struct ck_result *")
        arguments, environment = _strings(argv), _strings(envp)
        result.pidfd = -1
        known = 0 if into is None else len(into)
        try:
            error = lib.ck_spawn(
                tape, arguments, len(argv), environment, len(envp), registers, len(slots), proc_fd, flags, result
            )
            outcome = _outcome(result, registers)
            if into is not None:
                into.append(outcome)
        except BaseException:  # a signal handler raised during the start, so nobody will learn of the process
            if result.pidfd >= 0 and (into is None or len(into) == known):
                end(result.pidfd)
            for number in opens:
                if number < len(slots) and registers[number] not in (-1, slots[number]):
                    os.close(registers[number])
            raise
        if error:
            raise OSError(-error, os.strerror(-error), "clone3")
        return outcome

    def tape(self, data: bytes | None, beside: int = 0) -> Any:
        """Return the tape for the C code, with other data of the same length if given."""
        if data is None and not beside:
            return self._tape
        bytes_of = self._data if data is None else ffi.from_buffer(data)
        awaited = ffi.cast("struct ck_request *", beside)
        return ffi.new("struct ck_tape *", (self._steps, self._tape.count, bytes_of, self._tape.data_size, awaited))


def _strings(words: Sequence[bytes]) -> bytes:
    return b"\0".join(words) + b"\0"


def _bounds(limit: int | None, deadline: float | None) -> tuple[int, int]:
    """Return the maximum number of bytes, and the deadline in nanoseconds, -1 for none."""
    until = -1 if deadline is None else int(min(deadline * 1e9, _LATEST_NS))
    return 2**63 - 1 if limit is None else limit, until


def _take(heard: Any) -> tuple[bytes, bytes]:
    """Return the captured output, and free it."""
    first, second = (ffi.buffer(one.bytes, one.length)[:] if one.length else b"" for one in heard)
    lib.ck_forget(heard)
    return first, second


def end(pidfd: int) -> None:
    """Kill a child, reap it and close its pidfd."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    _reap(pidfd)


def _reap(pidfd: int) -> None:
    ending = ffi.new("struct ck_ending *")
    try:
        while lib.ck_wait(pidfd, os.WEXITED, ending) == -EINTR:
            continue
    finally:
        os.close(pidfd)


def _outcome(result: Any, registers: Any) -> Outcome:
    return Outcome(result.pid, result.pidfd, result.failed_index, result.error, tuple(result.times_ns), list(registers))


class Run:
    """One command from start to end, as described in ``run.h``.

    Args:
        slots: the slots of its standard streams and of the pipe for init's report, -1 for none.
        owner: the uid that owns the pipes, or None for the caller.
        limit: the maximum number of bytes it may write, or None.
        deadline: when to stop waiting, on the monotonic clock, or None for never.
        early: whether to return when no process runs any more, before init has removed its namespaces.
        keep: whether its pidfd stays open at the end, until :meth:`release`.
    """

    __slots__ = ("_run",)

    def __init__(
        self,
        slots: tuple[int, int, int, int],
        owner: int | None,
        limit: int | None = None,
        deadline: float | None = None,
        *,
        early: bool = False,
        keep: bool = False,
    ) -> None:
        # Freed by C alone: an exception of a signal handler would be lost in __del__.
        self._run = run = ffi.gc(ffi.new("struct ck_run *"), lib.ck_dispose)
        run.result.pidfd = run.leaving = run.kept = -1
        run.stream_slots = slots[:3]
        run.report_slot = slots[3]
        run.owner = -1 if owner is None else owner
        run.early = early
        run.keep = keep
        run.limit, run.deadline_ns = _bounds(limit, deadline)

    def start(
        self,
        program: Program,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
        flags: int,
        data: bytes | None,
        beside: int = 0,
    ) -> int:
        """Start it; see :meth:`Program.run`.

        Returns:
            0, or the error number if the process could not be created. :attr:`failed` says whether a step of the start
            failed.
        """
        registers = ffi.new("int64_t[]", slots)
        arguments, environment = _strings(argv), _strings(envp)
        run = self._run
        error = lib.ck_run(
            program.tape(data, beside),
            arguments,
            len(argv),
            environment,
            len(envp),
            registers,
            len(slots),
            proc_fd,
            flags,
            run,
        )
        return -int(error)

    def go(
        self, program: Program, argv: Sequence[bytes], envp: Sequence[bytes], limit: int | None, deadline: float | None
    ) -> int:
        """Let a command that was started with ``HOLD`` continue with this tape. Returns like :meth:`start`.

        If one of its steps fails, :attr:`failed` says so after :meth:`see_out`.
        """
        run = self._run
        run.limit, run.deadline_ns = _bounds(limit, deadline)
        return -int(lib.ck_go(program.tape(None), _strings(argv), len(argv), _strings(envp), len(envp), run))

    def drop(self) -> None:
        """End a command that is held. It does nothing if it is not held."""
        if self._run.held != ffi.NULL:
            lib.ck_drop(self._run)

    @property
    def is_held(self) -> bool:
        """Whether it waits for :meth:`go`."""
        return bool(self._run.held != ffi.NULL)

    @property
    def is_leaving(self) -> bool:
        """Whether the command has ended, but its init must still be reaped."""
        return bool(self._run.leaving >= 0)

    def reap(self) -> None:
        """Wait for the end of an init that is exiting."""
        pidfd, self._run.leaving = self._run.leaving, -1
        if pidfd >= 0:
            _reap(pidfd)

    @property
    def pidfd(self) -> int:
        """A pidfd of the running process, or -1 if none runs."""
        return int(self._run.result.pidfd)

    def release(self) -> None:
        """Close the pidfd that was kept open."""
        pidfd, self._run.kept = self._run.kept, -1
        if pidfd >= 0:
            os.close(pidfd)

    @property
    def failed(self) -> bool:
        """Whether a step of the start failed."""
        return bool(self._run.result.failed_index >= 0)

    def outcome(self) -> Outcome:
        """Return how the start went."""
        return _outcome(self._run.result, ())

    def see_out(self) -> int:
        """Read its output and reap it. Return 0, or the error number of an interruption: then it still runs."""
        return -int(lib.ck_see_out(self._run))

    def left(self) -> Left:
        """Return what is left. The caller then owns its descriptors. A command that is still held is ended."""
        self.drop()
        run = self._run
        running = run.result.pidfd >= 0
        ending = None if running else _ending(run.ending)
        ends = run.ends[0], run.ends[1]
        return Left(run.result.pid, ending, _take(run.heard), run.result.pidfd, ends, run.report)


class Beside:
    """A tape that a process walks beside the caller, as described in ``beside.h``.

    Args:
        program: the tape.
        slots, proc_fd, opens: as for :meth:`Program.run`. It closes the descriptors that nobody takes.

    Raises:
        OSError: the process could not be created.
    """

    __slots__ = ("_beside", "_program", "_registers")

    def __init__(self, program: Program, slots: Sequence[int], proc_fd: int, opens: frozenset[int]) -> None:
        made = lib.ck_beside_new()
        if made == ffi.NULL:
            raise OSError(ENOMEM, os.strerror(ENOMEM), "mmap")
        # Freed by C alone: an exception of a signal handler would be lost in __del__.
        self._beside = ffi.gc(made, lib.ck_beside_dispose)
        self._program = program  # the process reads its steps
        self._registers = ffi.new("int64_t[]", slots)
        numbers = tuple(opens)
        tape = program.tape(None)
        error = lib.ck_beside_begin(made, tape, self._registers, len(slots), numbers, len(numbers), proc_fd)
        if error:
            raise OSError(-error, os.strerror(-error), "clone3")

    @property
    def address(self) -> int:
        """Its address, for a start that waits for its end."""
        return int(ffi.cast("uintptr_t", lib.ck_beside_request(self._beside)))

    def await_slots(self) -> Sequence[int] | None:
        """Wait until the slots have what a start needs, and return them; None if the process ended before."""
        return None if lib.ck_beside_await(self._beside, self._registers) else list(self._registers)

    def go_on(self, data: bytes) -> None:
        """Let the process continue after its second gate, with other data of the same length.

        Raises:
            ValueError: the length differs.
        """
        if lib.ck_beside_go_on(self._beside, ffi.from_buffer(data), len(data)):
            raise ValueError(f"{len(data)} bytes are not those of the tape")

    def end(self) -> Outcome:
        """Wait for the end of the process. One that was not told to go on ends at once. May be called twice."""
        result = ffi.new("struct ck_result *")
        lib.ck_beside_end(self._beside, self._registers, result)
        return _outcome(result, self._registers)

    def take(self, slot: int, into: list[int]) -> None:
        """Append the descriptor in a slot to a list, whose owner then owns it. No signal handler runs in between."""
        into.extend(map(lib.ck_beside_take, (self._beside,), (slot,)))


def listen(pidfd: int, out: int, err: int, limit: int | None, deadline: float | None) -> tuple[int, bytes, bytes]:
    """Read the outputs of a process until it ends, and then the rest in the pipes. Nothing is reaped or closed.

    Args:
        pidfd: a pidfd of the process.
        out, err: pipes, -1 for none.
        limit: the maximum number of bytes, or None.
        deadline: when to stop waiting, on the monotonic clock, or None for never.

    Returns:
        0, or the error number of an interruption (ETIMEDOUT; EFBIG if there is more than the limit); and the output of
        both until then.
    """
    heard = ffi.new("struct ck_heard[2]")
    heard[0].fd, heard[1].fd = out, err
    most, until = _bounds(limit, deadline)
    try:
        # After each interruption Python runs its signal handlers. An exception of theirs ends the loop.
        while (error := lib.ck_listen(pidfd, heard, most, until)) == -EINTR:
            continue
        return -error, *_take(heard)
    finally:
        lib.ck_forget(heard)


def wait(pidfd: int, options: int) -> Ending | None:
    """Wait for a child by its pidfd. Source: waitid(2).

    Returns:
        How it ended, or None if it is still running and ``options`` has WNOHANG.

    Raises:
        OSError: ECHILD if another thread or process has reaped it; EINTR.
    """
    ending = ffi.new("struct ck_ending *")
    if error := lib.ck_wait(pidfd, options, ending):
        raise OSError(-error, os.strerror(-error), "waitid")
    if not ending.pid:
        return None
    return _ending(ending)


def _ending(ending: Any) -> Ending:
    return Ending(
        ending.pid,
        ending.code,
        ending.status,
        ending.user_us,
        ending.system_us,
        ending.maxrss_kib,
        ending.minor_faults,
        ending.major_faults,
        ending.in_blocks,
        ending.out_blocks,
        ending.voluntary_switches,
        ending.involuntary_switches,
    )
