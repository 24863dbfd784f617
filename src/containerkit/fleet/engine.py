"""What a fleet needs of the engine that distributes its tasks.

::

    Fleet.submit ──> Engine.submit(task, watcher) ──> Attempt            (on the driver)
    watcher.began(node) · watcher.wrote(stream, data) · watcher.ended(outcome)   (from any thread)

An engine makes one attempt at one task. It never tries again by itself: the fleet does, where that was asked for.
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
    """One command in a container of its own, somewhere. It can be pickled.

    Attributes:
        id: a name that no other attempt of any driver has: lower-case letters, digits and ``-``, at most 63 characters.
        argv: the program and its arguments.
        image: the reference of the image, with the digest that it had on the driver; None where ``rootfs`` says what
            is seen as ``/``.
        rootfs: what is seen as ``/``; None for the default. Never given together with ``image``.
        limits: what it may use; they are also what the engine sets aside for it. None for no limits.
        timeout: seconds that the command may take, from its start; None for ever.
        given: what it finds on stdin, bytes or text.
        options: the other arguments of :func:`containerkit.run`, checked already: ``env``, ``cwd``, ``user``,
            ``text``, ``check``, ``output_limit_bytes`` and so on.
        listened: the streams whose lines go to the driver while the command writes them.
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
    """What became of an attempt: a result, or an error.

    Attributes:
        result: how the command ended; None if that is not known.
        error: what ``Future.result()`` raises; None if there is a result. With ``check=True`` a command that failed
            gives an ``ExitError``, which has the result.
        lost: the node, the worker or the connection to it was lost, so nobody knows how the command ended. These
            alone are tried again.
        run_s: seconds that the node was busy with it; None if nobody knows.
    """

    result: CompletedProcess[Any] | None = None
    error: BaseException | None = None
    lost: bool = False
    run_s: float | None = None


@attrs.frozen(kw_only=True)
class Node:
    """A machine, or a worker, that takes tasks.

    Attributes:
        name: its name, as in ``FleetFuture.node``.
        cpus: how many processors it offers; None if the engine does not say.
        memory_bytes: how much memory it offers; None if the engine does not say.
    """

    name: str
    cpus: float | None = None
    memory_bytes: int | None = None


class Watcher(Protocol):
    """Who is told of an attempt. All methods may be called from any thread, return soon and raise nothing."""

    def began(self, node: str) -> None:
        """Hear that a node begins with it. Called at most once, before the others."""

    def wrote(self, stream: StreamName, data: str | bytes) -> None:
        """Hear a line of the command, without its end, of a stream that is listened to.

        Text of a task in text mode may come as bytes, too: it is decoded then.
        """

    def ended(self, outcome: Outcome) -> None:
        """Hear that it is over and that nothing of it runs any more. Called exactly once, the last of all."""


class Attempt(ABC):
    """One attempt at a task that an engine has taken."""

    @abstractmethod
    def cancel(self, *, force: bool = False) -> None:
        """Have its container ended, or never begun; returns at once. ``Watcher.ended`` is called when that is done.

        The outcome then has an error of any kind, or the result if the command was quicker. Harmless when repeated.

        Args:
            force: if the node does not answer within a few seconds, end the worker itself, with all that it runs.
        """


class Engine(ABC):
    """Distributes tasks over nodes. Its methods may be called from any thread."""

    name: ClassVar[str]
    """What it is called in errors and reports, such as ``"ray"``."""

    @abstractmethod
    def submit(self, task: Task, watcher: Watcher) -> Attempt:
        """Hand over one attempt at a task; returns without waiting for a node.

        Args:
            task: the task.
            watcher: who is told of it.

        Raises:
            SpecError: it asks for something that the engine can't do; nothing was made.
            FleetError: the engine does not take it.
        """

    @abstractmethod
    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that there are now."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the engine; harmless when repeated. No attempt is under way any more when this is called."""
