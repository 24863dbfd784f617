"""TLS for the connections between driver and workers, with the certificates of the engine's cluster."""

from __future__ import annotations

import ssl
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import socket

__all__ = ["TLSStream"]

_RECEIVED_BYTES: Final = 1 << 18
_SEALED_BYTES: Final = 1 << 20


class TLSStream:
    """A TLS connection over a connected socket. One thread may receive while another sends.

    :class:`ssl.SSLSocket` does not permit this: OpenSSL has one state for both directions. Here a lock protects that
    state, and nothing waits for the network while it is held.

    The worker has the role of the TLS server, because drivers may have certificates for clients only. Both sides show
    a certificate.

    Args:
        sock: the socket. The caller closes it.
        context: the certificates, and the authority for those of the other side.
        driver: whether this is the driver's side.

    Raises:
        OSError: the other side does not speak TLS, or the authority did not sign its certificate.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, driver: bool) -> None:
        self._socket = sock
        self._lock = threading.Lock()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=not driver)
        shaken = False
        while not shaken:
            try:
                self._object.do_handshake()
                shaken = True
            except ssl.SSLWantReadError:
                pass
            finally:  # send an alert too, which gives the other side the reason
                if self._outgoing.pending:
                    sock.sendall(self._outgoing.read())
            if not shaken:
                self._feed()

    def _feed(self) -> None:
        piece = self._socket.recv(_RECEIVED_BYTES)
        with self._lock:
            self._incoming.write(piece) if piece else self._incoming.write_eof()

    def recv(self, length: int) -> bytes:
        """Wait for data and return at most ``length`` bytes; none if the other side has closed the connection."""
        while True:
            try:
                with self._lock:
                    return self._object.read(length)
            except ssl.SSLWantReadError:
                self._feed()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # messages have lengths, so truncation is noticed
                return b""

    def sendall(self, content: bytes | memoryview) -> None:
        """Send all bytes. Only one thread may do this at a time."""
        view = memoryview(content)
        for start in range(0, len(view), _SEALED_BYTES):
            with self._lock:
                self._object.write(view[start : start + _SEALED_BYTES])
                sealed = self._outgoing.read()
            self._socket.sendall(sealed)
