"""Make expensive objects in advance, in the background."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from _thread import LockType, allocate_lock
from collections import deque
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from containerkit.errors import ContainerError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Supply"]

Thing = TypeVar("Thing")

_RETRY_S: Final = 1.0


class Supply(Generic[Thing]):
    """Keeps a number of objects ready, each of which is used once. A thread makes new ones and ends used ones.

    A thread that takes or returns an object holds no lock. A signal handler may raise at any moment, and a lock that it
    leaves behind would stay locked.

    Args:
        size: the number of objects.
        make: makes one, in the thread.
        end: ends one, whether used or not.
        name: the name of the objects, for messages.
        eager: whether to replace each object as soon as it is taken. Otherwise new ones are made when one was used, or
            when half of them are taken: work that has just begun is not slowed down.

    Side effects: a thread, until :meth:`close`.
    """

    def __init__(
        self, size: int, make: Callable[[], Thing], end: Callable[[Thing], None], name: str, *, eager: bool
    ) -> None:
        self.size = size
        self.closed = False
        self._make = make
        self._end = end
        self._name = name
        self._few = size if eager else size // 2
        self._last_warning = ""
        self._things: deque[Thing] = deque()
        self._messages: SimpleQueue[tuple[Thing] | LockType | None] = SimpleQueue()
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._work, name=f"containerkit {name}", daemon=True)
        self._thread.start()

    @property
    def is_ours(self) -> bool:
        """Return whether this process made it. A forked child has no thread, and must not use its parent's objects."""
        return os.getpid() == self._owner

    def __len__(self) -> int:
        return len(self._things)

    def take(self) -> Thing | None:
        """Return one, which the caller then owns; None if there is none."""
        if not self.is_ours:
            return None
        try:
            return self._things.popleft()
        except IndexError:
            return None
        finally:
            if len(self._things) <= self._few:
                self.fill()

    def fill(self) -> None:
        """Make as many as are missing, in the background."""
        self._messages.put(None)

    def give_back(self, thing: Thing) -> None:
        """End a used one in the background, or at once if the thread has ended."""
        self._messages.put((thing,))
        if self.closed:
            self._drain()

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until it is full and all returned ones are ended. Return False if the timeout expires first.

        Args:
            timeout: seconds (default: no limit).
        """
        full = allocate_lock()
        full.acquire()
        if not self.is_ours:
            return False
        self._messages.put(full)
        if self.closed:
            self._drain()
        return full.acquire(timeout=-1 if timeout is None else max(0.0, timeout))

    def close(self) -> None:
        """End all objects and the thread. May be called twice, and has no effect in a forked child."""
        if not self.is_ours:
            return
        self.closed = True
        self._messages.put(None)
        self._thread.join()
        while self._things:
            self._try(self._end, self._things.popleft())
        self._drain()

    def _drain(self) -> None:
        """Handle the requests that the ended thread has left."""
        waiters: list[LockType] = []
        self._read_all(waiters)
        for waiter in waiters:
            waiter.release()

    def _try(self, do: Callable[..., object], *arguments: object) -> bool:
        """Call a function that may fail. Return whether it succeeded. A failure can only be reported by a warning."""
        try:
            do(*arguments)
        except (ContainerError, OSError) as error:
            if str(error) != self._last_warning:
                self._last_warning = str(error)
                with contextlib.suppress(ResourceWarning):  # if warnings are errors, it would end the thread
                    warnings.warn(f"{self._name}: {error}", ResourceWarning, stacklevel=1)
            return False
        return True

    def _add(self) -> None:
        self._things.append(self._make())

    def _work(self) -> None:
        waiters: list[LockType] = []
        not_before = 0.0
        while not self.closed:
            if len(self._things) >= self.size:
                while waiters:
                    waiters.pop().release()
                self._read(waiters, None)
            elif (pause := not_before - time.monotonic()) > 0:
                self._read(waiters, pause)
            elif not self._try(self._add):
                not_before = time.monotonic() + _RETRY_S
            self._read_all(waiters)
        for waiter in waiters:
            waiter.release()

    def _read_all(self, waiters: list[LockType]) -> None:
        while not self._messages.empty():
            self._read(waiters, 0)

    def _read(self, waiters: list[LockType], timeout: float | None) -> None:
        try:
            message = self._messages.get(timeout=timeout)
        except Empty:
            return
        if isinstance(message, tuple):
            self._try(self._end, message[0])
        elif message is not None:
            waiters.append(message)
