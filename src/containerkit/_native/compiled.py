"""The C interpreter of the tape, as Python sees it."""

from __future__ import annotations

import os
from errno import EINTR
from typing import TYPE_CHECKING

from containerkit._native._lib import ffi, lib
from containerkit._native.outcome import Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NAME", "Program", "listen", "wait"]

NAME = "compiled"


class Program:
    """A tape that was checked once and can be run many times, from any thread.

    Args:
        steps: packed ``struct ck_step``.
        data: what the steps point into.

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
    ) -> Outcome:
        """Walk the tape in a new process; returns when all of its processes have exec'd or left.

        Args:
            argv, envp: the vectors of the exec; no NUL inside.
            slots: the first slots' values, those that the outcome tells of; any others are -1.
            proc_fd: the caller's /proc.
            flags: ``SHARE_FILES``, ``HIDE_MEMORY``, ``NO_PROCESS``.
            data: other data of the same length for this run.

        Raises:
            OSError: the process could not be made at all.
        """
        tape = self._tape
        if data is not None:
            changed = ffi.from_buffer(data)
            tape = ffi.new("struct ck_tape *", (self._steps, self._tape.count, changed, len(data)))
        registers = ffi.new("int64_t[]", slots)
        result = ffi.new("struct ck_result *")
        arguments = b"\0".join(argv) + b"\0"
        environment = b"\0".join(envp) + b"\0"
        error = lib.ck_spawn(
            tape, arguments, len(argv), environment, len(envp), registers, len(slots), proc_fd, flags, result
        )
        if error:
            raise OSError(-error, os.strerror(-error), "clone3")
        return Outcome(
            result.pid,
            result.pidfd,
            result.failed_index,
            result.error,
            tuple(result.times_ns),
            list(registers),
        )


def listen(pidfd: int, out: int, err: int, limit: int | None, deadline_ns: int | None) -> tuple[int, bytes, bytes]:
    """Read the outputs of a process until it has ended, and then what still lies in them; reaps and closes nothing.

    Args:
        pidfd: the process.
        out, err: pipes, -1 for none.
        limit: how many bytes are taken at most (None for any).
        deadline_ns: when to stop waiting, by CLOCK_MONOTONIC (None for never).

    Returns:
        0, or the number of the error that kept it from the end (ETIMEDOUT; EFBIG when there is more than the limit);
        and what came out of both until then.
    """
    heard = ffi.new("struct ck_heard[2]")
    heard[0].fd, heard[1].fd = out, err
    most = 2**63 - 1 if limit is None else limit
    until = -1 if deadline_ns is None else deadline_ns
    try:
        # After each interruption Python runs its signal handlers, whose exceptions end this.
        while (error := lib.ck_listen(pidfd, heard, most, until)) == -EINTR:
            pass
        first, second = heard[0], heard[1]
        return (
            -error,
            ffi.buffer(first.bytes, first.length)[:] if first.length else b"",
            ffi.buffer(second.bytes, second.length)[:] if second.length else b"",
        )
    finally:
        lib.ck_forget(heard)


def wait(pidfd: int, options: int) -> Ending | None:
    """Wait for a child by its pidfd. Source: waitid(2).

    Returns:
        How it ended; None when it is still running and ``options`` has WNOHANG.

    Raises:
        OSError: ECHILD when somebody else has reaped it; EINTR.
    """
    ending = ffi.new("struct ck_ending *")
    if error := lib.ck_wait(pidfd, options, ending):
        raise OSError(-error, os.strerror(-error), "waitid")
    if not ending.pid:
        return None
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
