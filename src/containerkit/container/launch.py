"""One command in its own container: like ``run``, without waiting for its end."""

from __future__ import annotations

import atexit
import os
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, overload

from containerkit.container.run import begin
from containerkit.descriptors import keep
from containerkit.errors import of_descriptors
from containerkit.meanings import explained

if TYPE_CHECKING:
    from typing import Unpack

    from containerkit.container.lifecycle import Container
    from containerkit.options import AnyLaunchOptions, ListOf, OnePopenOptions, Word
    from containerkit.process.process import Process

__all__ = ["popen"]

_running: Final[set[Process[Any]]] = set()
"""Started processes that may never be waited for. Those that have ended are reaped when others are started."""


@atexit.register
def _close_all() -> None:
    """End the processes that still run at exit, before the interpreter shuts down."""
    for process in list(_running):
        process.close()


def _after_fork() -> None:
    _running.clear()  # they belong to the parent


os.register_at_fork(after_in_child=_after_fork)


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[OnePopenOptions],
) -> Process[str]: ...


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    **options: Unpack[OnePopenOptions],
) -> Process[str]: ...


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    **options: Unpack[OnePopenOptions],
) -> Process[bytes]: ...


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[OnePopenOptions],
) -> Process[str] | Process[bytes]: ...


@explained  # without a decorator that calls it: the process could be lost in its wrapper
def popen(argv: ListOf[Word], *, init: bool = True, **more: Unpack[AnyLaunchOptions]) -> Process[Any]:
    r"""Start one command in its own container. The container ends with the command.

    ::

        with popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as p:
            p.stdin.write("one line\n")

    Args:
        argv: the program, which is looked up inside, and its arguments.
        text, encoding, errors: as in :class:`subprocess.Popen`; text is UTF-8 unless an encoding is given.
        options: see :class:`containerkit.options.OnePopenOptions`.

    Returns:
        The process. Waiting for its end removes the container. The process is killed when this interpreter ends.

    Raises:
        SpecError: an invalid value. Nothing was made.
        SetupError: an operation failed; nothing is left behind.
    """
    for process in list(_running):
        process.poll()
    born: list[tuple[Process[Any], Container | None]] = []
    try:
        process, container = keep(born, partial(begin, init=init), argv, more, {})
        if container is not None:  # a name had to be looked up inside
            process.at_end(container.stop)
        process.at_end(lambda: _running.discard(process))
        _running.add(process)
    except BaseException as error:
        for process, container in born:
            process.close()
            if container is not None:
                container.stop()
        if told := of_descriptors("popen", error):
            raise told from error
        raise
    return process
