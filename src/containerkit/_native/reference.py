"""The reference interpreter of the tape, in Python and ctypes.

It is what runs where no compiled module is there, and the oracle of the differential tests: for any tape both
interpreters leave the same state or fail at the same step with the same error number. It forks the whole interpreter
where the C one shares its memory; everything else follows ``native.h`` step by step.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import signal
import struct
import sys
import threading
import time
from errno import EAGAIN, EPROTO, ETIMEDOUT
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from containerkit._native import constants as k
from containerkit._native import high
from containerkit._native.outcome import CALLER, HIDE_MEMORY, NO_PROCESS, SHARE_FILES, SLOTS, Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NAME", "Program", "Run", "listen", "wait"]

NAME = "reference"
Run = None
"""Nothing is run in one call here."""

_LAYOUT: Final = struct.Struct("=HHi8B4h6q")
_NO_SLOT: Final = 0xFFFF
_FUTEX_WAIT, _FUTEX_WAKE, _EVERYBODY = 0, 1, 2**31 - 1
_WAITING, _RELEASED, _ABORTED = 0, 1, 2
_KINDS, _ARGUMENT_KINDS, _GATES = 13, 5, 2
_P_PIDFD: Final = 3

# PyDLL keeps the GIL: the child of a raw clone finds it in its own hands.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_waiting_libc = ctypes.CDLL(None, use_errno=True)  # lets go of the GIL, for calls that block
_waiting_libc.syscall.restype = ctypes.c_long


def _raw(number: int, *arguments: int) -> int:
    """Return the value of a system call, or a negative error number."""
    result: int = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    return -ctypes.get_errno() if result == -1 else result


class _Step(NamedTuple):
    kind: int
    result: int
    call: int
    argument_kind: tuple[int, ...]
    skip: int
    leap: int
    tolerate: tuple[int, ...]
    argument: tuple[int, ...]

    @classmethod
    def unpack(cls, packed: bytes) -> _Step:
        fields = _LAYOUT.unpack(packed)
        return cls(fields[0], fields[1], fields[2], fields[3:9], fields[9], fields[10], fields[11:15], fields[15:])


_settling: Final = threading.Lock()


def _fork() -> int:
    """Fork the interpreter in the way that it knows of: it puts its own locks in order in the child."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, since Python 3.12
        return os.fork()


def _fork_sharing_files() -> int:
    """Fork with a raw clone, which alone can share the descriptors; the interpreter does not know of it.

    If another thread had asked for the GIL at that moment the child would wait for ever for a thread that it does not
    have to take it. So the GIL was let go of just before, and whoever waits for it now does so for long before it asks.
    """
    with _settling:
        interval = sys.getswitchinterval()
        alone = threading.active_count() == 1
        if not alone:
            time.sleep(0.0001)
            sys.setswitchinterval(60.0)
        stage = _raw(k.SYSTEM_CALLS["clone"], k.CLONE_FILES, 0, 0, 0, 0)
        if not alone and stage != 0:
            sys.setswitchinterval(interval)
    return stage


class Program:
    """A tape that was checked once and can be run many times; the twin of the compiled one.

    Raises:
        ValueError: a step is malformed.
    """

    __slots__ = ("_data", "_steps")

    def __init__(self, steps: bytes, data: bytes) -> None:
        size = _LAYOUT.size
        self._steps = [_Step.unpack(steps[at : at + size]) for at in range(0, len(steps) // size * size, size)]
        self._data = data
        for index, step in enumerate(self._steps):
            if (data and data[-1] != 0) or not self._is_valid(step):
                raise ValueError(f"step {index} of the tape is malformed")

    def _are_within(self, step: _Step) -> bool:
        """Whether what the arguments refer to is there."""
        limits = {k.ARG_DATA: len(self._data), k.ARG_SLOT: SLOTS}
        return all(
            kind < _ARGUMENT_KINDS and (kind not in limits or 0 <= value < limits[kind])
            for kind, value in zip(step.argument_kind, step.argument, strict=True)
        )

    def _is_valid(self, step: _Step) -> bool:
        if step.kind >= _KINDS or (step.result != _NO_SLOT and step.result >= SLOTS) or not self._are_within(step):
            return False
        first = step.argument[0]
        match step.kind:
            case k.STEP_CLONE:
                return 0 <= step.argument[5] < len(self._steps)
            case k.STEP_CLOSE:
                return step.argument_kind[0] == k.ARG_SLOT
            case k.STEP_AWAIT | k.STEP_RELEASE:
                return step.argument_kind[0] == k.ARG_INTEGER and 0 <= first < _GATES
            case k.STEP_STORE_SLOT | k.STEP_STORE_ADDRESS:
                return first >= 0 and first + (4 if step.kind == k.STEP_STORE_SLOT else 8) <= len(self._data)
            case _:
                return True

    def run(
        self,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
        flags: int = 0,
        data: bytes | None = None,
    ) -> Outcome:
        """Walk the tape in a new process; see :meth:`containerkit._native.compiled.Program.run`."""
        request = _Request(self._steps, self._data if data is None else data, argv, envp, slots, proc_fd)
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
            return request.finish(stage, error_read, times)
        finally:
            os.close(error_read)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class _Request:
    """One start. What the processes share lies in shared memory: the slots, the futex word, the pid, the data."""

    def __init__(
        self,
        steps: list[_Step],
        data: bytes,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
    ) -> None:
        self.steps = steps
        self.proc_fd = proc_fd
        self.error_fd = -1
        self.hidden = False
        self.handed_in = len(slots)
        self.memory = mmap.mmap(-1, SLOTS * 8 + 16 + len(data) + 8)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.slots = (ctypes.c_int64 * SLOTS).from_buffer(self.memory)
        self.slots[:] = [*slots, *[-1] * (SLOTS - len(slots))]
        self.main_pid = ctypes.c_int32.from_buffer(self.memory, SLOTS * 8)
        self.watched = ctypes.c_uint32.from_buffer(self.memory, SLOTS * 8 + 4)
        self.gates = [ctypes.c_uint32.from_buffer(self.memory, SLOTS * 8 + 8 + 4 * gate) for gate in range(_GATES)]
        self.data_at = SLOTS * 8 + 16
        self.memory[self.data_at : self.data_at + len(data)] = data
        self.vectors = [(ctypes.c_char_p * (len(words) + 1))(*words, None) for words in (argv, envp)]

    # The parent's side.

    def finish_without_process(self, stage: int, error_read: int, times: list[int]) -> Outcome:
        """Reap what leaves; it may have our own descriptors (SHARE_FILES), the error pipe among them."""
        _reap(stage)
        if self.main_pid.value:
            if self.gates[0].value == _WAITING:
                self._set(self.gates[0], _ABORTED)
            self._set(self.watched, 1)
            _reap(self.main_pid.value)
        times.append(time.monotonic_ns())
        os.close(self.error_fd)
        index, error = _read_failure(error_read)
        times.append(time.monotonic_ns())
        return self._outcome(0, -1, index, error, times)

    def finish(self, stage: int, error_read: int, times: list[int]) -> Outcome:
        """Reap stage 1, read the error pipe, and take the process that is left."""
        self._await_stage(stage, error_read)
        pid = self.main_pid.value or stage
        pidfd, problem = -1, 0
        if self.main_pid.value:
            if self.gates[0].value == _WAITING:
                self._set(self.gates[0], _ABORTED)
            pidfd, problem = _open_pidfd(pid)
            if problem:
                os.kill(pid, signal.SIGKILL)  # it has not exec'd: unreaped, so the number is still its own
            self._set(self.watched, 1)
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

    def _await_stage(self, stage: int, error_read: int) -> None:
        """Wait until stage 1 has left, or has exec'd (the error pipe then closes while it lives on)."""
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

    @staticmethod
    def _set(word: ctypes.c_uint32, state: int) -> None:
        """Set a futex word and wake who sleeps on it."""
        word.value = state
        _raw(k.SYSTEM_CALLS["futex"], ctypes.addressof(word), _FUTEX_WAKE, _EVERYBODY, 0, 0, 0)

    def _await_watcher(self) -> None:
        """Do not exec before the parent has its pidfd; see ``native.h``."""
        address = ctypes.addressof(self.watched)
        while self.main_pid.value and not self.watched.value:
            patience = ctypes.addressof(_PATIENCE)
            if _raw(k.SYSTEM_CALLS["futex"], address, _FUTEX_WAIT, 0, patience, 0, 0) == -ETIMEDOUT:
                return

    # The child's side.

    def begin(self, flags: int) -> NoReturn:
        """Be stage 1."""
        self.hidden = bool(flags & HIDE_MEMORY)
        if self.hidden:
            _raw(k.SYSTEM_CALLS["prctl"], k.PR_SET_DUMPABLE, 0, 0, 0, 0)
        _clear_handlers()
        self.walk(0)

    def walk(self, index: int) -> NoReturn:
        """Walk the tape from a step; never returns."""
        try:
            while index < len(self.steps):
                step = self.steps[index]
                result = self._perform(step)
                if -4096 < result < 0:
                    if -result not in step.tolerate:
                        os.write(self.error_fd, struct.pack("=ii", index, -result))
                        os._exit(127)
                    index += step.skip
                else:
                    index += step.leap
                if step.result != _NO_SLOT:
                    self.slots[step.result] = result
                index += 1
            os._exit(0)
        finally:
            os._exit(126)

    def _resolve(self, step: _Step, which: int) -> int:
        kind, value = step.argument_kind[which], step.argument[which]
        if kind == k.ARG_DATA:
            return self.address + self.data_at + value
        if kind == k.ARG_SLOT:
            return int(self.slots[value])
        if kind in (k.ARG_ARGV, k.ARG_ENVP):
            return ctypes.addressof(self.vectors[kind - k.ARG_ARGV])
        return value

    def _text(self, address: int) -> bytes:
        return ctypes.string_at(address)

    def _perform(self, step: _Step) -> int:  # noqa: PLR0911, PLR0912 - one branch for each kind of step
        value = [self._resolve(step, which) for which in range(6)]
        match step.kind:
            case k.STEP_CALL:
                return _raw(step.call, *value)
            case k.STEP_CLONE:
                return self._clone(value[0], value[1], value[5])
            case k.STEP_AWAIT:
                return self._await(self.gates[value[0]])
            case k.STEP_RELEASE:
                self._set(self.gates[value[0]], _RELEASED)
                return 0
            case k.STEP_OPEN_PROC:
                return self._open_proc(value[0], self._text(value[1])[:60], value[2])
            case k.STEP_HELPER:
                return self._helper(value[0], value[1], value[2])
            case k.STEP_SIGNALS:
                self._await_watcher()
                return _reset_signals()
            case k.STEP_STORE_SLOT | k.STEP_STORE_ADDRESS:
                width = "=i" if step.kind == k.STEP_STORE_SLOT else "=q"
                number = ctypes.c_int32(value[1]).value if step.kind == k.STEP_STORE_SLOT else value[1]
                struct.pack_into(width, self.memory, self.data_at + step.argument[0], number)
                return 0
            case k.STEP_CLOSE:
                self.slots[step.argument[0]] = -1
                return _raw(k.SYSTEM_CALLS["close"], value[0])
            case k.STEP_ENTER:
                # A forked child is alone in its address space already. An exec would have made it dumpable again; where
                # others are about who must not see the interpreter's memory, it stays as it is.
                if self.hidden:
                    return 0
                return _raw(k.SYSTEM_CALLS["prctl"], k.PR_SET_DUMPABLE, 1, 0, 0, 0)
            case k.STEP_INIT:
                self._await_watcher()
                return self._init(value[0], self._text(value[1]))
            case _:
                os._exit(0)

    def _clone(self, flags: int, group: int, index: int) -> int:
        exit_signal = 0 if flags & k.CLONE_PARENT else signal.SIGCHLD
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        # its size, cgroup
        arguments = ctypes.create_string_buffer(
            struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, group if flags & k.CLONE_INTO_CGROUP else 0)
        )
        pid = _raw(k.SYSTEM_CALLS["clone3"], ctypes.addressof(arguments), 88)
        if pid == 0:
            self.walk(index)
        if pid > 0 and flags & k.CLONE_PARENT:
            self.main_pid.value = pid
        return pid

    @staticmethod
    def _await(gate: ctypes.c_uint32) -> int:
        while gate.value == _WAITING:
            _raw(k.SYSTEM_CALLS["futex"], ctypes.addressof(gate), _FUTEX_WAIT, _WAITING, 0, 0, 0)
        if gate.value == _ABORTED:
            os._exit(127)
        return 0

    def _open_proc(self, pid: int, name: bytes, flags: int) -> int:
        path = ctypes.create_string_buffer(b"%d/%s" % (pid, name))
        return _raw(k.SYSTEM_CALLS["openat"], self.proc_fd, ctypes.addressof(path), flags | k.O_CLOEXEC, 0)

    def _helper(self, address: int, count: int, pid: int) -> int:
        words: list[bytes] = []
        for _ in range(count):
            word = self._text(address)
            address += len(word) + 1
            words.append(b"%d" % pid if word == b"PID" else word)
        child = _raw(k.SYSTEM_CALLS["clone"], 0, 0, 0, 0, 0)
        if child == 0:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                os.execve(words[0], words, {})
            finally:
                os._exit(127)
        if child < 0:
            return child
        return 0 if os.waitpid(child, k.WALL)[1] == 0 else -125

    def _init(self, image: int, mode: bytes) -> int:
        argv = (ctypes.c_char_p * 3)(b"init", mode, None)
        envp = (ctypes.c_char_p * 1)(None)
        empty = ctypes.create_string_buffer(b"")
        return _raw(
            k.SYSTEM_CALLS["execveat"],
            image,
            ctypes.addressof(empty),
            ctypes.addressof(argv),
            ctypes.addressof(envp),
            k.AT_EMPTY_PATH,
        )


_PATIENCE: Final = ctypes.create_string_buffer(struct.pack("=qq", 0, 50_000_000))  # CK_WATCHER_NS in native.h
_START_MS: Final = 20_000


def _read_failure(error_read: int) -> tuple[int, int]:
    """Return the step that failed and its error number; -1 and 0 at the end of the pipe. A short read is as bad."""
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
    """End and reap a process that can't be used; by its number only where nobody else can have reaped it."""
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


_SIGACTION: Final = ctypes.create_string_buffer(32)
_RT_SIGACTION, _RT_SIGPROCMASK = (134, 135) if k.MACHINE == "aarch64" else (13, 14)


def _clear_handlers() -> None:
    """Give handled signals their default; ignored ones stay ignored but for SIGCHLD, as in ``spawn.c``."""
    for number in signal.valid_signals():
        if number == signal.SIGCHLD or signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL):
            _raw(_RT_SIGACTION, number, ctypes.addressof(_SIGACTION), 0, 8)


def _reset_signals() -> int:
    for number in range(1, 65):
        _raw(_RT_SIGACTION, number, ctypes.addressof(_SIGACTION), 0, 8)
    return _raw(_RT_SIGPROCMASK, 2, ctypes.addressof(_SIGACTION), 0, 8)


def listen(
    pidfd: int,  # noqa: ARG001 - as below
    out: int,  # noqa: ARG001
    err: int,  # noqa: ARG001
    limit: int | None,  # noqa: ARG001
    deadline: float | None,  # noqa: ARG001
) -> tuple[int, bytes, bytes]:
    """Leave it to the caller, who does the same in Python; see :func:`containerkit._native.compiled.listen`."""
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
