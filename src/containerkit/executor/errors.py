"""Errors of tasks."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING

from containerkit.errors import ContainerError

if TYPE_CHECKING:
    from containerkit.process.result import Cause, Usage

__all__ = ["RemoteError", "TaskError", "TaskTimeout", "WorkerLost"]


class RemoteError(Exception):
    """The traceback of an exception in a task. It is the cause of the exception that is raised in the caller."""

    def __init__(self, trace: str) -> None:
        super().__init__(trace)
        self.trace = trace

    def __str__(self) -> str:
        return f'\n"""\n{self.trace}"""'


class TaskError(ContainerError):
    """A task failed in a way that is not an exception of the caller's own.

    Attributes:
        exception: the class of the exception that it raised, as ``module.name``; None if it raised none.
    """

    def __init__(self, message: str, exception: str | None = None) -> None:
        super().__init__(message)
        self.exception = exception

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.exception)


class WorkerLost(TaskError, BrokenExecutor):  # noqa: N818 - named after the event, like TimeoutExpired of subprocess
    """The interpreter of a task ended before its result arrived. The executor continues.

    Attributes:
        cause: ``"exit"``, ``"signal"`` or ``"oom"``.
        returncode: its exit status, or the negative signal number; None if unknown.
        usage: its resource usage; None if unknown.
    """

    def __init__(self, message: str, cause: Cause, returncode: int | None = None, usage: Usage | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.returncode = returncode
        self.usage = usage

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.cause, self.returncode, self.usage)


class TaskTimeout(TaskError, TimeoutError):  # noqa: N818 - named like ContainerTimeout
    """A task exceeded its timeout. Its interpreter and all processes that it had started were killed.

    Attributes:
        timeout: in seconds.
    """

    def __init__(self, message: str, timeout: float) -> None:
        super().__init__(message)
        self.timeout = timeout

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.timeout)
