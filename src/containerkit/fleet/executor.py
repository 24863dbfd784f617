"""Any :class:`concurrent.futures.Executor` as the engine of a fleet."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any, ClassVar

from containerkit.errors import SpecError
from containerkit.fleet.engine import Node
from containerkit.fleet.perform import perform
from containerkit.fleet.workers import WorkerEngine

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor, Future

    from containerkit.cgroup import Limits
    from containerkit.fleet.channel import Held, Ticket

__all__ = ["ExecutorEngine"]


class ExecutorEngine(WorkerEngine["Future[None]"]):
    """Tasks are calls of an executor: threads, processes, or those of other packages.

    Args:
        executor: the executor. The caller shuts it down.
        host: the address on which this driver listens, which workers must reach.

    Raises:
        SpecError: it is not an executor, or runs its calls in containers itself.
    """

    name: ClassVar[str] = "executor"

    def __init__(self, executor: Executor, host: str) -> None:
        from concurrent.futures import Executor

        if not isinstance(executor, Executor):
            raise SpecError(f"executor: {executor!r:.100} is not a concurrent.futures.Executor")
        if type(executor).__module__.startswith("containerkit."):
            raise SpecError("executor: tasks of a ContainerExecutor run in containers, which can't start containers")
        super().__init__(host)
        self._executor = executor

    def carry(
        self,
        ticket: Ticket,
        limits: Limits | None,  # noqa: ARG002 - an executor has no resources
        more: dict[str, Any],
        through: Callable[[BaseException | None], None],
    ) -> Future[None]:
        """Submit it."""
        future = self._executor.submit(_perform, ticket, **more)

        def done(future: Future[None]) -> None:
            through(InterruptedError("it was cancelled") if future.cancelled() else future.exception())

        future.add_done_callback(done)
        return future

    def withdraw(self, handle: Future[None]) -> None:
        """Cancel it."""
        handle.cancel()

    def kill(self, handle: Future[None], held: Held) -> None:
        """Do nothing: an executor can't end one of its workers."""

    def nodes(self) -> tuple[Node, ...]:
        """Return this machine: an executor does not report its resources."""
        return (Node(name=socket.gethostname()),)


def _perform(ticket: Ticket, **more: Any) -> None:
    perform(ticket, f"{socket.gethostname()}/{os.getpid()}", **more)
