"""A command in a live container that is run in one go: started, heard out and reaped without coming back to Python."""

from __future__ import annotations

import contextlib
import signal
from _thread import allocate_lock
from typing import TYPE_CHECKING

from containerkit.engine import Capture, Program, see_out
from containerkit.errors import ContainerTimeout
from containerkit.process import Process
from containerkit.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit._native.outcome import Left
    from containerkit.command import Command
    from containerkit.streams import Text

__all__ = ["Errand"]


class Errand:
    """A command on its way; in the books of its container it stands for the process.

    Args:
        program: the plan by which it starts.
        command: what it is.
        text: how its output is text.
        owner, limit, timeout: as for :class:`containerkit.engine.Capture`.
    """

    def __init__(
        self,
        program: Program,
        command: Command,
        text: Text | None,
        owner: int | None,
        limit: int | None,
        timeout: float | None,
    ) -> None:
        self.command = command
        self.text = text
        self.capture = Capture(abandon=self._abandon, owner=owner, limit=limit, timeout=timeout)
        self._program = program
        self._run = program.prepared(self.capture, keep=True)
        self._signals = allocate_lock()
        self._under_way = allocate_lock()
        self._under_way.acquire()
        self._over = False

    def start(self, inputs: Mapping[str, int], flags: int) -> None:
        """Start it.

        Raises:
            SetupError: an operation failed; nothing runs.
        """
        try:
            self._program.begin(self._run, inputs, argv=self.command.argv, envp=self.command.envp, flags=flags)
        except BaseException:
            self.capture.give_up(self._run)
            self._end()
            raise

    def see_out(self) -> Left:
        """Hear it out, and return what is left; its pidfd is another's from then on, or closed."""
        try:
            return self.capture.left(self._run, lambda: see_out(self._run))
        finally:
            self._end()

    def _end(self) -> None:
        with self._signals:
            self._over = True
            self._run.release()
        if self._under_way.locked():
            self._under_way.release()

    def _abandon(self, left: Left) -> None:
        self.taken_over(left).close()

    def taken_over(self, left: Left, finish: Callable[[Process], None] | None = None) -> Process:
        """Return it as a process that somebody has to look after still."""
        streams = Streams([], [None, *left.ends], [])
        return Process(self.command, left.pid, left.pidfd, streams, text=self.text, finish=finish)

    # --- As a process

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens when it has ended."""
        with self._signals:
            pidfd = -1 if self._over else self._run.pidfd
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)

    def kill(self) -> None:
        """End it: SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Args:
            timeout: seconds (default: for ever).

        Raises:
            ContainerTimeout: it still runs.
        """
        if not self._under_way.acquire(timeout=-1 if timeout is None else timeout):
            raise ContainerTimeout(self.command.words, timeout or 0)
        self._under_way.release()
