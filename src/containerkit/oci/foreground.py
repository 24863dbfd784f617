"""Wait for a process in the foreground: forward signals to it, and copy its terminal."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what signal is built on, without enum
import os
import select

from containerkit._native import constants as k
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    from containerkit.oci.console import Proxy
    from containerkit.oci.notify import Listener

__all__ = ["exit_status", "follow", "forward", "interruptible"]

_SIGWINCH, _SIGCHLD = 28, 17
_KEPT = (9, 19, _SIGCHLD, 20, 21, 22, 23, 11, 7, 8, 4, 13)
"""SIGKILL and SIGSTOP can't be caught; job control, faults and SIGPIPE are the runtime's own."""


def interruptible() -> None:
    """Treat the usual signals during a start as a failure, so that everything made is removed."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise RuntimeFailure(f"interrupted by signal {number}")

    for number in (1, 2, 3, 15):
        _signal.signal(number, stop)


def follow(pidfd: int, master: int, listener: Listener | None = None) -> int:
    """Wait for a child.

    Args:
        pidfd: the child.
        master: its terminal, which is closed at the end; -1 for none.
        listener: the socket on which it reports readiness, if a service manager must be notified.

    Returns:
        Its exit status as a shell gives it.
    """
    if master < 0:
        forward(pidfd)
        ready: dict[int, int] = {}
        while pidfd not in ready:
            ready, listener = _poll_with(listener, [(pidfd, select.POLLIN)])
        return exit_status(pidfd)
    from containerkit.oci.console import Proxy

    with Proxy(master) as proxy:
        forward(pidfd, proxy)
        _copy(pidfd, proxy, listener)
        return exit_status(pidfd)


def forward(pidfd: int, proxy: Proxy | None = None) -> None:
    """Forward every signal that this process receives to another process.

    Args:
        pidfd: the other process.
        proxy: its terminal, which gets the size of the caller's.
    """

    def forward_one(number: int, _frame: FrameType | None) -> None:
        if number == _SIGWINCH and proxy is not None:
            proxy.follow_size()
            return
        try:
            _signal.pidfd_send_signal(pidfd, number)
        except OSError:
            return

    for number in range(1, 65):
        if number not in _KEPT and number not in (32, 33):
            _signal.signal(number, forward_one)


def _poll(watched: list[tuple[int, int]], timeout_ms: int | None = None) -> dict[int, int]:
    poller = select.poll()
    for fd, kinds in watched:
        poller.register(fd, kinds)
    return dict(poller.poll(timeout_ms))


def _poll_with(listener: Listener | None, watched: list[tuple[int, int]]) -> tuple[dict[int, int], Listener | None]:
    """Poll, and serve the listener until the process reports readiness. Return what is ready, and the listener."""
    if listener is None:
        return _poll(watched), None
    ready = _poll([*watched, (listener.fileno(), select.POLLIN)])
    if listener.fileno() in ready and listener.serve():
        return ready, None
    return ready, listener


def _copy(pidfd: int, proxy: Proxy, listener: Listener | None) -> None:
    """Copy in both directions until the process has ended and its terminal has no more output."""
    open_input = True
    while True:
        watched = [(pidfd, select.POLLIN), (proxy.master, select.POLLIN)]
        if open_input:
            watched.append((0, select.POLLIN))
        ready, listener = _poll_with(listener, watched)
        if proxy.master in ready and not proxy.copy(proxy.master, 1):
            _poll([(pidfd, select.POLLIN)])
            return
        if 0 in ready and not proxy.copy(0, proxy.master):
            open_input = False
        if pidfd in ready and proxy.master not in ready:
            while _poll([(proxy.master, select.POLLIN)], 0) and proxy.copy(proxy.master, 1):
                pass
            return


def exit_status(pidfd: int) -> int:
    """Return a child's exit status: 128 plus the signal if one killed it."""
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
    if ended is None:
        return 255
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
