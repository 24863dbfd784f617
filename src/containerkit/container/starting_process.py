"""A process that is being started, and its resources so far."""

from __future__ import annotations

import os

from containerkit import _native
from containerkit.descriptors import close_all, keep, keep_above
from containerkit.process.process import Process, kill_and_reap
from containerkit.process.stdio import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from containerkit._native.outcome import Outcome
    from containerkit.cgroup import CGroup
    from containerkit.process.seccomp_notify import Supervision
    from containerkit.process.stdio import Text
    from containerkit.spec.command import Command

__all__ = ["StartingProcess"]


class StartingProcess:
    """A process that is being started. It owns the pipes, the child and the process as soon as they are made.

    A signal handler may raise after any call. Each resource is stored here before that could lose it.
    :meth:`call_off` releases them.

    Args:
        text: how its output is decoded.

    Attributes:
        outcomes: the outcome of the start, after it.
        process: the process, once it owns the child and the caller's ends.
        leaf: its own control group.
        throttled_us: how long its container was throttled before the start, in microseconds.
        supervision: the supervisor of its system calls.
    """

    __slots__ = (
        "_pipes",
        "_report",
        "_theirs",
        "leaf",
        "outcomes",
        "process",
        "streams",
        "supervision",
        "text",
        "throttled_us",
    )

    def __init__(self, text: Text | None) -> None:
        self.text = text
        self.streams = Streams([], [None, None, None], [])
        self.supervision: Supervision | None = None
        self.leaf: CGroup | None = None
        self.throttled_us: int | None = None
        self.outcomes: list[Outcome] = []
        self.process: Process[Any] | None = None
        self._pipes: list[tuple[int, int]] = []
        self._theirs: list[int] = []
        self._report = -1

    def open_report(self) -> int:
        """Make the pipe in which init reports how the command ended, and return init's end."""
        keep(self._pipes, os.pipe2, os.O_CLOEXEC | os.O_NONBLOCK)  # nobody waits for it: PID 1 writes once and ends
        # Nothing is called from here on, so no signal handler can run before the ends have their owners.
        self._report, write = self._pipes[-1]
        self._theirs = [write]
        del self._pipes[-1]
        if write < _native.LOWEST:
            keep_above(self._theirs, write, _native.LOWEST)
        return self._theirs[-1]

    def enter(
        self,
        command: Command,
        finish: Callable[[Process[Any]], None],
        kill_tree: Callable[[], None] | None = None,
    ) -> Process[Any]:
        """Return the process, which owns everything from now on.

        Args:
            command: its command.
            finish, kill_tree: as for :class:`Process`.
        """
        outcome = self.outcomes[-1]
        self.process = Process(
            command,
            outcome.pid,
            outcome.pidfd,
            self.streams,
            report=self._report,
            text=self.text,
            finish=finish,
            kill_tree=kill_tree,
        )
        self.process.supervision = self.supervision
        return self.process

    def close_child(self) -> None:
        """Close the child's ends, of which the child has copies."""
        self.streams.close_child()
        close_all(self._theirs)

    def call_off(self) -> None:
        """Release everything after a failed start or an exception of a signal handler. May be called twice."""
        while self._pipes:
            self._theirs += self._pipes[-1]
            del self._pipes[-1]
        self.streams.close()
        close_all(self._theirs)
        if self.process is not None:
            self.process.close()
            return
        report, self._report = self._report, -1
        if report >= 0:
            os.close(report)
        while self.outcomes:
            pidfd = self.outcomes[-1].pidfd
            del self.outcomes[-1]
            kill_and_reap(pidfd)
        if self.supervision is not None:
            self.supervision.close()
