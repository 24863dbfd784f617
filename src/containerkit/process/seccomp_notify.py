"""A supervisor for the system calls of one command. It gets the listener from the child, and answers the calls."""

from __future__ import annotations

from containerkit.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from containerkit.security.confinement import Confinement

__all__ = ["Supervision"]


class Supervision:
    """Answers the calls that the filter of one command reports. :meth:`close` ends it, and may be called twice.

    Attributes:
        error: the first exception of the handler; its call failed with EPERM.

    Args:
        handler: gets each :class:`containerkit.security.notify.SyscallRequest` and returns the reply. A coroutine
            function is run in an event loop of the supervisor's own thread, where several calls can run concurrently.
    """

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        import socket
        import threading

        self._handler = handler
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="containerkit supervision", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, confinement: Confinement, handler: Callable[[Any], Any] | None) -> Supervision | None:
        """Return the supervisor that a filter needs, or None if it needs none.

        Raises:
            SpecError: the filter notifies but there is no handler, or the reverse.
        """
        if confinement.notifies and handler is None:
            raise SpecError("seccomp: the filter notifies a supervisor: pass syscall_handler=")
        if handler is None:
            return None
        if not confinement.notifies:
            raise SpecError(
                "syscall_handler: the seccomp filter reports no call to it: pass Seccomp.default().notify(...)"
            )
        if not callable(handler):
            raise SpecError(f"syscall_handler: {handler!r} can't be called")
        return cls(handler)

    def inputs(self) -> dict[str, int]:
        """Return the slot by which the child sends the listener."""
        return {"supervisor": self._there.fileno()}

    def started(self) -> None:
        """Close the child's end, after the child has its copy or if the start has failed."""
        self._there.close()

    def _serve(self) -> None:
        from socket import recv_fds

        try:
            with self._here:
                _, descriptors, _, _ = recv_fds(self._here, 1, 1)
        except OSError:
            return
        if not descriptors:
            return  # the start failed before the filter was installed
        try:
            self._answer(descriptors[0])
        except Exception as error:  # noqa: BLE001 - the command must not wait for ever, and the error is stored
            self.error = error

    def _answer(self, descriptor: int) -> None:
        from inspect import iscoroutinefunction

        from containerkit.security.notify import Listener, supervise

        if iscoroutinefunction(self._handler):
            import asyncio

            asyncio.run(supervise(descriptor, self._handler))
            return
        with Listener(descriptor) as listener:
            while listener.pending(None) is not None:
                request = listener.receive()
                if request is not None:
                    listener.reply(request, self._decide(request))

    def _decide(self, request: Any) -> Any:
        from containerkit.security.notify import Fail

        try:
            return self._handler(request)
        except Exception as error:  # noqa: BLE001 - as above; the call fails with EPERM
            self.error = self.error or error
            return Fail()

    @property
    def ended(self) -> bool:
        """Whether no process with the filter exists any more."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Wait for the thread. No process with the filter may exist any more."""
        self._there.close()
        self._thread.join()
        self._here.close()
