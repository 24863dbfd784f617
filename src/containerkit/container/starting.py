"""Track the threads that are starting a process in a live container.

A signal handler may raise at any moment of a start. Then that start has no owner that waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import lru_cache
from weakref import ref

from containerkit.errors import StateError
from containerkit.process.process import Process
from containerkit.process.stdio import Streams
from containerkit.spec.command import Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

    from containerkit._native.outcome import Outcome
    from containerkit.weak import WeakMembers

__all__ = ["LOOK_AGAIN_S", "Entering", "Unwaited", "init_process", "wait_for_all", "wait_for_others"]

LOOK_AGAIN_S: Final = 0.05
"""The interval in seconds at which a waiting thread checks again, in case it is not woken."""

_LOOKED_AT: Final = 4
"""The number of processes that each start checks: more than it adds, so that few ended processes remain."""


class Unwaited:
    """Processes that may never be waited for. Those that have ended are reaped when others are started.

    :mod:`subprocess` does the same. This list does not keep objects alive, and their holders still see the result.
    """

    def __init__(self) -> None:
        self._processes: deque[ref[Process[Any]]] = deque()

    def add(self, process: Process[Any]) -> None:
        """Add a started process."""
        self._processes.append(ref(process))

    def reap(self) -> None:
        """Check the next few, and reap those that have ended."""
        for _ in range(min(_LOOKED_AT, len(self._processes))):
            try:
                next_one = self._processes.popleft()
            except IndexError:  # another thread did it first
                return
            process = next_one()
            if process is not None and process.poll() is None:
                self._processes.append(next_one)


class Entering:
    """A thread that is starting a process, for the duration of a ``with`` block.

    Args:
        lock: it protects ``books``.
        idle: the condition of that lock. It is notified when a thread has finished.
        books: the threads that are starting a process.
        admit: returns PID 1, or raises an error.

    Attributes:
        thread: the id of the thread.
    """

    __slots__ = ("__weakref__", "_admit", "_books", "_idle", "_lock", "thread")

    def __init__(
        self,
        lock: threading.RLock,
        idle: threading.Condition,
        books: WeakMembers[Entering],
        admit: Callable[[], Process[Any]],
    ) -> None:
        self._lock = lock  # faster than by the condition, whose methods are Python
        self._idle = idle
        self._books = books
        self._admit = admit
        self.thread = threading.get_ident()

    def __enter__(self) -> Process[Any]:
        try:
            with self._lock:
                init = self._admit()
                self._books.add(self)
        except BaseException:  # refused, or a signal handler raised: __exit__ will not be called
            self.__exit__()
            raise
        return init

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._books.discard(self)
            self._idle.notify_all()


def wait_for_others(idle: threading.Condition, books: WeakMembers[Entering], deadline: float = float("inf")) -> None:
    """Wait until no other thread is starting a process. The caller holds the lock.

    A start in the caller's own thread will not continue, because a signal handler has raised or is running.

    Args:
        idle, books: as for :class:`Entering`.
        deadline: when to stop waiting, by the monotonic clock (default: never).
    """
    own = threading.get_ident()
    while any(entering.thread != own for entering in books) and (left := deadline - time.monotonic()) > 0:
        idle.wait(min(left, LOOK_AGAIN_S))


def wait_for_all(idle: threading.Condition, books: WeakMembers[Entering], check: Callable[[], object]) -> None:
    """Wait until no thread is starting a process. The caller holds the lock.

    Args:
        idle, books: as for :class:`Entering`.
        check: raises if waiting is no longer useful. Called each time a thread has finished.

    Raises:
        StateError: the caller's own thread is starting a process, and would wait for itself.
    """
    own = threading.get_ident()
    check()
    while books:
        if any(entering.thread == own for entering in books):
            raise StateError("a signal handler can't do this during a start in the same thread: do it after the start")
        idle.wait(LOOK_AGAIN_S)
        check()


@lru_cache(maxsize=1)
def _init_command() -> Command:
    return Command(argv=["init"])


def init_process(outcome: Outcome) -> Process[Any]:
    """Return PID 1, whose pidfd stays open until the container is released.

    Another thread that asks for its state, or the container whose pid namespace it has joined, may reap PID 1 while a
    thread that starts a command is about to pass the descriptor's number to the kernel.
    """
    init: Process[Any] = Process(_init_command(), outcome.pid, outcome.pidfd, Streams([], [None, None, None], []))
    init.hold()
    return init
