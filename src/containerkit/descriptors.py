"""Give each descriptor an owner from the moment it is created.

Python runs signal handlers between two bytecode instructions, and a handler may raise. Then the result of a call is
lost if it was not stored yet: ``fd = os.open(...)`` can leave an open descriptor that no variable refers to.
"""

from __future__ import annotations

import os
from errno import EINVAL, EMFILE
from itertools import chain

from containerkit.typed import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

__all__ = ["Closing", "close_all", "close_last", "keep", "keep_above", "keep_pipe", "lend"]

Made = TypeVar("Made")


class Closing:
    """An owner that ``with`` closes at its end."""

    __slots__ = ()

    def close(self) -> None:
        """Release what it owns. May be called twice."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keep(into: list[Made], make: Callable[..., Made], *arguments: object) -> Made:
    """Call a C function and append its result to a list. No signal handler runs in between.

    Args:
        into: a list of the caller, who closes its content if this function raises.
        make: a function that runs no Python code, such as ``os.open``.
        arguments: its arguments, at least one.

    Returns:
        The result of the call.

    Source: list.extend() and map() run in C; CHECK_EVAL_BREAKER in Python/ceval.c.
    """
    into.extend(map(make, *((argument,) for argument in arguments)))
    return into[-1]


def keep_above(into: list[int], fd: int, lowest: int) -> int:
    """Append a copy of a descriptor, with a number of at least ``lowest``, to a list; see :func:`keep`.

    Raises:
        OSError: EMFILE, also if the limit on descriptors is below ``lowest``. Source: fcntl(2), F_DUPFD.
    """
    import fcntl

    try:
        return keep(into, fcntl.fcntl, fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    except OSError as error:
        if error.errno == EINVAL:
            raise OSError(EMFILE, os.strerror(EMFILE)) from None
        raise


def keep_pipe(into: list[int], flags: int = os.O_CLOEXEC) -> tuple[int, int]:
    """Open a pipe. Append the end for reading and the end for writing to a list; see :func:`keep`."""
    into.extend(chain.from_iterable(map(os.pipe2, (flags,))))
    return into[-2], into[-1]


def close_last(descriptors: list[int]) -> None:
    """Close the last descriptor of a list and remove it. No signal handler runs in between."""
    fd = descriptors[-1]
    del descriptors[-1]
    os.close(fd)


def close_all(descriptors: list[int]) -> None:
    """Close the descriptors in a list, the last one first. Each is removed from the list once it is closed."""
    while descriptors:
        close_last(descriptors)


def lend(do: Callable[[list[int]], Made]) -> Made:
    """Call a function with a list for the descriptors that it opens. They are closed afterwards.

    A signal handler can raise before the end of ``with`` or the code in ``finally`` runs. In that case the descriptors
    are closed by a second attempt.
    """
    kept: list[int] = []
    try:
        made = do(kept)
        close_all(kept)
    except BaseException:
        close_all(kept)
        raise
    return made
