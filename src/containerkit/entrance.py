"""How commands come into a live container: by compiled plans, and by descriptors of what they join."""

from __future__ import annotations

import os
from _thread import allocate_lock
from typing import TYPE_CHECKING, Final

from containerkit import _native, payload
from containerkit.engine import Program
from containerkit.ground import programs
from containerkit.namespace import Kind
from containerkit.payload import NOTHING_TO_JOIN, Joining
from containerkit.security.confinement import PROC

if TYPE_CHECKING:
    from containerkit.command import Command
    from containerkit.ground import Ground
    from containerkit.process import Process

__all__ = ["Entrance"]

_PIDFD_GET_TIME_NAMESPACE: Final = 0xFF07
"""Source: linux/pidfd.h, since Linux 6.11."""


class Entrance:
    """The way into one container; closed by :meth:`close`.

    Args:
        init: its PID 1.
        ground: what it stands on.
        kinds: the ``CLONE_NEW*`` of the namespaces in which it differs from the caller.
    """

    def __init__(self, init: Process, ground: Ground, kinds: int) -> None:
        self._init = init
        self._ground = ground
        self._kinds = kinds
        self._time = -1
        self._opening = allocate_lock()

    def program(self, command: Command, joins: Joining = NOTHING_TO_JOIN) -> Program:
        """Return the plan by which a command comes in, compiled."""
        kinds, sets_groups = self._kinds, self._ground.host.sets_groups
        return programs.get(
            (command.shape, kinds, sets_groups, joins),
            lambda: Program(payload.exec_plan(command, kinds, sets_groups=sets_groups, joins=joins)),
        )

    def inputs(self) -> dict[str, int]:
        """Return the slots of such a plan, but for those of the command.

        Raises:
            StateError: the container has stopped.
        """
        time = {"time": self._time_namespace()} if self._kinds & Kind.TIME.flag else {}
        own = {"target": self._init.fileno(), PROC.name: _native.proc(), "image": _native.init_image()}
        return {**time, **own}

    def _time_namespace(self) -> int:
        """Return what can't be joined by way of the pidfd; it is opened when first needed."""
        with self._opening:  # two that come at once must not each open one, of which the first is closed again
            if self._time < 0:
                self._time = self._open_time()
        return self._time

    def _open_time(self) -> int:
        import fcntl

        from containerkit.namespace import Namespace

        try:
            return _native.high(fcntl.ioctl(self._init.fileno(), _PIDFD_GET_TIME_NAMESPACE))
        except OSError:
            with Namespace.from_pidfd(self._init.fileno(), Kind.TIME) as namespace:
                return _native.high(fcntl.fcntl(namespace.fileno(), fcntl.F_DUPFD_CLOEXEC, _native.LOWEST))

    def close(self) -> None:
        """Close what was opened; harmless when repeated."""
        fd, self._time = self._time, -1
        if fd >= 0:
            os.close(fd)
