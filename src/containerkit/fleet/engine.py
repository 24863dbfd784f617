"""What a fleet needs of the engine that distributes its tasks.

::

    Fleet.submit ──> Engine.submit(task, watcher) ──> Attempt            (on the driver)
    watcher.began(node) · watcher.wrote(stream, data) · watcher.ended(outcome)   (from any thread)

An engine makes one attempt at one task. It never retries by itself: the fleet does if retries were requested.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.cgroup import Limits
    from containerkit.options import Input
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.rootfs import RootFS

__all__ = ["Attempt", "Engine", "Node", "Outcome", "StreamName", "Task", "Watcher"]

StreamName = Literal["stdout", "stderr"]


@attrs.frozen(kw_only=True)
class Task:
    """One command in a new container on some node. It can be pickled.

    Attributes:
        id: a name that no other attempt of any driver has: lower-case letters, digits and ``-``, at most 63 characters.
        argv: the program and its arguments.
        image: the reference of the image, with the digest that it had on the driver; None if ``rootfs`` is the root.
        rootfs: the root filesystem; None for the default. Never given together with ``image``.
        limits: the container's limits, and the resources that the engine reserves for it. None for no limits.
        timeout: the time limit of the command from its start, in seconds; None for no limit.
        given: its standard input, bytes or text.
        options: the other arguments of :func:`containerkit.run`, already checked: ``env``, ``cwd``, ``user``,
            ``text``, ``check``, ``output_limit_bytes`` and so on.
        listened: the streams whose lines are sent to the driver while the command writes them.
    """

    id: str
    argv: tuple[str | bytes, ...]
    image: str | None = None
    rootfs: RootFS | None = None
    limits: Limits | None = None
    timeout: float | None = None
    given: Input = None
    options: Mapping[str, Any] = attrs.field(factory=dict)
    listened: frozenset[StreamName] = frozenset()


@attrs.frozen(kw_only=True)
class Outcome:
    """The outcome of an attempt: a result, or an error.

    Attributes:
        result: how the command ended; None if that is not known.
        error: the exception that ``Future.result()`` raises; None if there is a result. With ``check=True`` a failed
            command has an ``ExitError``, which contains the result.
        lost: the node, the worker or the connection to it was lost, so the end of the command is unknown. Only these
            attempts are retried.
        run_s: the time in seconds that the node spent on it; None if unknown.
    """

    result: CompletedProcess[Any] | None = None
    error: BaseException | None = None
    lost: bool = False
    run_s: float | None = None


@attrs.frozen(kw_only=True)
class Node:
    """A machine or a worker that runs tasks.

    Attributes:
        name: its name, as in ``FleetFuture.node``.
        cpus: the number of its processors; None if unknown.
        memory_bytes: the size of its memory; None if unknown.
    """

    name: str
    cpus: float | None = None
    memory_bytes: int | None = None


class Watcher(Protocol):
    """Receives the events of an attempt. All methods may be called from any thread, return soon and raise nothing."""

    def began(self, node: str) -> None:
        """Handle its start by a node. Called at most once, before the others."""

    def wrote(self, stream: StreamName, data: str | bytes) -> None:
        """Handle a line that the command wrote to one of the requested streams. It has no newline.

        In text mode it may also be bytes, which are then decoded.
        """

    def ended(self, outcome: Outcome) -> None:
        """Handle its end. No process of it runs any more. Called exactly once, after the others."""


class Attempt(ABC):
    """One attempt at a task that an engine has accepted."""

    @abstractmethod
    def cancel(self, *, force: bool = False) -> None:
        """End its container, or prevent its start. Returns at once; ``Watcher.ended`` is called afterwards.

        The outcome then has any error, or the result if the command has ended before. May be called twice.

        Args:
            force: if the node does not answer within a few seconds, kill the worker with everything that it runs.
        """


class Engine(ABC):
    """Distributes tasks over nodes. Its methods may be called from any thread."""

    name: ClassVar[str]
    """Its name in errors and reports, such as ``"ray"``."""

    @abstractmethod
    def submit(self, task: Task, watcher: Watcher) -> Attempt:
        """Submit one attempt at a task. Returns without waiting for a node.

        Args:
            task: the task.
            watcher: receives its events.

        Raises:
            SpecError: the engine does not support one of its arguments; nothing was made.
            FleetError: the engine does not accept it.
        """

    @abstractmethod
    def nodes(self) -> tuple[Node, ...]:
        """Return the present nodes."""

    @abstractmethod
    def close(self) -> None:
        """Release the engine. May be called twice. All attempts have ended before this is called."""
