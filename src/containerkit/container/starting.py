"""Who is in the midst of starting a process in a live container.

The handler of a signal may raise at any moment of it: nobody waits for who is gone.
"""

from __future__ import annotations

import threading
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from containerkit.errors import StateError
from containerkit.process.process import Process
from containerkit.process.stdio import Streams
from containerkit.spec.command import Command

if TYPE_CHECKING:
    from collections.abc import Callable
    from weakref import WeakSet

    from containerkit._native.outcome import Outcome

__all__ = ["LOOK_AGAIN_S", "Entering", "Unwaited", "init_process", "wait_for_all", "wait_for_others"]

LOOK_AGAIN_S: Final = 0.05
"""How often somebody looks who may not be woken."""

_LOOKED_AT: Final = 4
"""How many processes each start looks at: more than it adds, so that few that have ended are ever left."""


class Unwaited:
    """Processes that perhaps nobody will wait for: those that have ended are reaped as others are started.

    As :mod:`subprocess` does it. It keeps none alive; who holds a process learns of its end as before.
    """

    def __init__(self) -> None:
        self._processes: deque[ref[Process[Any]]] = deque()

    def add(self, process: Process[Any]) -> None:
        """Take note of one that was started."""
        self._processes.append(ref(process))

    def reap(self) -> None:
        """Look at the next few."""
        for _ in range(min(_LOOKED_AT, len(self._processes))):
            try:
                next_one = self._processes.popleft()
            except IndexError:  # another thread was sooner
                return
            process = next_one()
            if process is not None and process.poll() is None:
                self._processes.append(next_one)


class Entering:
    """Somebody who is in the midst of starting a process, for as long as ``with`` lasts.

    Args:
        idle: its lock is held while the books are written; it is told when somebody is through.
        books: those who are in the midst of it. They hold nobody who was forgotten.
        admit: returns PID 1, or refuses.

    Attributes:
        thread: which thread that is.
    """

    __slots__ = ("__weakref__", "_admit", "_books", "_idle", "thread")

    def __init__(self, idle: threading.Condition, books: WeakSet[Entering], admit: Callable[[], Process[Any]]) -> None:
        self._idle = idle
        self._books = books
        self._admit = admit
        self.thread = threading.get_ident()

    def __enter__(self) -> Process[Any]:
        try:
            with self._idle:
                init = self._admit()
                self._books.add(self)
        except BaseException:  # refused; or the handler of a signal has raised, and there will be no exit
            self.__exit__()
            raise
        return init

    def __exit__(self, *_: object) -> None:
        with self._idle:
            self._books.discard(self)
            self._idle.notify_all()


def wait_for_others(idle: threading.Condition, books: WeakSet[Entering]) -> None:
    """Wait until whoever is in the midst of starting a process is through; the caller holds the lock.

    What the caller's own thread was starting it will not go on with: the handler of a signal has raised, or is running.
    """
    own = threading.get_ident()
    while any(entering.thread != own for entering in books):
        idle.wait(LOOK_AGAIN_S)


def wait_for_all(idle: threading.Condition, books: WeakSet[Entering], check: Callable[[], object]) -> None:
    """Wait until nobody is in the midst of starting a process; the caller holds the lock.

    Args:
        idle, books: as for :class:`Entering`.
        check: raises when there is nothing to wait for any more; called each time that somebody is through.

    Raises:
        StateError: the caller's own thread is in the midst of it, and would wait for itself.
    """
    own = threading.get_ident()
    check()
    while books:
        if any(entering.thread == own for entering in books):
            raise StateError(
                "a signal handler can't do this in the midst of a start in its own thread: do it afterwards"
            )
        idle.wait(LOOK_AGAIN_S)
        check()


@lru_cache(maxsize=1)
def _init_command() -> Command:
    return Command(argv=["init"])


def init_process(outcome: Outcome) -> Process[Any]:
    """Return PID 1, whose pidfd stays open until the container is released.

    Whoever asks for its state reaps it, or the container whose pid namespace it has joined does, while a thread that
    starts a command here is about to hand the descriptor's number to the kernel.
    """
    init: Process[Any] = Process(_init_command(), outcome.pid, outcome.pidfd, Streams([], [None, None, None], []))
    init.hold()
    return init
