"""A process in a container, and its end."""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from _thread import allocate_lock
from errno import ECHILD, EINTR

from containerkit import _native
from containerkit.descriptors import keep
from containerkit.errors import StateError
from containerkit.process.communicate import LONGEST_POLL_MS, Communication
from containerkit.process.stdio import DEVNULL, PIPE, STDOUT
from containerkit.typed import AnyStr, Generic, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Any, Final, Self

    from containerkit._native.outcome import Ending
    from containerkit.process.result import Cause, Usage
    from containerkit.process.seccomp_notify import Supervision
    from containerkit.process.stdio import End, Streams, Text
    from containerkit.spec.command import Command

__all__ = ["DEVNULL", "OUTPUT_LIMIT_BYTES", "PIPE", "STDOUT", "Process", "kill_and_reap"]

OUTPUT_LIMIT_BYTES: Final = 256 * 1024 * 1024
"""The default limit of a command's captured output in bytes. A command that writes more is killed."""

_REPORT: Final = struct.Struct("=ii18q")  # struct report in init.c
_TIOCSWINSZ: Final = 0x5414


Result = TypeVar("Result")


class Process(Generic[AnyStr]):
    """A process in a container. Only ``popen`` makes one.

    It is modelled on :class:`subprocess.Popen`: ``stdin``, ``stdout`` and ``stderr`` are files or None, and
    ``returncode`` is None while it runs. All signals are sent through a pidfd, so none can hit another process.
    """

    def __init__(
        self,
        command: Command,
        pid: int,
        pidfd: int,
        streams: Streams,
        *,
        report: int = -1,
        text: Text | None = None,
        finish: Callable[[Process[Any]], None] | None = None,
        kill_tree: Callable[[], None] | None = None,
    ) -> None:
        self.args: list[str] = command.words
        self.pid: int = pid
        self.returncode: int | None = None
        self.usage: Usage | None = None
        self.cause: Cause | None = None
        self.supervision: Supervision | None = None
        self.terminal: bool = streams.terminal
        self._pidfd = pidfd
        self._report = report
        self._reported: list[bytes] = []
        self._owner = os.getpid()
        self._lock = allocate_lock()
        self._watchers: set[object] = set()
        self._finish = finish
        self._kill_tree = kill_tree
        self._killed_for: Cause | None = None
        self.ends: list[End | None] = streams.ends(text)

    @property
    def stdin(self) -> IO[AnyStr] | None:
        """The file that writes to its standard input; None if that is not a pipe."""
        return self._file(0)

    @property
    def stdout(self) -> IO[AnyStr] | None:
        """The file that reads its standard output; None if that is not a pipe."""
        return self._file(1)

    @property
    def stderr(self) -> IO[AnyStr] | None:
        """The file that reads its standard error; None if that is not a pipe."""
        return self._file(2)

    def _file(self, number: int) -> IO[Any] | None:
        end = self.ends[number]
        return None if end is None else end.file

    def __repr__(self) -> str:
        state = "running" if self.returncode is None else f"ended with {self.returncode}"
        return f"<Process {self.pid} {' '.join(self.args)[:60]!r} {state}>"

    def fileno(self) -> int:
        """Return the pidfd: readable once the process has ended.

        Raises:
            StateError: it has ended and was waited for.
        """
        if self.returncode is not None:
            raise StateError(f"{self!r}: it was waited for, its descriptor is closed")
        return self._pidfd

    # --- Waiting

    def poll(self) -> int | None:
        """Return the exit status if it has ended, else None. Does not wait."""
        return self._collect()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end.

        Args:
            timeout: seconds (default: no limit).

        Returns:
            The exit status, or the negative number of the signal that ended it.

        Raises:
            ContainerTimeout: it is still running. Nothing was done to it.
        """
        if timeout is not None and self.returncode is None and not self._ended_within(timeout):
            from containerkit.errors import ContainerTimeout  # late: it imports subprocess

            raise ContainerTimeout(self.args, timeout)
        while (status := self._collect()) is None:
            self._ended_within(86_400.0)  # wait without the lock: poll() of another thread must not be blocked
        return status

    def _ended_within(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout

        def look(pidfd: int) -> bool:
            if pidfd < 0:
                return True
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            while True:
                left = deadline - time.monotonic()
                if poll.poll(min(max(0.0, left * 1000), LONGEST_POLL_MS)):
                    return True
                if left <= 0:
                    return False

        return self.watched(look)

    def watched(self, do: Callable[[int], Result]) -> Result:
        """Call a function with the pidfd, or -1 after the end. No other thread closes it in the meantime."""
        mark = object()
        try:
            with self._lock:
                self._watchers.add(mark)
            result = do(self._pidfd)
            self._unwatch(mark)
        except BaseException:  # again, in case a signal handler raised before it
            self._unwatch(mark)
            raise
        return result

    def hold(self) -> None:
        """Keep the pidfd open after the end, until :meth:`release`, because other threads use its number."""
        self._watchers.add(self)

    def release(self) -> None:
        """Close the pidfd that :meth:`hold` kept, once the process has ended. May be called twice."""
        self._unwatch(self)

    def _unwatch(self, mark: object) -> None:
        with self._lock:
            self._watchers.discard(mark)
            self._close_pidfd()

    def _close_pidfd(self) -> None:
        if self.returncode is not None and not self._watchers and self._pidfd >= 0:
            fd, self._pidfd = self._pidfd, -1
            os.close(fd)

    def _collect(self) -> int | None:
        """Reap it once if it has ended. Later callers get the stored result."""
        if self.returncode is not None and self._pidfd < 0:
            return self.returncode
        with self._lock:
            if self.returncode is not None:
                self._close_pidfd()  # in case a signal handler raised before it
                return self.returncode
            if os.getpid() != self._owner:
                raise StateError(f"{self!r}: it is a child of the process that this one was forked from")
            try:
                ending = _native.interpreter().wait(self._pidfd, os.WEXITED | os.WNOHANG)
            except OSError as error:
                if error.errno == EINTR:
                    return None
                if error.errno != ECHILD:
                    raise
                ending = self._reaped_by_another()
            if ending is None:
                return None
            self._settle(ending)
        return self.returncode

    def _reaped_by_another(self) -> Ending:
        """Get the status of a child that another wait(-1) reaped. Source: PIDFD_GET_INFO, Linux 6.15."""
        import fcntl

        from containerkit.process import result

        request = bytearray(64)
        struct.pack_into("=Q", request, 0, 1 << 3)  # PIDFD_INFO_EXIT
        try:
            fcntl.ioctl(self._pidfd, 0xC040_FF0B, request)
            known = struct.unpack_from("=Q", request, 0)[0] & 1 << 3
        except OSError:
            known = 0
        status = struct.unpack_from("=i", request, 60)[0] if known else 255 << 8
        return result.decode(self.pid, status, (0,) * 18)

    def _settle(self, ending: Ending) -> None:
        """Store how it ended. If the init wrote a report, use that, because it describes the command itself."""
        from containerkit.process import result

        if self._report >= 0:
            ending = self._from_report(ending)
        returncode, self.usage, cause = result.result_fields(ending)
        self.cause = self._killed_for or cause
        try:
            if self._finish is not None:
                self._finish(self)
        finally:
            self.returncode = returncode
            self._close_pidfd()

    def _from_report(self, ending: Ending) -> Ending:
        from containerkit.process import result

        if not self._reported:  # otherwise it was read before a signal handler raised
            try:
                keep(self._reported, os.read, self._report, _REPORT.size)
            except BlockingIOError:
                self._reported.append(b"")
        raw = self._reported[-1]
        fd, self._report = self._report, -1
        os.close(fd)
        if len(raw) != _REPORT.size:
            return ending._replace(code=os.CLD_KILLED, status=signal.SIGKILL)
        status, _, *usage = _REPORT.unpack(raw)
        return result.decode(ending.pid, status, tuple(usage))

    def at_end(self, do: Callable[[], object]) -> None:
        """Register a function to call when its end is first noticed, in the thread that notices it.

        Args:
            do: called once, after earlier registered functions and before ``returncode`` is set. It must not wait for
                the end.
        """
        with self._lock:
            former = self._finish

            def finish(process: Process[Any]) -> None:
                try:
                    if former is not None:
                        former(process)
                finally:
                    do()

            if self.returncode is None:
                self._finish = finish
                return
        do()

    # --- Signals

    def send_signal(self, number: int) -> None:
        """Send a signal. Has no effect if it has ended. Source: pidfd_send_signal(2)."""
        with self._lock:
            if self.returncode is not None:
                return
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it: SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def kill_all(self, cause: Cause | None = None) -> None:
        """Kill it and all its descendants, as far as these can be distinguished from processes of others.

        Args:
            cause: the value of :attr:`cause` (default: derived from its end).
        """
        if self.returncode is not None:
            return
        self._killed_for = cause
        if self._kill_tree is not None:
            self._kill_tree()
        elif self._report < 0:  # else it is the init, whose end kills the whole pid namespace
            from containerkit.process.kill_tree import kill_tree

            self.send_signal(signal.SIGSTOP)
            self.watched(lambda pidfd: kill_tree(self.pid, pidfd) if pidfd >= 0 else None)
        self.kill()

    # --- Communicating

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal. Source: ioctl_tty(2), TIOCSWINSZ.

        Raises:
            StateError: it has no terminal.
            SpecError: the size is invalid.
        """
        import fcntl

        from containerkit.process.stdio import window_size

        master = self.ends[0]
        if not self.terminal or master is None:
            raise StateError(f"{self!r}: it has no terminal; start it with pty=True")
        rows, columns = window_size((rows, columns))
        fcntl.ioctl(master.fileno(), _TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def communicate(
        self,
        input: AnyStr | None = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,
        *,
        limit_bytes: int | None = None,
    ) -> tuple[AnyStr, AnyStr]:
        """Send input, read both outputs to the end, and wait.

        Args:
            input: bytes, or str if the files are text.
            timeout: seconds (default: no limit).
            limit_bytes: kill it once it has written more than this to both outputs together (default: no limit).

        Returns:
            Its output on stdout and stderr; None for a stream without a pipe, which the types do not express.

        Raises:
            ContainerTimeout: the timeout expired. It and its descendants were killed. The error has the output so far.
        """
        return Communication(self, input, timeout, limit_bytes).hold()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_files()
        if kind is not None:
            self.kill_all()
        self.wait()

    def _close_files(self) -> None:
        for end in self.ends:
            if end is not None:
                end.close()

    def close(self) -> None:
        """Kill it if it runs, wait for it and close its files. May be called twice."""
        if os.getpid() != self._owner:
            return
        self._close_files()
        self.kill_all()
        self.wait()


def kill_and_reap(pidfd: int) -> None:
    """Kill and reap a child that has no owner, and close its pidfd.

    Args:
        pidfd: a pidfd of the child; -1 for none.
    """
    if pidfd < 0:
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        while True:
            try:
                _native.interpreter().wait(pidfd, os.WEXITED)
            except InterruptedError:
                continue
            return
    except (ProcessLookupError, ChildProcessError):
        return
    finally:
        os.close(pidfd)
