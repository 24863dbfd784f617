"""Limits on the time of a registry: a deadline for small answers, a minimum rate for large ones.

The timeout of a socket limits only the time between two bytes. A server that sends a byte from time to time could delay
a client forever. So each read gets only the remaining total time.
"""

from __future__ import annotations

import io
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from containerkit.image.registry.settings import RegistrySettings

__all__ = ["Meter", "Patience", "connection_classes", "current", "patient"]


class Meter:
    """Checks that a large body arrives at the minimum rate in each window, and before its deadline.

    Args:
        settings: the minimum rate.
        offset: the number of bytes that exist already. Default 0.
    """

    def __init__(self, settings: RegistrySettings, offset: int = 0) -> None:
        now = time.monotonic()
        self._least = settings.least_rate_bytes * settings.window_s
        self._window_s = settings.window_s
        self._end = now + settings.window_s
        self._until = now + settings.blob_s
        self._came = 0
        self._offset = offset
        self._settings = settings

    def reach(self, offset: int) -> None:
        """Count what has arrived, up to an offset in the whole. Repeated bytes do not count again."""
        self._came += max(0, offset - self._offset)
        self._offset = max(self._offset, offset)

    def left_s(self) -> float:
        """Return the seconds until the next check, or 0 if the body arrived too slowly."""
        now = time.monotonic()
        while now >= self._end and self._came >= self._least:
            self._end, self._came = self._end + self._window_s, 0
        # If this window has enough bytes, the next check is at the end of the following window.
        end = self._end + (self._window_s if self._came >= self._least else 0.0)
        return max(0.0, min(end, self._until) - now)

    @property
    def verdict(self) -> str:
        """The reason for stopping the transfer, with the remedy."""
        given = self._settings
        if time.monotonic() >= self._until:
            return f"it did not arrive within {given.blob_s:g} s (hint: RegistrySettings(blob_s=...) raises this)"
        return (
            f"less than {given.least_rate_bytes} bytes per second arrived in {given.window_s:g} s "
            "(hint: RegistrySettings(least_rate_bytes=..., window_s=...) lower this)"
        )


class Patience:
    """The remaining time for an answer and its body.

    Args:
        settings: the limits in total, and for the time without a byte.
        until: when the answer with its body must have arrived, on the monotonic clock. None: ``metadata_s`` after the
            first byte, because sending the request takes time.
        meter: if given, it replaces the deadline after the headers have arrived.

    Attributes:
        is_body: whether the headers have arrived.
    """

    def __init__(self, settings: RegistrySettings, until: float | None, meter: Meter | None = None) -> None:
        self.silence_s = settings.timeout_s
        self.is_body = False
        self._metadata_s = settings.metadata_s
        self._until = until
        self._meter = meter

    def left_s(self) -> float:
        """Return the maximum seconds for the next read, or 0 if none are left."""
        if self.is_body and self._meter is not None:
            return self._meter.left_s()
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._metadata_s
        return max(0.0, self._until - now)


current: ContextVar[Patience | None] = ContextVar("patience", default=None)
"""The limits of the request that this thread is making."""
_until: ContextVar[float] = ContextVar("until", default=inf)


@contextmanager
def patient(seconds: float) -> Iterator[float]:
    """Limit the total time of all requests in a ``with`` statement. The outermost statement counts.

    Yields:
        The deadline, on the monotonic clock.
    """
    until = min(_until.get(), time.monotonic() + seconds)
    token = _until.set(until)
    try:
        yield until
    finally:
        _until.reset(token)


class _Reader(io.RawIOBase):
    """The file of a socket in which no read takes longer than the remaining time."""

    def __init__(self, raw: socket.SocketIO, sock: socket.socket, patience: Patience) -> None:
        self._raw = raw
        self._sock = sock
        self._patience = patience

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._patience.left_s()
        if left <= 0:
            raise TimeoutError("the timeout expired")
        self._sock.settimeout(min(left, self._patience.silence_s))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            with suppress(OSError):  # for the next request
                self._sock.settimeout(self._patience.silence_s)
            self._raw.close()


class _Timed:
    """A socket with the interface that :class:`http.client.HTTPResponse` requires."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._sock = sock
        self._patience = patience

    def makefile(self, mode: str) -> io.BufferedReader:
        raw: Any = self._sock.makefile(mode, buffering=0)  # type: ignore[call-overload] # the mode is known to the caller alone
        return io.BufferedReader(_Reader(raw, self._sock, self._patience))


def connection_classes() -> dict[str, Any]:
    """Return urllib3's connection pools by scheme. Their connections obey :data:`current`."""
    from http.client import HTTPResponse

    from urllib3.connection import HTTPConnection, HTTPSConnection
    from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

    def response(_: object, sock: socket.socket, *args: Any, **more: Any) -> HTTPResponse:
        patience = current.get()
        timed: Any = sock if patience is None else _Timed(sock, patience)
        return HTTPResponse(timed, *args, **more)

    made: dict[str, Any] = {}
    for scheme, pool, connection in (
        ("http", HTTPConnectionPool, HTTPConnection),
        ("https", HTTPSConnectionPool, HTTPSConnection),
    ):
        patient_connection = type("PatientConnection", (connection,), {"response_class": response})
        made[scheme] = type("PatientPool", (pool,), {"ConnectionCls": patient_connection})
    return made
