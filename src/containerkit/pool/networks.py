"""Empty network namespaces for starts. Making one is the most expensive part of a start."""

from __future__ import annotations

import threading
from typing import Final

from containerkit._linux.privileges import is_privileged
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.descriptors import Closing
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError
from containerkit.namespace import Kind, Namespace
from containerkit.pool.background import Supply

__all__ = ["NetworkPool"]

_LARGEST: Final = 4096
_LOOPBACK: Final = b"lo".ljust(16, b"\0") + (0x41).to_bytes(2, "little") + bytes(22)  # IFF_UP | IFF_RUNNING
_SIOCSIFFLAGS: Final = 0x8914


class NetworkPool(Closing):
    """Keeps empty network namespaces ready, with their loopback up, and fills itself up in the background.

    ::

        with NetworkPool(16) as pool:
            run(["true"], namespaces=Namespaces(network=pool))

    Each is used once: a namespace in which a process ran is never reused. If the pool is empty, a start makes its own
    namespace and waits for it. Any number of threads may start from it.

    Args:
        size: how many it keeps, 1 to 4096; each is one descriptor, and about 100 KiB of the kernel's memory.

    Raises:
        SpecError: the size is invalid.
        UnsupportedError: the caller may not make network namespaces: only a privileged one can.

    Side effects: a thread, until :meth:`close`. Source: network_namespaces(7).
    """

    def __init__(self, size: int = 16) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST:
            raise SpecError(f"pool: size must be from 1 to {_LARGEST}, not {size!r}")
        if not is_privileged():
            hint = "a container of an unprivileged user makes its own network namespace: use Namespaces(network='new')"
            raise UnsupportedError("unshare", 1, "network namespace", hint)
        self.size = size
        self._supply: Supply[Namespace] = Supply(size, _make, Namespace.close, "network pool", eager=True)

    def take(self) -> Namespace:
        """Return an unused namespace, which the caller then owns.

        Raises:
            StateError: the pool was closed.
            SetupError: the pool was empty, and a namespace could not be made.
        """
        if self._supply.is_ours and self._supply.closed:
            raise StateError(f"{self!r}: it was closed")
        taken = self._supply.take()
        return _in_a_thread() if taken is None else taken

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until it is full. Return False if the timeout expires first.

        Args:
            timeout: seconds (default: no limit).
        """
        return self._supply.wait_full(timeout)

    def close(self) -> None:
        """Release all ready namespaces and end the thread. May be called twice, and has no effect in a forked child."""
        self._supply.close()

    def __len__(self) -> int:
        return len(self._supply)

    def __repr__(self) -> str:
        return f"<NetworkPool {'closed' if self._supply.closed else f'{len(self)} of {self.size} ready'}>"


def _make() -> Namespace:
    """Make a network namespace in the calling thread, which stays in it."""
    import socket
    from fcntl import ioctl

    try:
        calls.unshare(k.CLONE_NEWNET)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
            ioctl(any_socket, _SIOCSIFFLAGS, _LOOPBACK)
    except OSError as error:
        hint = "a limit on network namespaces may be reached: see user.max_net_namespaces"
        raise SetupError("unshare", error.errno or 0, "network namespace", hint) from None
    return Namespace.current(Kind.NETWORK)


def _in_a_thread() -> Namespace:
    """Make a network namespace without moving the calling thread."""
    made: list[Namespace | BaseException] = []

    def work() -> None:
        try:
            made.append(_make())
        except SetupError as error:
            made.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (result,) = made
    if isinstance(result, BaseException):
        raise result
    return result
