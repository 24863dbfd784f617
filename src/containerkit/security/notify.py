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
from select import POLLIN, poll
from sys import byteorder
from threading import Thread
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.plan import send_descriptor
from containerkit.security.listener import CONTINUE, Continue, Fail, Inject, Listener, Reply, Return, SyscallRequest
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

_UNUSED: Final = 5
"""The last argument, which ``sendmsg`` has no use for."""


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
