"""The error that says that no file descriptor is free."""

from __future__ import annotations

import os
from errno import EMFILE, ENFILE
from functools import wraps

from containerkit.errors import ContainerError, SetupError

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import ParamSpec, TypeVar

    Arguments = ParamSpec("Arguments")
    Result = TypeVar("Result")

__all__ = ["of_descriptors", "telling_of_descriptors"]


class telling_of_descriptors:  # noqa: N801 - used as a statement, like contextlib.suppress
    """Convert an error for lack of file descriptors to a :class:`SetupError` that says so. Other errors pass unchanged.

    It can also decorate functions. Their results must not need to be closed, because a signal handler may raise between
    the function and its caller.

    Args:
        operation: the name of the operation, for the error.

    Source: errno(3), EMFILE and ENFILE.
    """

    __slots__ = ("_operation",)

    def __init__(self, operation: str) -> None:
        self._operation = operation

    def __call__(self, function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        """Return the function with this conversion. Unlike a generator it costs a command one call."""

        @wraps(function)
        def told(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except OSError as error:
                self._tell(error)
                raise

        return told

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if value is not None:
            self._tell(value)

    def _tell(self, error: BaseException) -> None:
        told = of_descriptors(self._operation, error)
        if told is not None:
            raise told from error


def of_descriptors(operation: str, error: BaseException) -> SetupError | None:
    """Return an error that reports missing descriptors if this is the cause and no other error has reported it."""
    if not isinstance(error, OSError) or isinstance(error, ContainerError) or error.errno not in (EMFILE, ENFILE):
        return None
    target = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    return SetupError(operation, error.errno, target)
