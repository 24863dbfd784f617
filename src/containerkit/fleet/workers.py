"""The common part of engines whose workers are Python processes. They pass on tickets, the channel does the rest."""

from __future__ import annotations

import threading
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from containerkit.fleet.channel import Channel, Held
from containerkit.fleet.engine import Attempt, Engine
from containerkit.fleet.errors import FleetError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.cgroup import Limits
    from containerkit.fleet.channel import Ticket
    from containerkit.fleet.engine import Task, Watcher
    from containerkit.fleet.perform import Attending

__all__ = ["FORCE_AFTER_S", "Carried", "WorkerEngine"]

FORCE_AFTER_S: Final = 3.0
"""The time that a worker has to answer before ``cancel(force=True)`` kills it, in seconds."""

Handle = TypeVar("Handle")
"""The engine's object for an accepted task."""


class Carried(Attempt, Generic[Handle]):
    """An attempt that an engine passes to one of its workers.

    Attributes:
        held: the channel's object for it.
        handle: the engine's object for it; None before the engine has accepted it.
    """

    def __init__(self, engine: WorkerEngine[Handle], held: Held) -> None:
        self._engine = engine
        self.held = held
        self.handle: Handle | None = None

    def cancel(self, *, force: bool = False) -> None:
        """End its container, or prevent its start; see :meth:`Attempt.cancel`."""
        engine, held = self._engine, self.held
        if engine.channel.cancel(held) and self.handle is not None:
            engine.withdraw(self.handle)
        if force and not held.over:
            timer = threading.Timer(FORCE_AFTER_S, self._force)
            timer.daemon = True
            timer.start()

    def _force(self) -> None:
        if not self.held.over and self.handle is not None:
            self._engine.kill(self.handle, self.held)


class WorkerEngine(Engine, Generic[Handle]):
    """An engine that calls Python functions in its workers, on which containerkit is installed.

    Args:
        host: the address on which this driver listens for its workers.
        tls: the certificates of this driver, if the cluster uses TLS (default: it does not).

    Raises:
        SpecError: this machine does not have that address.
    """

    def __init__(self, host: str, tls: ssl.SSLContext | None = None) -> None:
        self.channel = Channel(host, tls)

    def submit(
        self,
        task: Task,
        watcher: Watcher,
        *,
        kind: type[Attending] | None = None,
        heard: Callable[..., None] | None = None,
    ) -> Carried[Handle]:
        """Submit one attempt at a task; see :meth:`Engine.submit`.

        Args:
            task: the task.
            watcher: receives its events.
            kind: the class that runs it in the worker (default: the one that runs a command).
            heard: receives other messages of that object.
        """
        held, ticket = self.channel.expect(task, watcher, heard)
        carried = Carried(self, held)
        more = {} if kind is None else {"kind": kind}
        try:
            carried.handle = self.carry(ticket, task.limits, more, lambda error: self.channel.give_up(held, error))
        except Exception as error:
            self.channel.forget(held)
            raise FleetError(f"task {task.id}: {self.name} does not accept it: {error}") from error
        return carried

    @abstractmethod
    def carry(
        self,
        ticket: Ticket,
        limits: Limits | None,
        more: dict[str, Any],
        through: Callable[[BaseException | None], None],
    ) -> Handle:
        """Let the engine call :func:`containerkit.fleet.perform.perform` in a worker, once.

        Args:
            ticket: the argument of that function.
            limits: the resources that it needs.
            more: keyword arguments of that function.
            through: called when the engine has finished it, with the error, if any.
        """

    @abstractmethod
    def withdraw(self, handle: Handle) -> None:
        """Let the engine drop a task that has not begun. Otherwise do nothing."""

    @abstractmethod
    def kill(self, handle: Handle, held: Held) -> None:
        """Kill the worker of a task that has begun and does not answer, if the engine can do that."""

    def close(self) -> None:
        """Release the engine; see :meth:`Engine.close`."""
        self.channel.close()
