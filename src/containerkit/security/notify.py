"""Decide system calls in Python: the supervisor for ``SECCOMP_RET_USER_NOTIF``.

A filter with :meth:`Seccomp.notify <containerkit.security.seccomp.Seccomp.notify>` stops each such call and notifies
the process that holds the listener's descriptor. A handler receives the call as a :class:`SyscallRequest` and returns a
reply::

    def handler(request):
        if request.name == "mkdir" and request.read_text(request.args[0]).startswith("/srv"):
            return CONTINUE
        return Fail(EACCES)

    with Supervisor(descriptor, handler):
        ...

Memory that a pointer refers to can change after the handler read it and before the kernel reads it again. So use
``CONTINUE`` only for calls that are safe anyway. To decide by memory, make the call in the handler, return its result.

Source: seccomp_unotify(2).
"""

from __future__ import annotations

import os
from select import POLLIN, poll
from sys import byteorder
from threading import Thread
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError
from containerkit.plan.calls import call, send_descriptor
from containerkit.security.checks import check_number
from containerkit.security.listener import CONTINUE, Continue, Fail, Inject, Listener, Reply, Return, SyscallRequest
from containerkit.security.seccomp.profile import ALLOW, Condition, Rule

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from containerkit.plan.operation import Operation, Slot
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
    "install_and_send",
    "receive_listener",
    "supervise",
]

_UNUSED: Final = 5
"""The last argument, which ``sendmsg`` does not use."""


class Supervisor:
    """A thread that replies to calls with the results of a handler.

    Leaving the ``with`` block stops it and closes the descriptor; waiting calls then fail with ``ENOSYS``. If the
    handler raises an exception, the call fails with ``EPERM``. The first exception is raised when the block is left.

    Args:
        descriptor: the descriptor of the listener, which the supervisor owns from now on.
        handler: returns the reply to one request. It is called in the thread, once at a time.
        through_socket: whether the descriptor is a socket from which the listener must be received first; see
            :func:`install_and_send`. If the other end is closed without sending one, there is nothing to supervise.

    Attributes:
        error: the first exception of the handler or of receiving.

    Raises:
        SpecError: the number is not a valid descriptor, or the handler is not callable. The caller keeps the
            descriptor.
    """

    def __init__(
        self, descriptor: int, handler: Callable[[SyscallRequest], Reply], *, through_socket: bool = False
    ) -> None:
        check_number(descriptor, "descriptor", 0, 2**31 - 1)
        if not callable(handler):
            raise SpecError(f"handler: {handler!r} is not callable")
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
        """Wait until no process has the filter. Return False if the timeout expires first."""
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
        except Exception as error:  # noqa: BLE001 - a thread can't raise it to anyone; leaving the block raises it
            self.error = self.error or error

    def _receive(self) -> bool:
        """Receive the listener from the socket. Return whether it arrived."""
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
        except Exception as error:  # noqa: BLE001 - the process must not wait forever, and the error is kept
            self.error = self.error or error
            self._listener.reply(request, Fail())


def receive_listener(socket: int) -> int | None:
    """Receive a descriptor over a connected ``AF_UNIX`` socket. Return None if the other end closed it without one.

    Source: recvmsg(2), SCM_RIGHTS in unix(7).
    """
    from socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, fromfd

    with fromfd(socket, AF_UNIX, SOCK_STREAM) as channel:
        _, ancillary, _, _ = channel.recvmsg(1, CMSG_SPACE(4), MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            return int.from_bytes(content[:4], byteorder)
    return None


def install_and_send(
    seccomp: Seccomp, *, socket: Slot, listener: Slot, secret: int | None = None
) -> tuple[Operation, ...]:
    """Return the operations that install a filter and send its listener to a supervisor.

    The calls that send and close the listener are themselves subject to the filter, which may notify or deny them while
    nobody listens yet. So the filter allows those calls if their sixth argument, which the kernel ignores, is a secret.
    Programs executed later can't know it: it has 63 bits, and an unprivileged program can't read its own filter.

    Args:
        seccomp: a filter that notifies.
        socket: the slot of a connected ``AF_UNIX`` socket, whose other end a :class:`Supervisor` holds.
        listener: the slot for the listener's descriptor. Both descriptors are closed.
        secret: for a plan that must be reproducible. Default: random.

    Source: seccomp_unotify(2), sendmsg(2).
    """
    word = int.from_bytes(os.urandom(8), byteorder) >> 1 if secret is None else secret
    passing = Rule(names=("sendmsg", "close"), action=ALLOW, when=(Condition(argument=_UNUSED, value=word),))
    opened = attrs.evolve(seccomp, rules=(passing, *seccomp.rules))
    calls = (send_descriptor(socket, listener), *[call("close", each, target=each.name) for each in (listener, socket)])
    secret_calls = [each._replace(args=(*each.args, *(0,) * (_UNUSED - len(each.args)), word)) for each in calls]
    return (*opened.operations(listener=listener), *secret_calls)


async def supervise(descriptor: int, handler: Callable[[SyscallRequest], Awaitable[Reply]]) -> None:
    """Reply to calls from an event loop until no process has the filter.

    Requests are handled concurrently, each in its own task. Cancelling it closes the descriptor.

    Args:
        descriptor: the descriptor of the listener, which this function owns from now on.
        handler: returns the reply to one request.

    Raises:
        Exception: an exception of a handler. Its call and all that still wait fail with ``EPERM``.
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
