"""The error that says that no file descriptor is free."""

from __future__ import annotations

import os
from contextlib import contextmanager
from errno import EMFILE, ENFILE

from containerkit.errors import ContainerError, SetupError

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["of_descriptors", "telling_of_descriptors"]


@contextmanager
def telling_of_descriptors(operation: str) -> Iterator[None]:
    """Convert an error for lack of file descriptors to a :class:`SetupError` that says so. Other errors pass unchanged.

    It can also decorate functions. Their results must not need to be closed, because a signal handler may raise between
    the function and its caller.

    Args:
        operation: the name of the operation, for the error.

    Source: errno(3), EMFILE and ENFILE.
    """
    try:
        yield
    except OSError as error:
        told = of_descriptors(operation, error)
        if told is None:
            raise
        raise told from error


def of_descriptors(operation: str, error: BaseException) -> SetupError | None:
    """Return an error that reports missing descriptors if this is the cause and no other error has reported it."""
    if not isinstance(error, OSError) or isinstance(error, ContainerError) or error.errno not in (EMFILE, ENFILE):
        return None
    target = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    return SetupError(operation, error.errno, target)
