"""A supervisor for the system calls of one command: it gets the listener from the child and serves until the end."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.security.confinement import Confinement

__all__ = ["Supervision"]


class Supervision:
    """Serves the filter of one command; :meth:`close` ends it, and may be called twice.

    Attributes:
        error: the first exception of the handler; its call failed with EPERM.

    Args:
        handler: gets each :class:`containerkit.security.notify.SyscallRequest` and returns the reply. A coroutine
            function is run in an event loop of the supervisor's own thread, its calls side by side.
    """

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        self._handler = handler
        self._here, self._there = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="containerkit supervision", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, confinement: Confinement, handler: Callable[[Any], Any] | None) -> Supervision | None:
        """Return the supervision that a filter needs, or None where it needs none.

        Raises:
            SpecError: a filter that notifies without a handler, or a handler without such a filter.
        """
        if confinement.notifies and handler is None:
            raise SpecError("seccomp: the filter notifies a supervisor: give it a syscall_handler")
        if handler is None:
            return None
        if not confinement.notifies:
            raise SpecError("syscall_handler: the seccomp filter tells it no call: say Seccomp.default().notify(...)")
        if not callable(handler):
            raise SpecError(f"syscall_handler: {handler!r} can't be called")
        return cls(handler)

    def inputs(self) -> dict[str, int]:
        """Return the slot by which the child sends the listener."""
        return {"supervisor": self._there.fileno()}

    def started(self) -> None:
        """Let go of the child's end, once the child has its copy or never came to be."""
        self._there.close()

    def _serve(self) -> None:
        try:
            with self._here:
                _, descriptors, _, _ = socket.recv_fds(self._here, 1, 1)
        except OSError:
            return
        if not descriptors:
            return  # the start failed before the filter was in
        try:
            self._answer(descriptors[0])
        except Exception as error:  # noqa: BLE001 - the command must not wait for ever, and the error is not lost
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
        """Whether no process with the filter is left."""
        return not self._thread.is_alive()

    def close(self) -> None:
        """Wait for the thread; no process with the filter may be left."""
        self._there.close()
        self._thread.join()
        self._here.close()
