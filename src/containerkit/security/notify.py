"""System calls that are decided in Python: the supervisor behind ``SECCOMP_RET_USER_NOTIF``.

A filter with :meth:`Seccomp.notify <containerkit.security.seccomp.Seccomp.notify>` stops each such call and tells it
to whoever holds the listener's descriptor. A handler gets it as a :class:`SyscallRequest` and answers with what shall
come of it::

    def handler(request):
        if request.name == "mkdir" and request.read_text(request.args[0]).startswith("/srv"):
            return CONTINUE
        return Fail(EACCES)

    with Supervisor(descriptor, handler):
        ...

What a pointer points to can change after it was read and before the kernel reads it again. So ``CONTINUE`` is for
calls that are safe anyway; to forbid by what lies in memory, make the call in the handler and return its result.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import os
from errno import EINPROGRESS, EINVAL, ENOENT, EPERM
from fcntl import ioctl
from select import POLLHUP, POLLIN, poll
from struct import Struct
from sys import byteorder
from threading import Thread
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SetupError, SpecError, StateError
from containerkit.plan import send_descriptor
from containerkit.security.seccomp.profile import ALLOW, Condition, Rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from containerkit.plan import Operation, Slot
    from containerkit.security.seccomp.profile import Seccomp

__all__ = [
    "CONTINUE",
    "Continue",
    "Fail",
    "Inject",
    "Listener",
    "Reply",
    "Return",
    "Supervisor",
    "SyscallRequest",
    "handed_over",
    "receive_listener",
    "supervise",
]

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
_UNUSED: Final = 5
"""The last argument, which ``sendmsg`` has no use for."""


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


class Supervisor:
    """A thread that answers calls with what a handler says.

    Leaving the ``with`` block stops it and closes the descriptor; calls that still wait then fail with ``ENOSYS``. An
    exception in the handler fails the call with ``EPERM``; the first is raised when the block is left.

    Args:
        descriptor: the listener's, owned from now on.
        handler: answers one request; called in the thread, one at a time.
        through_socket: the descriptor is that of a socket, from which the listener's has to be received first; see
            :func:`handed_over`. The other end may be closed without: then there is nothing to supervise.

    Attributes:
        error: the first exception, the handler's or that of receiving.
    """

    def __init__(
        self, descriptor: int, handler: Callable[[SyscallRequest], Reply], *, through_socket: bool = False
    ) -> None:
        self._listener = Listener(-1 if through_socket else descriptor)
        self._socket = descriptor if through_socket else -1
        self._handler = handler
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self.error: BaseException | None = None
        self._thread = Thread(target=self._run, name="containerkit seccomp supervisor", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<Supervisor {'running' if self._thread.is_alive() else 'ended'}, {self._listener!r}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self.close()
        if self.error is not None and error is None:
            raise self.error

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until no process is left that has the filter, and tell whether that is so."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Stop the thread and close the descriptor."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        self._listener.close()
        if self._socket >= 0:
            os.close(self._socket)
        os.close(self._stop)
        self._stop = -1

    def _run(self) -> None:
        try:
            if self._socket < 0 or self._receive():
                self._serve()
        except Exception as error:  # noqa: BLE001 - the thread has nobody to raise it to; leaving the block raises it
            self.error = self.error or error

    def _receive(self) -> bool:
        """Take the listener from the socket, and tell whether it came."""
        waiter = poll()
        waiter.register(self._socket, POLLIN)
        waiter.register(self._stop, POLLIN)
        if self._stop in dict(waiter.poll()):
            return False
        descriptor = receive_listener(self._socket)
        if descriptor is None:
            return False
        self._listener = Listener(descriptor)
        return True

    def _serve(self) -> None:
        waiter = poll()
        waiter.register(self._listener.fileno(), POLLIN)
        waiter.register(self._stop, POLLIN)
        while True:
            events = dict(waiter.poll())
            if self._stop in events:
                return
            if events[self._listener.fileno()] & POLLIN:
                self._answer()
            else:
                return

    def _answer(self) -> None:
        request = self._listener.receive()
        if request is None:
            return
        try:
            self._listener.reply(request, self._handler(request))
        except Exception as error:  # noqa: BLE001 - the process must not wait for ever, and the error is not lost
            self.error = self.error or error
            self._listener.reply(request, Fail())


def receive_listener(socket: int) -> int | None:
    """Receive a descriptor through a connected ``AF_UNIX`` socket; None when the other end was closed without.

    Source: recvmsg(2), SCM_RIGHTS in unix(7).
    """
    from socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, fromfd

    with fromfd(socket, AF_UNIX, SOCK_STREAM) as channel:
        _, ancillary, _, _ = channel.recvmsg(1, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            return int.from_bytes(content[:4], byteorder)
    return None


def handed_over(seccomp: Seccomp, *, socket: Slot, listener: Slot, secret: int | None = None) -> tuple[Operation, ...]:
    """Return the operations that install a filter and send its listener to a supervisor.

    The call that sends it is itself subject to the filter, which may notify or deny it; and nobody listens yet. So one
    ``sendmsg`` is let through: the one that has a secret in its sixth argument, which the kernel ignores. What is
    executed later can't know the secret: it is 63 bits, and a program can't read its own filter without privilege.

    Args:
        seccomp: a filter that notifies.
        socket: the slot of a connected ``AF_UNIX`` socket, whose other end a :class:`Supervisor` holds.
        listener: the slot that takes the listener's descriptor; it closes with the ``execve``.
        secret: for a plan that is the same each time it is made; random by default.

    Source: seccomp_unotify(2), sendmsg(2).
    """
    word = int.from_bytes(os.urandom(8), byteorder) >> 1 if secret is None else secret
    passing = Rule(names=("sendmsg",), action=ALLOW, when=(Condition(argument=_UNUSED, value=word),))
    opened = attrs.evolve(seccomp, rules=(passing, *seccomp.rules))
    send = send_descriptor(socket, listener)
    padding = (0,) * (_UNUSED - len(send.args))
    return (*opened.operations(listener=listener), send._replace(args=(*send.args, *padding, word)))


async def supervise(descriptor: int, handler: Callable[[SyscallRequest], Awaitable[Reply]]) -> None:
    """Answer calls from an event loop, until no process is left that has the filter.

    Requests are handled side by side, each in a task of its own. Cancelling it closes the descriptor.

    Args:
        descriptor: the listener's, owned from now on.
        handler: answers one request.

    Raises:
        Exception: what a handler raised; its call failed with ``EPERM``, and so do those that still wait.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    with Listener(descriptor) as listener:

        async def answer(request: SyscallRequest) -> None:
            try:
                listener.reply(request, await handler(request))
            except BaseException as error:
                listener.reply(request, Fail())
                if isinstance(error, Exception) and not ended.done():
                    ended.set_exception(error)
                    return
                raise

        def readable() -> None:
            pending = listener.pending()
            if pending is None:
                loop.remove_reader(descriptor)
                if not ended.done():
                    ended.set_result(None)
            elif pending and (request := listener.receive()) is not None:
                task = loop.create_task(answer(request))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        tasks: set[asyncio.Task[None]] = set()
        loop.add_reader(descriptor, readable)
        try:
            await ended
        finally:
            loop.remove_reader(descriptor)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _names(token: int, number: int) -> tuple[str, str]:
    """Return the architecture's and the call's name."""
    from containerkit.security.seccomp import architecture as known

    is_x32 = token == known.ARCHITECTURES["x32"].token and number & known.X32_BIT
    for name, each in known.ARCHITECTURES.items():
        if each.token == token and bool(is_x32) == (name == "x32"):
            return name, known.native_names(name).get(number, f"syscall_{number}")
    return f"{token:#x}", f"syscall_{number}"
