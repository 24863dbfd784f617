"""The listener behind ``SECCOMP_RET_USER_NOTIF``: the requests that come from it, and the replies that go to it.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import os
from errno import EINPROGRESS, EINVAL, ENOENT, EPERM
from fcntl import ioctl
from select import POLLHUP, POLLIN, poll
from struct import Struct
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SetupError, SpecError, StateError

if TYPE_CHECKING:
    from typing import Self

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


@attrs.frozen
class Continue:
    """The kernel makes the call as it was asked for."""


@attrs.frozen
class Fail:
    """The call fails.

    Attributes:
        errno: 1 to 4095.
    """

    errno: int = EPERM

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.errno <= _LARGEST_ERRNO:
            raise SpecError(f"an error number is 1 to {_LARGEST_ERRNO}, not {self.errno}")


@attrs.frozen
class Return:
    """The call succeeds without being made.

    Attributes:
        value: what it returns, a signed number of 64 bits.
    """

    value: int = 0

    def __attrs_post_init__(self) -> None:
        if not -(2**63) <= self.value < 2**63:
            raise SpecError(f"a system call returns a signed number of 64 bits, not {self.value}")


@attrs.frozen(kw_only=True)
class Inject:
    """The call returns a copy of one of our descriptors, put into the process that made it.

    Attributes:
        descriptor: ours; it stays open.
        number: which number it gets there, the lowest free one by default. One that is in use is replaced.
        close_on_exec: whether the copy is closed by ``execve``.
    """

    descriptor: int
    number: int | None = None
    close_on_exec: bool = True


Reply = Continue | Fail | Return | Inject
CONTINUE: Final = Continue()


@attrs.frozen(kw_only=True)
class SyscallRequest:
    """A call that waits for its answer.

    Attributes:
        name: the system call, such as ``mount``; ``syscall_N`` for a number without a known name.
        args: its six arguments, unsigned.
        pid: the thread that makes it, as this process sees it; 0 when it is out of sight.
        architecture: through which entry it came: ``x86_64``, ``x86``, ``x32``, ``aarch64``, ...
        number: the number in its register.
        instruction_pointer: where it was made.
        id: the kernel's name for this request.
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
        """Tell whether the call still waits. Its process may have died, and ``pid`` be another's by now."""
        return self._listener.is_valid(self)

    def read(self, address: int, length: int) -> bytes:
        """Read memory of the process that waits.

        Raises:
            StateError: it doesn't wait any more.
            SetupError: it can't be read: no such memory, or no right to (``ptrace`` access is needed).

        Source: proc_pid_mem(5).
        """
        try:
            memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._must_wait()
            raise self._unreadable(error) from error
        try:
            self._must_wait()  # only now is it sure that the file is not that of a later process of the same pid
            return os.pread(memory, length, address)
        except OSError as error:
            raise self._unreadable(error) from error
        finally:
            os.close(memory)

    def read_text(self, address: int, limit: int = 4096) -> str:
        """Read a NUL-terminated string, such as a path, of at most ``limit`` bytes.

        Raises:
            StateError: the process doesn't wait any more.
            SetupError: the memory can't be read, or holds no end of the string within the limit.
        """
        found = b""
        while len(found) < limit:
            page_rest = 4096 - (address + len(found)) % 4096  # the next page may not be there
            found += self.read(address + len(found), min(page_rest, limit - len(found)))
            text, end, _ = found.partition(b"\0")
            if end:
                return os.fsdecode(text)
        raise SetupError("read", EINVAL, f"a string of process {self.pid}", f"it is longer than {limit} bytes")

    def add_descriptor(self, descriptor: int, *, number: int | None = None, close_on_exec: bool = True) -> int:
        """Put a copy of one of our descriptors into the process, and return its number there.

        Raises:
            StateError: the process doesn't wait any more.
            SetupError: the kernel refused, such as for the process's own limit of open files.
        """
        wish = Inject(descriptor=descriptor, number=number, close_on_exec=close_on_exec)
        return self._listener.add_descriptor(self, wish)

    def _must_wait(self) -> None:
        if not self.is_valid():
            raise StateError(f"{self.name} of process {self.pid} doesn't wait for an answer any more")

    def _unreadable(self, error: OSError) -> SetupError:
        hint = "reading another process's memory takes ptrace access to it"
        return SetupError("read", error.errno or EPERM, f"memory of process {self.pid}", hint)


class Listener:
    """The owner of a listener's descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __repr__(self) -> str:
        return f"<seccomp listener, {'closed' if self._descriptor < 0 else f'fd {self._descriptor}'}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the descriptor.

        Raises:
            StateError: the listener is closed.
        """
        if self._descriptor < 0:
            raise StateError("the seccomp listener is closed")
        return self._descriptor

    def close(self) -> None:
        """Close it. Calls that wait, and all later ones, fail with ``ENOSYS``."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def pending(self, timeout_ms: int | None = 0) -> bool | None:
        """Wait for a call.

        Returns:
            Whether one waits, or None once no process is left that has the filter.
        """
        waiter = poll()
        waiter.register(self.fileno(), POLLIN)
        events = dict(waiter.poll(timeout_ms)).get(self.fileno(), 0)
        if events & POLLIN:
            return True
        return None if events & POLLHUP else False

    def receive(self) -> SyscallRequest | None:
        """Take the next call; wait for one. None when it is gone again, because its process was killed.

        Raises:
            SetupError: the descriptor is no listener's.
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
        """Tell whether a call still waits for its answer."""
        try:
            ioctl(self.fileno(), _IS_VALID, _ID.pack(request.id))
        except OSError as error:
            if error.errno == ENOENT:
                return False
            raise SetupError("ioctl", error.errno or EPERM, "SECCOMP_IOCTL_NOTIF_ID_VALID") from error
        return True

    def reply(self, request: SyscallRequest, reply: Reply) -> bool:
        """Answer a call.

        Returns:
            Whether the answer arrived; False when the call doesn't wait any more.

        Raises:
            SpecError: it is no answer.
            SetupError: the kernel refused it.
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
            raise SpecError(f"a handler answers with CONTINUE, Fail, Return or Inject, not {reply!r}")
        try:
            ioctl(self.fileno(), _SEND, response)
        except OSError as error:
            if error.errno in {ENOENT, EINPROGRESS}:
                return False
            raise SetupError("ioctl", error.errno or EPERM, f"answer to {request.name}") from error
        return True

    def add_descriptor(self, request: SyscallRequest, wish: Inject) -> int:
        """Put a descriptor into a process that waits, and return its number there.

        Raises:
            StateError: it doesn't wait any more.
            SetupError: the kernel refused.
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
            # Before Linux 5.14 adding and answering are two steps.
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
                raise StateError(f"{request.name} of process {request.pid} doesn't wait any more") from error
            raise SetupError(
                "ioctl", error.errno or EPERM, f"fd {wish.descriptor} into process {request.pid}"
            ) from error
        return number


def _names(token: int, number: int) -> tuple[str, str]:
    """Return the architecture's and the call's name."""
    from containerkit.security.seccomp import architecture as known

    is_x32 = token == known.ARCHITECTURES["x32"].token and number & known.X32_BIT
    for name, each in known.ARCHITECTURES.items():
        if each.token == token and bool(is_x32) == (name == "x32"):
            return name, known.native_names(name).get(number, f"syscall_{number}")
    return f"{token:#x}", f"syscall_{number}"
