"""The reference interpreter of the tape, in Python and ctypes.

It is used if there is no compiled module, and as the reference in differential tests: for any tape both interpreters
have the same effect, or fail at the same step with the same error number. It forks the whole Python process where the
C interpreter shares its memory. Everything else follows ``native.h`` step by step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import struct
import sys
import threading
import time
from errno import EAGAIN, EPROTO, ETIMEDOUT
from typing import TYPE_CHECKING, Final

from containerkit._native import constants as k
from containerkit._native import high
from containerkit._native.outcome import CALLER, NO_PROCESS, SHARE_FILES, Ending, Outcome
from containerkit._native.reference_child import ABORTED, WAITING, Walk, raw
from containerkit._native.reference_tape import COMMAND_GATE, Tape

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NAME", "Beside", "Program", "Run", "listen", "wait"]

NAME = "reference"
Run = None
"""This interpreter can't run a command in one call."""
Beside = None
"""This interpreter can't walk a tape beside its caller."""

_P_PIDFD: Final = 3
_START_MS: Final = 20_000

_waiting_libc = ctypes.CDLL(None, use_errno=True)  # releases the GIL, for calls that block
_waiting_libc.syscall.restype = ctypes.c_long

_settling: Final = threading.Lock()


def _fork() -> int:
    """Fork with os.fork, so that the interpreter reinitialises its own locks in the child."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forks with threads, since Python 3.12
        return os.fork()


def _fork_sharing_files() -> int:
    """Fork with a raw clone, because only that can share the descriptors. The interpreter does not know of it.

    If another thread had requested the GIL at that moment, the child would wait forever for that thread, which it does
    not have, to take it. So the GIL is released just before, and a thread that waits for it now requests it much later.
    """
    with _settling:
        interval = sys.getswitchinterval()
        alone = threading.active_count() == 1
        if not alone:
            time.sleep(0.0001)
            sys.setswitchinterval(60.0)
        stage = raw(k.SYSTEM_CALLS["clone"], k.CLONE_FILES, 0, 0, 0, 0)
        if not alone and stage != 0:
            sys.setswitchinterval(interval)
    return stage


class Program(Tape):
    """A tape that is checked once and can be run many times; like the compiled class.

    Raises:
        ValueError: a step is malformed.
    """

    __slots__ = ()

    def run(
        self,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
        flags: int = 0,
        data: bytes | None = None,
        opens: frozenset[int] = frozenset(),  # noqa: ARG002 - used by the compiled class
        into: list[Outcome] | None = None,
        beside: int = 0,  # noqa: ARG002 - used by the compiled class
    ) -> Outcome:
        """Walk the tape in a new process; see :meth:`containerkit._native.compiled.Program.run`."""
        request = _Request(self.steps, self.data if data is None else data, argv, envp, slots, proc_fd)
        times = [time.monotonic_ns()]
        error_read, write = os.pipe()
        try:
            request.error_fd = high(write)
        except OSError:
            os.close(error_read)
            raise
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            stage = _fork_sharing_files() if flags & SHARE_FILES else _fork()
            if stage == 0:
                request.begin(flags)
            times.append(time.monotonic_ns())
            if stage < 0:
                os.close(request.error_fd)
                raise OSError(-stage, os.strerror(-stage), "clone")
            if flags & NO_PROCESS:
                return request.finish_without_process(stage, error_read, times)
            os.close(request.error_fd)
            outcome = request.finish(stage, error_read, times)
            if into is not None:
                into.append(outcome)  # before handlers of signals run again
        finally:
            os.close(error_read)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return outcome


class _Request(Walk):
    """The parent's side of one start."""

    def finish_without_process(self, stage: int, error_read: int, times: list[int]) -> Outcome:
        """Reap all processes. They may share our own descriptors (SHARE_FILES), including the error pipe."""
        _reap(stage)
        if self.main_pid.value:
            self._abort_gates()
            self.set(self.watched, 1)
            _reap(self.main_pid.value)
        times.append(time.monotonic_ns())
        os.close(self.error_fd)
        index, error = _read_failure(error_read)
        times.append(time.monotonic_ns())
        return self._outcome(0, -1, index, error, times)

    def finish(self, stage: int, error_read: int, times: list[int]) -> Outcome:
        """Reap stage 1, read the error pipe, and take over the remaining process."""
        self._await_stage(stage, error_read)
        pid = self.main_pid.value or stage
        pidfd, problem = -1, 0
        if self.main_pid.value:
            self._abort_gates()
            pidfd, problem = _open_pidfd(pid)
            if problem:
                os.kill(pid, signal.SIGKILL)  # it has not exec'd and is unreaped, so the pid is still its own
            self.set(self.watched, 1)
        times.append(time.monotonic_ns())
        index, error = _read_failure(error_read)
        times.append(time.monotonic_ns())
        if index < 0 and not self.main_pid.value:
            pidfd, problem = _open_pidfd(pid)
        if index < 0 and problem:
            index, error = CALLER, problem
        if index >= 0:
            _end_process(pid, pidfd)
            return self._outcome(0, -1, index, error, times)
        return self._outcome(pid, pidfd, -1, 0, times)

    def _abort_gates(self) -> None:
        """Stage 1 is gone: what it has not released, nobody will."""
        for number, gate in enumerate(self.gates):
            if number != COMMAND_GATE and gate.value == WAITING:
                self.set(gate, ABORTED)

    def _await_stage(self, stage: int, error_read: int) -> None:
        """Wait until stage 1 has exited or exec'd. At an exec the error pipe closes while stage 1 still runs."""
        import select

        try:
            stage_fd = os.pidfd_open(stage)
        except ProcessLookupError:
            return
        poll = select.poll()
        poll.register(stage_fd, select.POLLIN)
        poll.register(error_read, select.POLLIN)
        poll.poll()
        if self.main_pid.value:
            _reap(stage)
        os.close(stage_fd)

    def _outcome(self, pid: int, pidfd: int, index: int, error: int, times: list[int]) -> Outcome:
        return Outcome(pid, pidfd, index, error, (times[0], times[1], times[2], times[3]), self.slots[: self.handed_in])


def _read_failure(error_read: int) -> tuple[int, int]:
    """Return the failed step and its error number, or -1 and 0 at the end of the pipe. A short read is a failure."""
    import select

    poll = select.poll()
    poll.register(error_read, select.POLLIN)
    if not poll.poll(_START_MS):
        return CALLER, ETIMEDOUT
    report = os.read(error_read, 8)
    if not report:
        return -1, 0
    index, error = struct.unpack("=ii", report) if len(report) == 8 else (0, EPROTO)
    return index, error


def _open_pidfd(pid: int) -> tuple[int, int]:
    """Return a pidfd and 0, or -1 and an error number."""
    try:
        return os.pidfd_open(pid), 0
    except OSError as error:
        return -1, error.errno or 0


def _end_process(pid: int, pidfd: int) -> None:
    """Kill and reap a process that can't be used. Its pid is used only if nobody else can have reaped it."""
    if pidfd < 0:
        os.kill(pid, signal.SIGKILL)
        _reap(pid)
        return
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
    except (ProcessLookupError, ChildProcessError):
        pass
    finally:
        os.close(pidfd)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, k.WALL)


def listen(
    pidfd: int,  # noqa: ARG001 - as below
    out: int,  # noqa: ARG001 - as below
    err: int,  # noqa: ARG001 - as below
    limit: int | None,  # noqa: ARG001 - as below
    deadline: float | None,  # noqa: ARG001 - as below
) -> tuple[int, bytes, bytes]:
    """Leave it to the caller, which does the same in Python; see :func:`containerkit._native.compiled.listen`."""
    return EAGAIN, b"", b""


def wait(pidfd: int, options: int) -> Ending | None:
    """Wait for a child by its pidfd; see :func:`containerkit._native.compiled.wait`."""
    info = ctypes.create_string_buffer(128)
    usage = (ctypes.c_long * 18)()
    result = _waiting_libc.syscall(
        ctypes.c_long(k.SYSTEM_CALLS["waitid"]),
        ctypes.c_long(_P_PIDFD),
        ctypes.c_long(pidfd),
        info,
        ctypes.c_long(options | k.WALL),
        usage,
    )
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "waitid")
    # siginfo_t of a SIGCHLD: si_code at 8, si_pid at 16, si_status at 24.
    code, pid, status = struct.unpack_from("=i4xi4xi", info, 8)
    if not pid:
        return None
    return Ending.of(pid, code, status, list(usage))
