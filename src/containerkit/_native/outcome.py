"""The results of both interpreters of the tape."""

from __future__ import annotations

from containerkit._native.packing import SLOTS
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

__all__ = [
    "CALLER",
    "HIDE_MEMORY",
    "HOLD",
    "JOIN",
    "NO_PROCESS",
    "SECOND",
    "SHARE_FILES",
    "SLOTS",
    "Ending",
    "Left",
    "Outcome",
]

SHARE_FILES: Final = 1
"""The tape opens descriptors for the caller."""
HIDE_MEMORY: Final = 2
"""The tape joins a live container: processes inside must not be able to read memory shared with the caller."""
NO_PROCESS: Final = 4
"""The tape ends without an exec: all its processes are reaped before the call returns."""
JOIN: Final = 16
"""The first process of the tape becomes the command in a live container. Failures are known at its end."""
HOLD: Final = 8
"""The tape holds its command until a second tape continues it."""

SECOND: Final = 0x100000
"""Added to the index of a failed step of that second tape: CK_SECOND in native.h."""

CALLER: Final = 2**31 - 1
"""``failed_index`` if the caller's own ``pidfd_open`` failed. With ETIMEDOUT the child never reached its exec."""


class Outcome(NamedTuple):
    """The result of a tape.

    Attributes:
        pid: the process that it started, or 0.
        pidfd: a descriptor of it, close-on-exec, or -1.
        failed_index: the step that failed, or -1.
        error: its error number.
        times_ns: CLOCK_MONOTONIC when it was called, cloned, when stage 1 was gone, and when all processes had exec'd.
        slots: the final values of the slots that were passed in.
    """

    pid: int
    pidfd: int
    failed_index: int
    error: int
    times_ns: tuple[int, int, int, int]
    slots: list[int]


class Left(NamedTuple):
    """What is left of a command that was run in one call.

    Attributes:
        pid: its process, which is PID 1 if there is an init.
        ending: how it ended, or None if it still runs; then the caller owns the rest.
        heard: the output on stdout and stderr until then.
        pidfd, ends, report: descriptors of the process, of both pipes, and of the pipe for init's report; -1 for none.
    """

    pid: int
    ending: Ending | None
    heard: tuple[bytes, bytes]
    pidfd: int
    ends: tuple[int, int]
    report: int


class Ending(NamedTuple):
    """How a process ended, and what it and its reaped children used.

    Attributes:
        code: ``os.CLD_EXITED``, ``os.CLD_KILLED``, ``os.CLD_DUMPED``, ...
        status: the exit status or the signal.
        user_us, system_us: processor time in microseconds.
        maxrss_kib: the largest resident set of one process in KiB.
    """

    pid: int
    code: int
    status: int
    user_us: int
    system_us: int
    maxrss_kib: int
    minor_faults: int
    major_faults: int
    in_blocks: int
    out_blocks: int
    voluntary_switches: int
    involuntary_switches: int

    @classmethod
    def of(cls, pid: int, code: int, status: int, usage: Sequence[int]) -> Ending:
        """Return the ending for the values of a ``struct rusage``, 18 longs. Source: getrusage(2)."""
        return cls(
            pid,
            code,
            status,
            usage[0] * 1_000_000 + usage[1],
            usage[2] * 1_000_000 + usage[3],
            usage[4],
            usage[8],
            usage[9],
            usage[11],
            usage[12],
            usage[16],
            usage[17],
        )
