"""The driver's side of the connections to workers: the start, the output and the end of tasks.

::

    worker ─ claim ─► driver      may I begin this attempt? on this node
    worker ◄─ go ──── driver      the task, or nothing: it was cancelled, or another worker has begun it
    worker ─ wrote ─► driver      lines of its command
    worker ◄─ took ── driver      listeners have taken so many bytes of them, and the worker may send more
    worker ◄ cancel ─ driver
    worker ◄─ call ── driver      to a held container;  answer, heard: its result, its output
    worker ─ ended ─► driver      the outcome; nothing of it is running any more

Listeners may be slow. A connection is received from nevertheless, because the kernel takes one that stands still for
broken: lines wait in a queue for a second thread, with all later messages of that worker.

An attempt begins at most once, whatever the engine does: the driver decides when it is claimed. If a connection ends,
the worker is lost. When a worker's connection to a driver ends, it ends everything that it runs for this driver.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import secrets
import socket
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from containerkit.errors import SpecError
from containerkit.fleet.engine import Outcome
from containerkit.fleet.errors import FleetError, NodeLost
from containerkit.fleet.wire import KEY_BYTES, Wire, keep_private

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.fleet.engine import Task, Watcher

__all__ = ["Channel", "Held", "Ticket"]

_ANSWERS_WITHIN_S: Final = 5.0
"""The time that a worker has to report the end of its task after the engine has given it up, in seconds."""


class Ticket(NamedTuple):
    """What an engine passes to a worker: where to get the task.

    Attributes:
        host, port: the driver's address.
        key: the shared key by which driver and worker authenticate each other.
        id: the id of the task.
        tls: whether the driver accepts only encrypted connections.
    """

    host: str
    port: int
    key: bytes
    id: str
    tls: bool = False

    def __repr__(self) -> str:  # engines write arguments to their logs
        return f"Ticket({self.host!r}, {self.port}, id={self.id!r})"


@attrs.define(eq=False)
class Held:
    """An attempt that is under way.

    Attributes:
        id: that of its task.
        content: the task, pickled; empty after a worker has received it.
        watcher: receives its events.
        heard: receives the answers of a held container, and the lines of its commands.
        wire: the connection to its worker; None before one has claimed it.
        node: the node on which it runs; empty before.
        given_up: why the engine has given it up although its worker has not ended; None otherwise.
        over: whether it has ended.
    """

    id: str
    content: bytes
    watcher: Watcher
    heard: Callable[..., None] | None = None
    wire: Wire | None = None
    node: str = ""
    given_up: NodeLost | None = None
    over: bool = False


class Channel:
    """Listens for workers.

    Args:
        host: the address to listen on, which workers must be able to reach.
        tls: certificates for encrypted connections (default: not encrypted).

    Raises:
        SpecError: this machine does not have that address.

    Side effects: a listening TCP socket, a thread, and one more for each worker.
    """

    def __init__(self, host: str, tls: ssl.SSLContext | None = None) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Held] = {}
        self._wires: set[Wire] = set()
        self._tls = tls
        self._key = secrets.token_bytes(KEY_BYTES)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = keep_private(socket.create_server((host, 0), family=family, backlog=1024))
        except OSError as error:
            raise SpecError(
                f"listen={host!r}: {error.strerror} (hint: an address of this machine that workers reach)"
            ) from error
        self._address: tuple[str, int] = self._socket.getsockname()[:2]
        self._owner = os.getpid()
        self._closed = False
        threading.Thread(target=self._accept, name="containerkit fleet", daemon=True).start()

    # --- Attempts

    def expect(self, task: Task, watcher: Watcher, heard: Callable[..., None] | None = None) -> tuple[Held, Ticket]:
        """Keep a task for the worker that will claim it.

        Raises:
            SpecError: it can't be sent, or a task with this id is running.
        """
        if self._closed or os.getpid() != self._owner:
            raise FleetError(f"task {task.id}: the fleet is closed, or belongs to the parent of this forked process")
        try:
            content = pickle.dumps(task, 5)
        except Exception as error:
            raise SpecError(
                f"task {task.id}: it can't be sent to a node: {error} (hint: use only plain values and descriptions)"
            ) from error
        held = Held(task.id, content, watcher, heard)
        with self._lock:
            if task.id in self._held:
                raise SpecError(f"task {task.id}: a task with this id is already running")
            self._held[task.id] = held
        return held, Ticket(*self._address, self._key, task.id, self._tls is not None)

    def forget(self, held: Held) -> None:
        """Drop a task that the engine did not accept, without telling its watcher."""
        with self._lock:
            held.over = True
            self._held.pop(held.id, None)

    def cancel(self, held: Held) -> bool:
        """End an attempt, or prevent its start. Return immediately, with whether no worker had claimed it."""
        never = Outcome(error=FleetError(f"task {held.id}: cancelled before it began"))
        if self._end(held, never, waiting=True):
            return True
        self.tell(held, "cancel", held.id)
        return False

    def tell(self, held: Held, *message: Any) -> bool:
        """Send a message to the worker of an attempt. Return whether it has one, and the connection stands."""
        wire = held.wire
        if wire is None or held.over:
            return False
        try:
            wire.send(*message)
        except OSError:
            wire.close()  # its thread notices
            return False
        return True

    def give_up(self, held: Held, error: BaseException | None) -> None:
        """Called when the engine has finished an attempt. If a worker has claimed it, the worker's report decides."""
        why = f"{type(error).__name__}: {error}" if error is not None else "the engine dropped it"
        lost = NodeLost(f"task {held.id}: lost before it began: {why}")
        lost.__cause__ = error
        if self._end(held, Outcome(error=lost, lost=True), waiting=True) or error is None or held.over:
            return
        why = f"task {held.id}: the engine gave up the worker on node {held.node}: {why}"
        held.given_up = NodeLost(why, held.node)
        held.given_up.__cause__ = error
        self.tell(held, "cancel", held.id)
        timer = threading.Timer(_ANSWERS_WITHIN_S, self._end, (held, Outcome(error=held.given_up, lost=True)))
        timer.daemon = True
        timer.start()

    def _end(self, held: Held, outcome: Outcome, *, waiting: bool = False) -> bool:
        """End it; with ``waiting`` only if no worker has claimed it. Return whether this call has ended it."""
        with self._lock:
            if held.over or (waiting and held.wire is not None):
                return False
            held.over = True
            held.content = b""
            self._held.pop(held.id, None)
        if held.heard is not None:
            held.heard("over", outcome)
        held.watcher.ended(outcome)
        return True

    # --- Workers

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                if self._closed or self._socket.fileno() < 0:
                    return
                continue
            threading.Thread(target=self._serve, args=(sock,), name="containerkit worker", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            wire = Wire(sock, self._key, driver=True, tls=self._tls)
        except (OSError, EOFError):  # a stranger, or a worker that has already ended
            return
        with self._lock:
            self._wires.add(wire)
        queue: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        queued = False
        try:
            while True:
                message = wire.receive()
                if message[0] == "wrote" and not queued:
                    queued = True
                    threading.Thread(target=self._serve_queue, args=(wire, queue), daemon=True).start()
                if queued and message[0] != "claim":
                    queue.put(message)
                else:
                    self._hear(wire, *message)
        except Exception as error:  # noqa: BLE001 - after any error this connection can't be used any more
            queue.put(("lost", error))
            if not queued:
                self._lose(wire, error)
        finally:
            wire.close()

    def _serve_queue(self, wire: Wire, queue: SimpleQueue[tuple[Any, ...]]) -> None:
        """Handle messages of a worker whose commands write lines."""
        try:
            while (message := queue.get())[0] != "lost":
                self._hear(wire, *message)
                if message[0] == "wrote":
                    with contextlib.suppress(OSError):  # the other thread notices, and outcomes may have arrived
                        wire.send("took", message[2])
            self._lose(wire, message[1])
        except Exception as error:  # noqa: BLE001 - after any error this connection can't be used any more
            wire.close()
            self._lose(wire, error)

    def _hear(self, wire: Wire, word: str, *rest: Any) -> None:
        if word == "claim":
            self._claimed(wire, *rest)
        elif word == "wrote":
            for task, stream, line in rest[0]:
                held = self._held.get(task)
                if held is None or held.wire is not wire:
                    continue
                if held.heard is None:
                    held.watcher.wrote(stream, line)
                else:
                    held.heard("line", *stream, line)
        elif word == "heard":
            held = self._held.get(rest[0])
            if held is not None and held.wire is wire and held.heard is not None:
                held.heard(*rest[1:])
        elif word == "ended":
            held = self._held.get(rest[0])
            if held is not None and held.wire is wire:
                lost = held.given_up is not None and rest[1].result is None
                self._end(held, Outcome(error=held.given_up, lost=True) if lost else rest[1])

    def _claimed(self, wire: Wire, task: str, node: str) -> None:
        with self._lock:
            held = self._held.get(task)
            if held is not None and held.wire is None:
                held.wire, held.node = wire, node
                content, held.content = held.content, b""
            else:
                held, content = None, b""
        if held is not None:
            held.watcher.began(node)
        wire.send("go", task, content)

    def _lose(self, wire: Wire, error: BaseException) -> None:
        with self._lock:
            self._wires.discard(wire)
            lost = [held for held in self._held.values() if held.wire is wire]
        for held in lost:
            what = NodeLost(f"task {held.id}: the worker on node {held.node} was lost: {error}", held.node)
            self._end(held, Outcome(error=what, lost=True))

    def close(self) -> None:
        """Close all connections, so that workers end their tasks. May be called twice."""
        self._closed = True
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._socket.close()
        with self._lock:
            wires = list(self._wires)
        for wire in wires:
            wire.close()
