"""How commands join a live container: compiled plans, and descriptors of the namespaces to join."""

from __future__ import annotations

from _thread import allocate_lock

from containerkit import _native
from containerkit.compile import payload
from containerkit.compile.joining import NOTHING_TO_JOIN, Joining
from containerkit.descriptors import close_all, keep, keep_above, lend
from containerkit.namespace import Kind
from containerkit.plan.program import Program, proc
from containerkit.security.confinement import PROC
from containerkit.start.context import programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from containerkit.process.process import Process
    from containerkit.spec.command import Command
    from containerkit.start.context import StartContext

__all__ = ["JoinContext"]

_PIDFD_GET_TIME_NAMESPACE: Final = 0xFF07
"""Source: linux/pidfd.h, since Linux 6.11."""


class JoinContext:
    """The plans and descriptors with which commands join one container. Closed by :meth:`close`.

    Args:
        init: its PID 1.
        context: the context of its start.

    Attributes:
        direct: whether the calling thread can clone a command into the pid namespace. Source: pid_namespaces(7).
    """

    def __init__(self, init: Process[Any], context: StartContext) -> None:
        self._init = init
        self._context = context
        self._kinds = context.spec.kinds
        self._has_clock = bool(self._kinds & Kind.TIME.flag)
        self.direct = context.host.privileged
        self._time: list[int] = []
        self._opening = allocate_lock()

    def program(self, command: Command, joins: Joining = NOTHING_TO_JOIN, *, direct: bool = False) -> Program:
        """Return the compiled plan by which a command joins; see :func:`containerkit.compile.payload.exec_plan`."""
        kinds, sets_groups = self._kinds, self._context.host.sets_groups
        return programs.get(
            (command.shape, kinds, sets_groups, joins, direct),
            lambda: Program(payload.exec_plan(command, kinds, sets_groups=sets_groups, joins=joins, direct=direct)),
        )

    def inputs(self) -> dict[str, int]:
        """Return the slots of such a plan, except those of the command.

        Raises:
            StateError: the container has stopped.
        """
        found = {"target": self._init.fileno(), PROC.name: proc(), "image": _native.init_image()}
        if self._has_clock:
            found["time"] = self._time_namespace()
        found.update(self._context.sockets())
        return found

    def _time_namespace(self) -> int:
        """Return the time namespace, if the pidfd can't be used to join it. It is opened on first use."""
        with self._opening:  # two threads must not both open one, or the first would be closed again
            if not self._time:
                lend(self._open_time)
            return self._time[0]

    def _open_time(self, opened: list[int]) -> None:
        import fcntl

        from containerkit.namespace import Namespace

        try:
            fd = keep(opened, fcntl.ioctl, self._init.fileno(), _PIDFD_GET_TIME_NAMESPACE)
        except OSError:
            with Namespace.from_pidfd(self._init.fileno(), Kind.TIME) as namespace:
                keep_above(self._time, namespace.fileno(), _native.LOWEST)
        else:
            keep_above(self._time, fd, _native.LOWEST)

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        close_all(self._time)
