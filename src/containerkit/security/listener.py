"""The listener of ``SECCOMP_RET_USER_NOTIF``: it receives requests and sends replies.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import os
from errno import EINPROGRESS, EINVAL, ENOENT, EPERM
from fcntl import ioctl
from select import POLLHUP, POLLIN, poll
from struct import Struct
from typing import Final

import attrs

from containerkit.descriptors import Closing
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.security.checks import check_bool, check_number

__all__ = ["CONTINUE", "Continue", "Fail", "Inject", "Listener", "Reply", "Return", "SyscallRequest"]

_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_IS_VALID: Final = 0x40082102
_ADD_DESCRIPTOR: Final = 0x40182103
_REQUEST: Final = Struct("=QIIiIQ6Q")  # struct seccomp_notif
_RESPONSE: Final = Struct("=QqiI")  # struct seccomp_notif_resp
_ADDITION: Final = Struct("=QIIII")  # struct seccomp_notif_addfd
_ID: Final = Struct("=Q")
_RESPONSE_CONTINUES: Final = 1
_SET_NUMBER: Final = 1
_AND_SEND: Final = 2
_LARGEST_ERRNO: Final = 4095
_LARGEST_DESCRIPTOR: Final = 2**31 - 1


@attrs.frozen
class Continue:
    """The kernel executes the call as requested."""


@attrs.frozen
class Fail:
    """The call fails.

    Attributes:
        errno: 1 to 4095.
    """

    errno: int = EPERM

    def __attrs_post_init__(self) -> None:
        check_number(self.errno, "error number", 1, _LARGEST_ERRNO)


@attrs.frozen
class Return:
    """The call succeeds without being executed.

    Attributes:
        value: the value that it returns, a signed number of 64 bits.
    """

    value: int = 0

    def __attrs_post_init__(self) -> None:
        check_number(self.value, "value of Return", -(2**63), 2**63 - 1)


@attrs.frozen(kw_only=True)
class Inject:
    """The call returns a copy of a descriptor of this process, which is added to the process that made the call.

    Attributes:
        descriptor: the descriptor of this process, which stays open.
        number: its number in the calling process. Default: the lowest free one. A number in use is replaced.
        close_on_exec: whether ``execve`` closes the copy.

    Raises:
        SpecError: a number is not a valid descriptor.
    """

    descriptor: int
    number: int | None = None
    close_on_exec: bool = True

    def __attrs_post_init__(self) -> None:
        check_number(self.descriptor, "descriptor", 0, _LARGEST_DESCRIPTOR)
        if self.number is not None:
            check_number(self.number, "number of a descriptor", 0, _LARGEST_DESCRIPTOR)
        check_bool(self.close_on_exec, "close_on_exec")


Reply = Continue | Fail | Return | Inject
CONTINUE: Final = Continue()


@attrs.frozen(kw_only=True)
class SyscallRequest:
    """A call that waits for its reply.

    Attributes:
        name: the system call, such as ``mount``, or ``syscall_N`` for an unknown number.
        args: its six arguments, unsigned.
        pid: the thread that makes it, as this process sees it; 0 if it is not visible here.
        architecture: the architecture of the call: ``x86_64``, ``x86``, ``x32``, ``aarch64``, ...
        number: the number of the call.
        instruction_pointer: the address from which it was made.
        id: the kernel's identifier of this request.
    """

    name: str
    args: tuple[int, ...]
    pid: int
    architecture: str
    number: int
    instruction_pointer: int
    id: int
    _listener: Listener = attrs.field(repr=False, eq=False, alias="listener")

    def is_valid(self) -> bool:
        """Return whether the call still waits. Its process may have died, and ``pid`` may belong to another process."""
        return self._listener.is_valid(self)

    def read(self, address: int, length: int) -> bytes:
        """Read memory of the waiting process.

        Raises:
            StateError: it no longer waits.
            SetupError: the memory does not exist, or may not be read (this needs ``ptrace`` access).

        Source: proc_pid_mem(5).
        """
        try:
            memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._must_wait()
            raise self._unreadable(error) from error
        try:
            self._must_wait()  # only now it is certain that the file is not that of a later process with the same pid
            return os.pread(memory, length, address)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(memory)

    def read_text(self, address: int, limit: int = 4096) -> str:
        """Read a NUL-terminated string, such as a path, of at most ``limit`` bytes.

        Raises:
            StateError: the process no longer waits.
            SetupError: the memory can't be read, or the string does not end within the limit.
        """
        found = b""
        while len(found) < limit:
            page_rest = 4096 - (address + len(found)) % 4096  # the next page may not be mapped
            found += self.read(address + len(found), min(page_rest, limit - len(found)))
            text, end, _ = found.partition(b"\0")
            if end:
                return os.fsdecode(text)
        raise SetupError("read", EINVAL, f"a string of process {self.pid}", f"it is longer than {limit} bytes")

    def add_descriptor(self, descriptor: int, *, number: int | None = None, close_on_exec: bool = True) -> int:
        """Add a copy of a descriptor of this process to the process that waits. Return its number there.

        Raises:
            StateError: the process no longer waits.
            SetupError: the kernel refuses, for example because of the process's limit of open files.
        """
        wish = Inject(descriptor=descriptor, number=number, close_on_exec=close_on_exec)
        return self._listener.add_descriptor(self, wish)

    def _must_wait(self) -> None:
        if not self.is_valid():
            raise StateError(f"{self.name} of process {self.pid} no longer waits for a reply")

    def _unreadable(self, error: OSError) -> SetupError:
        hint = "reading another process's memory needs ptrace access to it"
        return SetupError("read", error.errno or EPERM, f"memory of process {self.pid}", hint)


class Listener(Closing):
    """The owner of a listener's descriptor.

    Args:
        descriptor: the descriptor, or -1 for a closed listener.

    Raises:
        SpecError: the number is not a valid descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        check_number(descriptor, "descriptor", -1, _LARGEST_DESCRIPTOR)
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<seccomp listener, {'closed' if self._descriptor < 0 else f'fd {self._descriptor}'}>"

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            StateError: the listener is closed.
        """
        if self._descriptor < 0:
            raise StateError("the seccomp listener is closed")
        return self._descriptor

    def close(self) -> None:
        """Close the descriptor. Waiting calls and all later ones fail with ``ENOSYS``."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def pending(self, timeout_ms: int | None = 0) -> bool | None:
        """Wait for a call.

        Returns:
            True if a call waits, False if the timeout expires, None once no process has the filter.
        """
        waiter = poll()
        waiter.register(self.fileno(), POLLIN)
        events = dict(waiter.poll(timeout_ms)).get(self.fileno(), 0)
        if events & POLLIN:
            return True
        return None if events & POLLHUP else False

    def receive(self) -> SyscallRequest | None:
        """Wait for the next call and return it, or None if its process was killed in the meantime.

        Raises:
            SetupError: the descriptor is not a seccomp listener.
        """
        notification = bytearray(_REQUEST.size)
        try:
            ioctl(self.fileno(), _RECEIVE, notification)
        except OSError as error:
            if error.errno == ENOENT:
                return None
            raise SetupError("ioctl", error.errno or EPERM, "SECCOMP_IOCTL_NOTIF_RECV") from error
        ident, pid, _flags, number, token, pointer, *args = _REQUEST.unpack(notification)
        architecture, name = _names(token, number)
        return SyscallRequest(
            name=name,
            args=tuple(args),
            pid=pid,
            architecture=architecture,
            number=number,
            instruction_pointer=pointer,
            id=ident,
            listener=self,
        )

    def is_valid(self, request: SyscallRequest) -> bool:
        """Return whether a call still waits for its reply."""
        try:
            ioctl(self.fileno(), _IS_VALID, _ID.pack(request.id))
        except OSError as error:
            if error.errno == ENOENT:
                return False
            raise SetupError("ioctl", error.errno or EPERM, "SECCOMP_IOCTL_NOTIF_ID_VALID") from error
        return True

    def reply(self, request: SyscallRequest, reply: Reply) -> bool:
        """Reply to a call.

        Returns:
            Whether the reply was delivered. False if the call no longer waits.

        Raises:
            SpecError: the value is not a reply.
            SetupError: the kernel refuses it.
        """
        if isinstance(reply, Inject):
            return self._inject(request, reply)
        if isinstance(reply, Continue):
            response = _RESPONSE.pack(request.id, 0, 0, _RESPONSE_CONTINUES)
        elif isinstance(reply, Fail):
            response = _RESPONSE.pack(request.id, 0, -reply.errno, 0)
        elif isinstance(reply, Return):
            response = _RESPONSE.pack(request.id, reply.value, 0, 0)
        else:
            raise SpecError(f"a handler must return CONTINUE, Fail, Return or Inject, not {reply!r}")
        try:
            ioctl(self.fileno(), _SEND, response)
        except OSError as error:
            if error.errno in {ENOENT, EINPROGRESS}:
                return False
            raise SetupError("ioctl", error.errno or EPERM, f"answer to {request.name}") from error
        return True

    def add_descriptor(self, request: SyscallRequest, wish: Inject) -> int:
        """Add a descriptor to a waiting process. Return its number there.

        Raises:
            StateError: the process no longer waits.
            SetupError: the kernel refuses.
        """
        return self._add(request, wish, 0)

    def _inject(self, request: SyscallRequest, wish: Inject) -> bool:
        try:
            self._add(request, wish, _AND_SEND)
        except StateError:
            return False
        except SetupError as error:
            if error.errno != EINVAL:
                raise
            # Before Linux 5.14 adding the descriptor and replying are two steps.
            return self.reply(request, Return(self.add_descriptor(request, wish)))
        return True

    def _add(self, request: SyscallRequest, wish: Inject, flags: int) -> int:
        flags |= 0 if wish.number is None else _SET_NUMBER
        closes = os.O_CLOEXEC if wish.close_on_exec else 0
        addition = bytearray(_ADDITION.pack(request.id, flags, wish.descriptor, wish.number or 0, closes))
        try:
            number: int = ioctl(self.fileno(), _ADD_DESCRIPTOR, addition)
        except OSError as error:
            if error.errno in {ENOENT, EINPROGRESS}:
                raise StateError(f"{request.name} of process {request.pid} no longer waits") from error
            raise SetupError(
                "ioctl", error.errno or EPERM, f"fd {wish.descriptor} into process {request.pid}"
            ) from error
        return number


def _names(token: int, number: int) -> tuple[str, str]:
    """Return the names of the architecture and of the call."""
    from containerkit.security.seccomp import architecture as known

    is_x32 = token == known.ARCHITECTURES["x32"].token and number & known.X32_BIT
    for name, each in known.ARCHITECTURES.items():
        if each.token == token and bool(is_x32) == (name == "x32"):
            return name, known.native_names(name).get(number, f"syscall_{number}")
    return f"{token:#x}", f"syscall_{number}"
