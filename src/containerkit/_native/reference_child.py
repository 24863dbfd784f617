"""The child's side of the reference interpreter: it walks the tape in forked processes, as ``child.c`` does.

The memory that the processes of a start share is here too. The parent's side is :mod:`containerkit._native.reference`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from errno import EAGAIN, EBADMSG, EEXIST, EINVAL, EIO, ESRCH, ETIMEDOUT
from typing import TYPE_CHECKING, Final, NoReturn

from containerkit._native import constants as k
from containerkit._native.outcome import HIDE_MEMORY, SLOTS
from containerkit._native.reference_tape import (
    BESIDE_GATE,
    ENTRY_FILE,
    ENTRY_SIZE,
    ENTRY_SYMLINK,
    GATES,
    LAYOUT,
    NO_SLOT,
    Step,
    entries_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ABORTED", "WAITING", "Walk", "raw"]

_FUTEX_WAIT, _FUTEX_WAKE, _EVERYBODY = 0, 1, 2**31 - 1
WAITING, _RELEASED, ABORTED = 0, 1, 2
_F_SETFD: Final = 2
_MSG_PEEK, _NLMSG_ERROR, _NETLINK_HEADER = 2, 2, 16

# PyDLL keeps the GIL: the child of a raw clone holds it.
_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def raw(number: int, *arguments: int) -> int:
    """Return the value of a system call, or a negative error number."""
    result: int = _libc.syscall(ctypes.c_long(number), *[ctypes.c_long(value) for value in arguments])
    return -ctypes.get_errno() if result == -1 else result


def _call(number: int, arguments: list[int]) -> int:
    """Make a call. ``openat2`` is repeated while renames disturb it, as in ``child.c``."""
    for _ in range(_TRIES):
        result = raw(number, *arguments)
        if result != -EAGAIN or number != k.SYSTEM_CALLS["openat2"]:
            break
    return result


_TRIES: Final = 1000
"""CK_TRIES in native.h."""

_PATIENCE: Final = ctypes.create_string_buffer(struct.pack("=qq", 0, 50_000_000))  # CK_WATCHER_NS in native.h
_SIGACTION: Final = ctypes.create_string_buffer(32)
_WRITING: Final = 1  # CK_ENTRY_WRITING in native.h
_RT_SIGACTION, _RT_SIGPROCMASK = (134, 135) if k.MACHINE == "aarch64" else (13, 14)


_WORDS: Final = 8 + 4 * GATES + 4
"""The size of the pid, the word of the watcher and the gates, and what aligns the data to 8 bytes."""


class Walk:
    """One start: the shared memory of its processes, and the child's walk through the steps.

    The slots, the gates, the pid of the future command, whether it is watched, and the data are shared.
    """

    def __init__(
        self,
        steps: list[Step],
        data: bytes,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Sequence[int],
        proc_fd: int,
    ) -> None:
        self.steps = steps
        self.words = list(argv), list(envp)
        self.data_size = len(data)
        self.proc_fd = proc_fd
        self.error_fd = -1
        self.hidden = False
        self.handed_in = len(slots)
        self.memory = mmap.mmap(-1, SLOTS * 8 + _WORDS + len(data) + 8)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.slots = (ctypes.c_int64 * SLOTS).from_buffer(self.memory)
        self.slots[:] = [*slots, *[-1] * (SLOTS - len(slots))]
        self.main_pid = ctypes.c_int32.from_buffer(self.memory, SLOTS * 8)
        self.watched = ctypes.c_uint32.from_buffer(self.memory, SLOTS * 8 + 4)
        self.gates = [ctypes.c_uint32.from_buffer(self.memory, SLOTS * 8 + 8 + 4 * gate) for gate in range(GATES)]
        self.data_at = SLOTS * 8 + _WORDS
        self.memory[self.data_at : self.data_at + len(data)] = data
        self.vectors = [(ctypes.c_char_p * (len(words) + 1))(*words, None) for words in (argv, envp)]

    @staticmethod
    def set(word: ctypes.c_uint32, state: int) -> None:
        """Set a futex word and wake the processes that sleep on it."""
        word.value = state
        raw(k.SYSTEM_CALLS["futex"], ctypes.addressof(word), _FUTEX_WAKE, _EVERYBODY, 0, 0, 0)

    def _await_watcher(self) -> None:
        """Wait with the exec until the parent has a pidfd; see ``native.h``."""
        address = ctypes.addressof(self.watched)
        while self.main_pid.value and not self.watched.value:
            patience = ctypes.addressof(_PATIENCE)
            if raw(k.SYSTEM_CALLS["futex"], address, _FUTEX_WAIT, 0, patience, 0, 0) == -ETIMEDOUT:
                return

    def begin(self, flags: int) -> NoReturn:
        """Run as stage 1."""
        self.hidden = bool(flags & HIDE_MEMORY)
        if self.hidden:
            raw(k.SYSTEM_CALLS["prctl"], k.PR_SET_DUMPABLE, 0, 0, 0, 0)
        _clear_handlers()
        self.walk(0)

    def walk(self, index: int) -> NoReturn:
        """Walk the tape from a step on; never returns."""
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
                if step.result != NO_SLOT:
                    self.slots[step.result] = result
                index += 1
            os._exit(0)
        finally:
            os._exit(126)

    def _resolve(self, step: Step, which: int) -> int:
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

    def _own_pid(self, offset: int) -> int:
        """Write the pid into the first variable; the vector of a forked child is its own."""
        variables = self.vectors[1]
        first, digits = variables[0] or b"", b"%d" % os.getpid()
        if len(first) < offset + len(digits):
            return -EINVAL
        variables[0] = first[:offset] + digits
        return 0

    def _populate(self, step: Step, directory: int, address: int, size: int) -> int:
        """Make the entries, as ``populate.c`` does.

        The functions of ``os`` would release the GIL. If another thread had requested it before the fork, the child
        would then wait forever for that thread, which it does not have.
        """
        for at, entry in entries_of(ctypes.string_at(address, size)):
            self.slots[step.argument[3]] = at
            if entry is None:
                return -EINVAL
            path = address + at + ENTRY_SIZE
            content = path + len(entry.path) + 1
            if entry.kind == ENTRY_FILE:
                flags = k.O_WRONLY | k.O_CREAT | k.O_EXCL | k.O_CLOEXEC
                result = raw(k.SYSTEM_CALLS["openat"], directory, path, flags, entry.mode)
                if result >= 0:
                    self.slots[step.argument[3]] = at + _WRITING
                    result = _write_and_close(result, content, len(entry.content))
            elif entry.kind == ENTRY_SYMLINK:
                result = raw(k.SYSTEM_CALLS["symlinkat"], content, directory, path)
            else:
                result = raw(k.SYSTEM_CALLS["mkdirat"], directory, path, entry.mode)
            if result < 0 and (result != -EEXIST or entry.kind == ENTRY_FILE):
                return result
        return 0

    def _perform(self, step: Step) -> int:  # noqa: C901, PLR0911, PLR0912 - one branch for each kind of step
        value = [self._resolve(step, which) for which in range(6)]
        match step.kind:
            case k.STEP_CALL:
                return _call(step.call, value)
            case k.STEP_CLONE:
                return self._clone(value[0], value[1], value[5])
            case k.STEP_AWAIT:
                # Nothing is walked beside a start of this interpreter.
                return 0 if value[0] == BESIDE_GATE else self._await(self.gates[value[0]])
            case k.STEP_RELEASE:
                self.set(self.gates[value[0]], _RELEASED)
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
                return raw(k.SYSTEM_CALLS["close"], value[0])
            case k.STEP_ENTER:
                # A forked child already has its own address space. An exec would have made it dumpable again. If other
                # processes must not see the interpreter's memory, it stays as it is.
                if self.hidden:
                    return 0
                return raw(k.SYSTEM_CALLS["prctl"], k.PR_SET_DUMPABLE, 1, 0, 0, 0)
            case k.STEP_LIVES:
                return _has_ended(value[0])
            case k.STEP_NETLINK:
                return _converse(step, value[0], value[1], value[2])
            case k.STEP_POPULATE:
                return self._populate(step, value[0], value[1], value[2])
            case k.STEP_OWN_PID:
                return self._own_pid(value[1])
            case k.STEP_STRIP | k.STEP_INIT:
                self._await_watcher()
                if step.kind == k.STEP_INIT:
                    return self._execute(value[0], b"init", self._text(value[1]))
                return self._strip(step, value)
            case _:
                os._exit(0)

    def _clone(self, flags: int, group: int, index: int) -> int:
        exit_signal = 0 if flags & k.CLONE_PARENT else signal.SIGCHLD
        # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        # its size, cgroup
        arguments = ctypes.create_string_buffer(
            struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, group if flags & k.CLONE_INTO_CGROUP else 0)
        )
        pid = raw(k.SYSTEM_CALLS["clone3"], ctypes.addressof(arguments), 88)
        if pid == 0:
            self.walk(index)
        if pid > 0 and flags & k.CLONE_PARENT:
            self.main_pid.value = pid
        return pid

    @staticmethod
    def _await(gate: ctypes.c_uint32) -> int:
        while gate.value == WAITING:
            raw(k.SYSTEM_CALLS["futex"], ctypes.addressof(gate), _FUTEX_WAIT, WAITING, 0, 0, 0)
        if gate.value == ABORTED:
            os._exit(127)
        return 0

    def _open_proc(self, pid: int, name: bytes, flags: int) -> int:
        path = ctypes.create_string_buffer(b"%d/%s" % (pid, name))
        return raw(k.SYSTEM_CALLS["openat"], self.proc_fd, ctypes.addressof(path), flags | k.O_CLOEXEC, 0)

    def _helper(self, address: int, count: int, pid: int) -> int:
        words: list[bytes] = []
        for _ in range(count):
            word = self._text(address)
            address += len(word) + 1
            words.append(b"%d" % pid if word == b"PID" else word)
        child = raw(k.SYSTEM_CALLS["clone"], 0, 0, 0, 0, 0)
        if child == 0:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                os.execve(words[0], words, {})
            finally:
                os._exit(127)
        if child < 0:
            return child
        return 0 if os.waitpid(child, k.WALL)[1] == 0 else -125

    def _strip(self, step: Step, value: list[int]) -> int:
        """Enter the init, which strips and walks the rest, so that nothing of the interpreter is left at the exec."""
        address, count, _, image = value[:4]
        kept = struct.unpack(f"={count}i", ctypes.string_at(address, 4 * count)) if count else ()
        tape = os.memfd_create("tape", 0)
        with os.fdopen(os.dup(tape), "wb") as file:
            file.write(self._image())
        for fd in (*kept, self.error_fd):
            raw(k.SYSTEM_CALLS["fcntl"], fd, _F_SETFD, 0)
        numbers = (tape, self.error_fd, self.steps.index(step))
        return self._execute(image, b"init", b"walk", *[b"%d" % number for number in numbers])

    def _image(self) -> bytes:
        """Return the rest of the start in its present state: struct ck_image and what follows it."""
        argv, envp = self.words
        numbers = 0, len(self.steps), self.data_size, len(argv), len(envp), SLOTS, -1, 0
        steps = [
            LAYOUT.pack(*each[:3], *each.argument_kind, each.skip, each.leap, *each.tolerate, *each.argument)
            for each in self.steps
        ]
        data = self.memory[self.data_at : self.data_at + self.data_size]
        strings = [word + b"\0" for word in (*argv, *envp)]
        return b"".join((struct.pack("=6IiI", *numbers), bytes(self.slots), *steps, data, *strings))

    @staticmethod
    def _execute(image: int, *words: bytes) -> int:
        argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
        envp = (ctypes.c_char_p * 1)(None)
        empty = ctypes.create_string_buffer(b"")
        return raw(
            k.SYSTEM_CALLS["execveat"],
            image,
            ctypes.addressof(empty),
            ctypes.addressof(argv),
            ctypes.addressof(envp),
            k.AT_EMPTY_PATH,
        )


def _write_and_close(fd: int, address: int, left: int) -> int:
    result = 0
    while left > 0 and result >= 0:
        result = raw(k.SYSTEM_CALLS["write"], fd, address, left)
        if result == 0:
            result = -EIO
        address, left = address + result, left - result
    raw(k.SYSTEM_CALLS["close"], fd)
    return min(result, 0)


def _converse(step: Step, socket: int, message: int, size: int) -> int:
    """Send a netlink message and return what its ack says; ``step_netlink`` in ``child.c``."""
    answer = ctypes.create_string_buffer(36)  # struct nlmsghdr, struct nlmsgerr
    receive = k.SYSTEM_CALLS["recvfrom"], socket, ctypes.addressof(answer), len(answer)
    result = raw(k.SYSTEM_CALLS["sendto"], socket, message, size, 0, 0, 0)
    while result >= 0:
        result = raw(*receive, _MSG_PEEK, 0, 0)
        if result < _NETLINK_HEADER:
            return result if result < 0 else -EBADMSG
        _, kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
        is_ack = kind == _NLMSG_ERROR
        if is_ack and error and -error not in step.tolerate:
            return int(error)
        result = raw(*receive, 0, 0, 0)
        if is_ack:
            return int(error)
    return result


def _has_ended(pidfd: int) -> int:
    """Return -ESRCH if a process has ended, otherwise 0."""
    import select

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return -ESRCH if poll.poll(0) else 0


def _clear_handlers() -> None:
    """Reset handled signals to their default. Ignored signals stay ignored, except SIGCHLD, as in ``spawn.c``."""
    for number in signal.valid_signals():
        if number == signal.SIGCHLD or signal.getsignal(number) not in (signal.SIG_IGN, signal.SIG_DFL):
            raw(_RT_SIGACTION, number, ctypes.addressof(_SIGACTION), 0, 8)


def _reset_signals() -> int:
    for number in range(1, 65):
        raw(_RT_SIGACTION, number, ctypes.addressof(_SIGACTION), 0, 8)
    return raw(_RT_SIGPROCMASK, 2, ctypes.addressof(_SIGACTION), 0, 8)
