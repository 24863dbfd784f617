"""The end of a command, and the resources that it used."""

from __future__ import annotations

import os
import signal
import time
from resource import RUSAGE_SELF, getrusage

from containerkit._native.outcome import Ending
from containerkit.typed import AnyStr, Generic, Literal
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, Self

    from containerkit.cgroup.stats import GroupUsage

__all__ = ["Cause", "CompletedProcess", "Usage", "decode", "result_fields"]

Cause = Literal["exit", "signal", "timeout", "oom", "seccomp", "output"]

_NOT_CAPTURED: Final[Any] = None


@frozen(kw_only=True)
class Usage:
    """The resources that a command used, including its children that were waited for.

    Attributes:
        user_us, system_us: processor time in microseconds.
        max_rss_bytes: the largest resident set of any one process. None if it was no larger than the caller's own:
            until its exec the process shared the caller's memory, so the kernel's figure may be the caller's.
        minor_faults, major_faults: page faults without and with I/O.
        in_blocks, out_blocks: 512-byte blocks read from and written to devices.
        voluntary_switches, involuntary_switches: context switches.
        memory_peak_bytes: the largest total memory at a time; None without a memory controller.
        memory_limit_bytes: the memory limit of its container; None without one.
        throttled_us: how long the processor limit stopped it, in microseconds. In a container: how long the container
            was stopped in the meantime. None without a cpu controller, or if the limit was set while it ran.
        group: the whole report of the control group; None without one.

    Source: getrusage(2).
    """

    user_us: int = 0
    system_us: int = 0
    max_rss_bytes: int | None = None
    minor_faults: int = 0
    major_faults: int = 0
    in_blocks: int = 0
    out_blocks: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    memory_peak_bytes: int | None = None
    memory_limit_bytes: int | None = None
    throttled_us: int | None = None
    group: GroupUsage | None = None

    @classmethod
    def from_ending(cls, ending: Ending) -> Usage:
        """Return the usage of a process that was waited for."""
        return cls(
            user_us=ending.user_us,
            system_us=ending.system_us,
            max_rss_bytes=_own_rss(ending.maxrss_kib),
            minor_faults=ending.minor_faults,
            major_faults=ending.major_faults,
            in_blocks=ending.in_blocks,
            out_blocks=ending.out_blocks,
            voluntary_switches=ending.voluntary_switches,
            involuntary_switches=ending.involuntary_switches,
        )


def _own_rss(maxrss_kib: int) -> int | None:
    return maxrss_kib * 1024 if maxrss_kib > getrusage(RUSAGE_SELF).ru_maxrss else None


def result_fields(ending: Ending) -> tuple[int, Usage, Cause]:
    """Return the returncode, the usage and the cause of a status, as in :class:`CompletedProcess`."""
    exited = ending.code == os.CLD_EXITED
    return ending.status if exited else -ending.status, Usage.from_ending(ending), cause_of(ending)


@frozen(kw_only=True)
class CompletedProcess(Generic[AnyStr]):
    """A command that has ended: ``CompletedProcess[str]`` with ``text=True`` or an encoding, else of bytes.

    Attributes:
        args: its argv.
        returncode: its exit status, or the negative number of the signal that ended it.
        stdout, stderr: its output, bytes or text. None if it was not captured. The types do not express this.
        usage: the resources that it used.
        cause: why it ended: ``"exit"``, ``"signal"``, ``"timeout"``, ``"oom"``, ``"seccomp"``, or ``"output"`` if it
            wrote more than the limit.
        duration_s: seconds from the call to the end.
    """

    args: list[str]
    returncode: int
    stdout: AnyStr = _NOT_CAPTURED
    stderr: AnyStr = _NOT_CAPTURED
    usage: Usage = field(factory=Usage)
    cause: Cause = "exit"
    duration_s: float = 0.0

    @classmethod
    def now(
        cls, args: list[str], returncode: int, written: tuple[Any, Any], usage: Usage, cause: Cause | None, began: float
    ) -> Self:
        """Return the result of a command that has just ended. ``began`` is a time of the monotonic clock."""
        stdout, stderr = written
        return cls(
            args=args,
            returncode=returncode,
            stdout=stdout,
            stderr=stderr,
            usage=usage,
            cause=cause or "exit",
            duration_s=time.monotonic() - began,
        )

    def check_returncode(self) -> None:
        """Raise unless the exit status is 0.

        Raises:
            OutOfMemory: the kernel killed it for its memory.
            ExitError: any other end.
        """
        if self.returncode:
            from containerkit.errors import ExitError, OutOfMemory

            kind = OutOfMemory if self.cause == "oom" else ExitError
            raise kind(self.returncode, self.args, self.stdout, self.stderr, self.cause, self)


def cause_of(ending: Ending) -> Cause:
    """Return why a process ended, as far as its status shows."""
    if ending.code == os.CLD_EXITED:
        return "exit"
    return "seccomp" if ending.status == signal.SIGSYS else "signal"


def decode(pid: int, status: int, usage: tuple[int, ...]) -> Ending:
    """Return the ending of a wait status and a struct rusage."""
    if os.WIFEXITED(status):
        return Ending.of(pid, os.CLD_EXITED, os.WEXITSTATUS(status), usage)
    return Ending.of(pid, os.CLD_KILLED, os.WTERMSIG(status), usage)
