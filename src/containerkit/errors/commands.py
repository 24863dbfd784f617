"""The errors of a command that failed or took too long, which are errors of :mod:`subprocess` too."""

from __future__ import annotations

from subprocess import CalledProcessError, TimeoutExpired

from containerkit.errors import ContainerError

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, TypeAlias

    from containerkit.process.result import Cause, CompletedProcess

    Written = str | bytes | None
    Result: TypeAlias = "CompletedProcess[str] | CompletedProcess[bytes]"

__all__ = ["ContainerTimeout", "ExitError", "OutOfMemory"]

_SHOWN_LINES: Final = 10
_SHOWN_CHARACTERS: Final = 2000
"""How much of a command's output its error shows."""

_MIB: Final = 1024 * 1024


class ExitError(ContainerError, CalledProcessError):
    """A command ended with a status other than zero, and ``check=True`` was given.

    Its text says how the command ended and has the last lines of its stderr, or of stdout if stderr was not captured.

    Attributes:
        returncode, cmd, stdout, stderr: as in :class:`subprocess.CalledProcessError`.
        cause: ``"exit"``, ``"signal"``, ``"oom"``, ``"seccomp"`` or ``"output"``.
        result: the complete result of the command; None for a command of a build.
    """

    cmd: Sequence[str]
    output: Written
    stdout: Written
    stderr: Written

    def __init__(
        self,
        returncode: int,
        cmd: Sequence[str],
        output: Written = None,
        stderr: Written = None,
        cause: Cause = "exit",
        result: Result | None = None,
    ) -> None:
        CalledProcessError.__init__(self, returncode, cmd, output, stderr)
        self.cause = cause
        self.result = result

    def __str__(self) -> str:
        message = f"{super().__str__().removesuffix('.')}{_used(self.result)}{self._reason()}"
        return _with_last_lines(message, self.result, self.output, self.stderr)

    def _reason(self) -> str:
        if self.cause == "seccomp":
            return ": it was killed for a system call (hint: `containerkit seccomp record` finds the calls to allow)"
        if self.cause == "output":
            return ": its output exceeded the limit (hint: raise output_limit_bytes)"
        return ""

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.returncode, self.cmd, self.output, self.stderr, self.cause, self.result)


class OutOfMemory(ExitError):  # noqa: N818 - the usual term, as in MemoryError
    """The kernel killed a process of the command because its group exceeded the memory limit.

    Its text has the limit and the largest amount of memory that was used.
    """

    def _reason(self) -> str:
        amounts: dict[str, int | None] = {}
        if self.result is not None:
            usage = self.result.usage
            amounts = {"limit": usage.memory_limit_bytes, "peak": usage.memory_peak_bytes}
        known = ", ".join(f"{name} {number / _MIB:.1f} MiB" for name, number in amounts.items() if number is not None)
        return f": out of memory{known and f' ({known})'} (hint: raise Limits(memory=...))"


class ContainerTimeout(ContainerError, TimeoutExpired, TimeoutError):  # noqa: N818 - named like TimeoutExpired
    """The timeout expired, and all processes of the command were killed. The error has the output until then.

    Its text has the resources that the command used and the last lines of its stderr, or of stdout if stderr is empty.

    Attributes:
        cmd, timeout, stdout, stderr: as in :class:`subprocess.TimeoutExpired`.
        result: the complete result of the command; None if ``wait`` or ``communicate`` raised the error.
    """

    cmd: Sequence[str]
    output: Written
    stdout: Written  # type: ignore[assignment] # typeshed only allows bytes, but the partial output may be text
    stderr: Written  # type: ignore[assignment] # as above

    def __init__(
        self,
        cmd: Sequence[str],
        timeout: float,
        output: Written = None,
        stderr: Written = None,
        result: Result | None = None,
    ) -> None:
        TimeoutExpired.__init__(self, cmd, timeout, output, stderr)
        self.result = result

    def __str__(self) -> str:
        message = f"{super().__str__()}{_used(self.result)}"
        return _with_last_lines(message, self.result, self.output, self.stderr or None)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr, self.result)


def _used(result: Result | None) -> str:
    """Return a text with the resources that a command used; empty if they are not known."""
    if result is None:
        return ""
    usage = result.usage
    words = [f"ran {result.duration_s:.2f} s", f"processor {(usage.user_us + usage.system_us) / 1e6:.2f} s"]
    memory = usage.memory_peak_bytes or usage.max_rss_bytes
    if memory is not None:
        words.append(f"memory {memory / _MIB:.1f} MiB")
    return f" ({', '.join(words)})"


def _with_last_lines(message: str, result: Result | None, stdout: Written, stderr: Written) -> str:
    name, written = "stderr", stderr
    if written is None and result is not None:  # the output of a build has already been shown
        name, written = "stdout", stdout
    lines = _last_lines(written)
    return "\n    ".join([f"{message}; the end of its {name}:", *lines]) if lines else message


def _last_lines(written: object) -> list[str]:
    """Return the last lines of a command's output. Control characters of terminals are escaped."""
    if not isinstance(written, (str, bytes)):
        return []
    end = written[-_SHOWN_CHARACTERS:]
    text = end if isinstance(end, str) else end.decode(errors="replace")
    return [_printable(line) for line in text.rstrip().splitlines()[-_SHOWN_LINES:]]


def _printable(line: str) -> str:
    return "".join(each if each.isprintable() or each == "\t" else repr(each)[1:-1] for each in line)


for _each in (ExitError, OutOfMemory, ContainerTimeout):
    _each.__module__ = "containerkit.errors"  # the name that users and pickles use
