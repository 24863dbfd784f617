"""The making of a container's network namespace, beside the start that joins it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit._native import constants as k
from containerkit.descriptors import close_all
from containerkit.network import endpoint
from containerkit.plan.program import Program, was_killed
from containerkit.plan.tape import Plan
from containerkit.start.context import own_pidfd
from containerkit.start.staging import opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.network.endpoint import Wire
    from containerkit.network.router import Router

__all__ = ["Made", "Making"]

_GATES: Final = (k.STEP_AWAIT, k.STEP_RELEASE)
_MOST_COMPILED: Final = 64

_compiled: dict[object, Program] = {}
"""Plans, shared by all containers of the same shape: only the content of their messages differs."""


class Making:
    """Makes the network namespace of one container.

    A process beside this one makes it, while this one goes on: the namespace at once, and the interfaces after
    :meth:`go_on`. A start can join the namespace as soon as it exists, and waits for the rest before its command has an
    address space of its own. That of an unprivileged user is made by :meth:`go_on` itself, because only one start at a
    time may change credentials.

    Args:
        router: the router of its networks.
        sysctls: parameters of the namespace, by their path below ``net``.
        likely: the plan of the last container with the same description, if there was one. Without it, the namespace is
            only made after :meth:`go_on`.

    Raises:
        SetupError: the process could not be created.
    """

    def __init__(self, router: Router, sysctls: Mapping[str, str], likely: Program | None = None) -> None:
        self._router, self._sysctls = router, sysctls
        self._inputs = {**router.inputs(), endpoint.OWNER.name: own_pidfd()}
        self._wires: tuple[Wire, ...] = ()
        self._fds: list[int] = []
        self._beside: Any = None
        self._program = likely
        if likely is not None:
            self._begin(likely)

    def _begin(self, program: Program) -> None:
        self._program = program
        if self._router.privileged:
            self._beside = program.begin_beside(self._inputs)

    def go_on(self, wires: tuple[Wire, ...]) -> Program:
        """Make the interfaces. The packet filters must know them already.

        Returns:
            The plan.

        Raises:
            SetupError: an operation failed, where no process beside this one makes it.
        """
        self._wires = wires
        blocks = {f"message {number}": text for number, text in enumerate(endpoint.messages(wires))}
        program = self._compile(tuple(map(len, blocks.values())))
        if program is not self._program:  # the lengths of names differ
            self.close()
            self._begin(program)
        if self._beside is not None:
            self._beside.go_on(program.with_blocks(blocks))
        else:
            steps = endpoint.plan_of(self._router, wires, self._sysctls)
            steps = [step for step in steps if step.step not in _GATES]  # nobody would open them
            self._fds += opened(steps, self._inputs, (endpoint.OWN.name,))
        return program

    def _compile(self, lengths: tuple[int, ...]) -> Program:
        router = self._router
        shapes = tuple(map(endpoint.shape, self._wires))
        key = router.privileged, router.last_group, tuple(self._sysctls.items()), shapes, lengths
        program = _compiled.get(key)
        if program is None:
            while len(_compiled) >= _MOST_COMPILED:
                _compiled.pop(next(iter(_compiled)), None)
            program = _compiled[key] = self._fresh()
        return program

    def _fresh(self) -> Program:
        """Compile the plan of this container, whose errors name it. The cached one may be another container's."""
        return Program(Plan(tuple(endpoint.plan_of(self._router, self._wires, self._sysctls))))

    @property
    def awaited(self) -> int:
        """The input ``BESIDE`` of a start that joins it: 0 if it is complete."""
        return 0 if self._beside is None else int(self._beside.address)

    def fileno(self) -> int:
        """Return the descriptor of the namespace as soon as it exists. It is closed by :meth:`close`.

        Raises:
            SetupError: an operation failed.
        """
        if self._fds:
            return self._fds[0]
        slots = self._beside.await_slots()
        if slots is None:
            self.finish()  # raises
        fd: int = slots[self._program.number(endpoint.OWN.name)]  # type: ignore[union-attr] # there is one by now
        return fd

    def finish(self) -> None:
        """Wait until it is complete.

        Raises:
            SetupError: an operation failed. Nothing is left behind after :meth:`close`.
        """
        if self._beside is None or self._program is None:
            return
        outcome = self._beside.end()
        if outcome.failed_index == _native.CALLER:
            raise was_killed("network namespace")
        if outcome.failed_index >= 0:
            raise self._fresh().failure(outcome)
        self._beside.take(self._program.number(endpoint.OWN.name), self._fds)
        self._beside = None

    def close(self) -> None:
        """Close the descriptor. If it is not complete, end the process that makes it. May be called twice."""
        if self._beside is not None:
            self._beside.end()
        self._beside = None  # closes the descriptors that it still has
        close_all(self._fds)


class Made:
    """A network namespace that is complete: what a :class:`Making` is in the end.

    Args:
        fd: its descriptor, which this object owns.
    """

    awaited: Final = 0

    def __init__(self, fd: int) -> None:
        self._fds = [fd]

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fds[0]

    def finish(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        close_all(self._fds)
