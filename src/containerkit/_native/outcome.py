"""What both interpreters of the tape give back."""

from __future__ import annotations

from typing import Final, NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CALLER", "HIDE_MEMORY", "HOLD", "NO_PROCESS", "SECOND", "SHARE_FILES", "SLOTS", "Ending", "Left", "Outcome"]

SLOTS: Final = 1024
"""How many slots a tape can have: CK_SLOTS in native.h."""

SHARE_FILES: Final = 1
"""The tape opens descriptors for the caller."""
HIDE_MEMORY: Final = 2
"""The tape joins a live container: nothing inside may look into memory that it shares with the caller."""
NO_PROCESS: Final = 4
"""The tape ends without an exec: its processes are reaped before the call returns."""
HOLD: Final = 8
"""The tape holds its command back, for a second one to go on with."""

SECOND: Final = 0x100000
"""What is added to the index of a step of that second tape which failed: CK_SECOND in native.h."""

CALLER: Final = 2**31 - 1
"""``failed_index`` when the caller's own ``pidfd_open`` failed; with ETIMEDOUT the child never came to its exec."""


class Outcome(NamedTuple):
    """How a tape went.

    Attributes:
        pid: the process that it started, 0 if none.
        pidfd: a descriptor of it, close-on-exec, or -1.
        failed_index: the step that failed, or -1.
        error: its error number.
        times_ns: CLOCK_MONOTONIC when called, cloned, when stage 1 was gone and when all had exec'd.
        slots: what the slots that were handed in hold at the end.
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
        pid: its process, which is PID 1 where there is an init.
        ending: how it ended; None while it runs, and then the rest is the caller's.
        heard: what came out of stdout and of stderr until then.
        pidfd, ends, report: descriptors of the process, of both pipes, of the pipe to which init reports; -1 for none.
    """

    pid: int
    ending: Ending | None
    heard: tuple[bytes, bytes]
    pidfd: int
    ends: tuple[int, int]
    report: int


class Ending(NamedTuple):
    """How a process ended, and what it and the children that it waited for had used.

    Attributes:
        code: ``os.CLD_EXITED``, ``os.CLD_KILLED``, ``os.CLD_DUMPED``, ...
        status: the exit status or the signal.
        user_us, system_us: CPU time, microseconds.
        maxrss_kib: the largest resident set of one process, KiB.
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
        """Return the ending with the figures of a ``struct rusage``, 18 longs. Source: getrusage(2)."""
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
