"""Moves bytes between two sockets without copying them through this process, for ports published on the loopback.

One thread serves all connections. It sleeps when there is nothing to move. Source: splice(2).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import threading
import time
from errno import EAGAIN
from typing import TYPE_CHECKING, Final

from containerkit.network.forked import closed_in_children

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Splicer"]

_PIPE: Final = 1 << 20
_FLAGS: Final = 0x01 | 0x02  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK
_TURNS: Final = 8  # the most that one direction moves at a time
_FREE_PIPES: Final = 4  # the most empty pipes that are kept
_PAUSE_S: Final = 0.05  # how long clients wait if no descriptor is free


class _Pipe:
    """A pipe through which bytes of one connection at a time move."""

    __slots__ = ("inlet", "outlet", "room")

    def __init__(self) -> None:
        self.outlet, self.inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.room = fcntl.fcntl(self.inlet, fcntl.F_SETPIPE_SZ, _PIPE)
        except OSError:  # the user's limit on pipes: the default size is enough
            self.room = fcntl.fcntl(self.inlet, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        os.close(self.inlet)
        os.close(self.outlet)


class _Pipes:
    """Empty pipes. A connection has one only while it holds bytes, so idle ones cost no more than their sockets."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[_Pipe] = []

    def take(self) -> _Pipe:
        return self._free.pop() if self._free else _Pipe()

    def give(self, pipe: _Pipe, *, empty: bool = True) -> None:
        if empty and len(self._free) < _FREE_PIPES:
            self._free.append(pipe)
        else:
            pipe.close()

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


class _Direction:
    """One direction of a connection. A pipe holds bytes that were read from one socket and not yet written."""

    __slots__ = ("done", "ended", "held", "pipe", "pipes", "source", "target")

    def __init__(self, source: socket.socket, target: socket.socket, pipes: _Pipes) -> None:
        self.source, self.target, self.pipes = source, target, pipes
        self.pipe: _Pipe | None = None
        self.held, self.ended, self.done = 0, False, False

    def move(self) -> None:
        """Move as many bytes as possible without waiting.

        Raises:
            OSError: one of the sockets failed.
        """
        pipe = self.pipe = self.pipe or self.pipes.take()
        for _ in range(_TURNS):
            moved = 0
            if not self.ended and not self.held:
                taken = self._splice(self.source.fileno(), pipe.inlet, pipe.room)
                if taken is not None:
                    self.ended = taken == 0
                    self.held += taken
                    moved = taken
            if self.held:
                given = self._splice(pipe.outlet, self.target.fileno(), self.held)
                self.held -= given or 0
                moved += given or 0
            if self.ended and not self.held and not self.done:
                self.done = True
                self.target.shutdown(socket.SHUT_WR)
            if not moved:
                break
        if not self.held:
            self.close()

    @staticmethod
    def _splice(source: int, target: int, count: int) -> int | None:
        try:
            return os.splice(source, target, count, flags=_FLAGS)
        except OSError as error:
            if error.errno == EAGAIN:
                return None
            raise

    @property
    def reads(self) -> bool:
        """Whether it waits for something to read."""
        return not self.ended and not self.held

    @property
    def writes(self) -> bool:
        """Whether it waits for room to write."""
        return self.held > 0

    def close(self) -> None:
        """Give the pipe back. One that still holds bytes is closed, so no other connection gets them."""
        pipe, self.pipe = self.pipe, None
        if pipe is not None:
            self.pipes.give(pipe, empty=not self.held)


class _Pair:
    """An accepted connection and the connection to the container."""

    __slots__ = ("connecting", "directions", "owner", "sockets")

    def __init__(self, near: socket.socket, far: socket.socket, owner: object, pipes: _Pipes) -> None:
        self.sockets = near, far
        self.owner = owner
        self.connecting = True
        self.directions = _Direction(near, far, pipes), _Direction(far, near, pipes)

    def mask(self, index: int) -> int:
        """Return the events that one of its sockets waits for."""
        if self.connecting:
            return select.EPOLLOUT if index else 0
        reading, writing = self.directions[index], self.directions[1 - index]
        return (select.EPOLLIN if reading.reads else 0) | (select.EPOLLOUT if writing.writes else 0)

    def move(self) -> bool:
        """Move bytes in both directions. Return False at the end of the connection."""
        if self.connecting:
            if self.sockets[1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                return False
            self.connecting = False
        try:
            for direction in self.directions:
                direction.move()
        except OSError:
            return False
        return not all(direction.done for direction in self.directions)

    def close(self, *, reset: bool = False) -> None:
        """Close sockets and pipes. With ``reset`` the client sees that the connection failed."""
        if reset:
            linger = b"\1\0\0\0\0\0\0\0"
            for each in self.sockets:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        for each in self.sockets:
            each.close()
        for direction in self.directions:
            direction.close()


class Splicer:
    """Accepts connections and forwards each, in a thread that starts with the first port."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._lock = threading.Lock()
        self._listeners: dict[int, tuple[socket.socket, Callable[[], socket.socket]]] = {}
        self._pairs: dict[int, tuple[_Pair, int]] = {}
        self._pipes = _Pipes()
        self._paused: set[int] = set()
        self._paused_at = 0.0
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._jobs: list[Callable[[], None]] = []
        self._stopping = False
        self._thread: threading.Thread | None = None

    def listen(self, listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
        """Accept from a listening socket.

        Args:
            listener: the caller still owns it, and must call :meth:`forget` before closing it.
            connect: returns a non-blocking socket that is being connected. It is called in the thread.
        """
        listener.setblocking(False)
        with self._lock:
            self._listeners[listener.fileno()] = listener, connect
            self._epoll.register(listener.fileno(), select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="containerkit-splice", daemon=True)
                self._thread.start()

    def forget(self, listener: socket.socket) -> None:
        """Stop accepting from it, and end its connections."""
        with self._lock:
            if self._listeners.pop(listener.fileno(), None) is None:
                return
            self._epoll.unregister(listener.fileno())
            self._paused.discard(listener.fileno())
            running = self._thread is not None and not self._stopping
        if running:
            done = threading.Event()

            def end() -> None:
                self._end(listener)
                done.set()

            self._jobs.append(end)
            os.eventfd_write(self._wake, 1)
            done.wait(5)

    def _end(self, owner: object) -> None:
        for pair in {id(pair): pair for pair, _ in self._pairs.values() if owner in (None, pair.owner)}.values():
            self._drop(pair, reset=True)

    def _run(self) -> None:
        while not self._stopping:
            for fd, _ in self._epoll.poll(_PAUSE_S if self._paused else None):
                if fd == self._wake:
                    os.eventfd_read(self._wake)
                    while self._jobs:
                        self._jobs.pop(0)()
                elif fd in self._pairs:
                    self._moved(self._pairs[fd][0])
                elif fd in self._listeners:
                    self._accept(fd)
            if self._paused:
                self._resume()
        self._end(None)

    def _accept(self, fd: int) -> None:
        with self._lock:
            listener, connect = self._listeners.get(fd, (None, None))
        if listener is None or connect is None:
            return
        if not self._has_room():
            self._pause(fd)
            return
        try:
            near = closed_in_children(listener.accept()[0])
        except OSError:  # the client gave up
            return
        far = None
        try:
            near.setblocking(False)
            far = connect()
            pair = _Pair(near, far, listener, self._pipes)
        except OSError:  # the container is gone, or has no route: the client sees a reset
            for each in (near, far):
                if each is not None:
                    each.close()
            return
        for index, each in enumerate(pair.sockets):
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[each.fileno()] = pair, index
            self._epoll.register(each.fileno(), pair.mask(index))

    def _has_room(self) -> bool:
        """Return whether the descriptors of another connection are free."""
        spare: list[int] = []
        try:
            spare.append(os.dup(self._wake))
            spare.append(os.dup(self._wake))
        except OSError:
            return False
        finally:
            for each in spare:
                os.close(each)
        return True

    def _pause(self, fd: int) -> None:
        """Let clients wait for a moment. Otherwise the thread would try again without end, using a whole processor."""
        with self._lock:
            if fd in self._listeners:
                self._epoll.modify(fd, 0)
                self._paused.add(fd)
                self._paused_at = time.monotonic()

    def _resume(self) -> None:
        with self._lock:
            if time.monotonic() - self._paused_at < _PAUSE_S:
                return
            for fd in self._paused:
                self._epoll.modify(fd, select.EPOLLIN)
            self._paused.clear()

    def _moved(self, pair: _Pair) -> None:
        if not pair.move():
            self._drop(pair, reset=not all(direction.done for direction in pair.directions))
            return
        for index, each in enumerate(pair.sockets):
            self._epoll.modify(each.fileno(), pair.mask(index))

    def _drop(self, pair: _Pair, *, reset: bool) -> None:
        for each in pair.sockets:
            self._pairs.pop(each.fileno(), None)
            self._epoll.unregister(each.fileno())
        pair.close(reset=reset)
        if not self._pairs:
            self._pipes.close()

    def close(self) -> None:
        """End all connections and the thread. May be called twice."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        self._pipes.close()
        self._epoll.close()
        os.close(self._wake)
