"""A connection between a driver and a worker: messages in both directions, after mutual authentication with a key.

::

    worker                                        driver
      │  ◄──────────────── challenge (32 bytes) ─────  │
      │  ─── challenge (32) + HMAC of both (32) ────►  │     closes the connection if it is wrong
      │  ◄─────────────────── HMAC of both (32) ─────  │     closes the connection if it is wrong
      │  ◄── messages: length (8), pickled tuple ───►  │

The proof is HMAC-SHA-256 over the side's name and both challenges. Messages are encrypted if the engine's cluster uses
TLS; see tls.py. Otherwise they are neither encrypted nor signed, like those of the engine.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import pickle
import secrets
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final

from containerkit.weak import WeakMembers

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.fleet.tls import TLSStream

__all__ = ["KEY_BYTES", "Wire", "keep_private"]

KEY_BYTES: Final = 32
_HEAD: Final = struct.Struct("!Q")
_LONGEST: Final = 1 << 36
_HANDSHAKE_S: Final = 10.0
_SMALL: Final = 1 << 16
_PIECE: Final = 1 << 20

# The failure of a machine is noticed after about 5 seconds. Source: tcp(7).
_WATCHFUL: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 5000),
)

_sockets: WeakMembers[socket.socket] = WeakMembers()


def keep_private(sock: socket.socket) -> socket.socket:
    """Close a socket in each forked child. Otherwise the other side would not notice the end of this process.

    Returns:
        The socket.
    """
    _sockets.add(sock)
    return sock


def _after_fork() -> None:
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            os.close(sock.detach())


os.register_at_fork(after_in_child=_after_fork)


class Wire:
    """One side of a connection. Messages are tuples; any thread may send, one thread receives.

    Args:
        sock: the connected socket. This object closes it.
        key: the shared key.
        driver: whether this is the driver's side.
        tls: certificates for an encrypted connection (default: not encrypted).

    Raises:
        PermissionError: the other side does not have the key.
        OSError: the connection broke, or the other side has no certificate of the cluster.
    """

    def __init__(self, sock: socket.socket, key: bytes, *, driver: bool, tls: ssl.SSLContext | None = None) -> None:
        self._socket = keep_private(sock)
        self._stream: socket.socket | TLSStream = sock
        self._sending = threading.Lock()
        try:
            for level, option, value in _WATCHFUL:
                sock.setsockopt(level, option, value)
            sock.settimeout(_HANDSHAKE_S)
            if tls is not None:
                from containerkit.fleet.tls import TLSStream  # ssl takes time to import

                self._stream = TLSStream(sock, tls, driver=driver)
            (self._greet_worker if driver else self._greet_driver)(key)
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise

    def _greet_worker(self, key: bytes) -> None:
        ours = secrets.token_bytes(KEY_BYTES)
        self._stream.sendall(ours)
        answer = self._exactly(2 * KEY_BYTES)
        both = ours + answer[:KEY_BYTES]
        if not hmac.compare_digest(answer[KEY_BYTES:], _proof(key, b"worker", both)):
            raise PermissionError("a worker that does not have the key of this fleet")
        self._stream.sendall(_proof(key, b"driver", both))

    def _greet_driver(self, key: bytes) -> None:
        both = bytes(self._exactly(KEY_BYTES)) + secrets.token_bytes(KEY_BYTES)
        self._stream.sendall(both[KEY_BYTES:] + _proof(key, b"worker", both))
        if not hmac.compare_digest(self._exactly(KEY_BYTES), _proof(key, b"driver", both)):
            raise PermissionError("a driver that does not have the key of its fleet")

    def send(self, *message: Any) -> None:
        """Send a message.

        Raises:
            OSError: the connection broke, and is closed.
            Exception: a part of the message can't be pickled; nothing was sent.
        """
        content = pickle.dumps(message, 5)
        head = _HEAD.pack(len(content))
        with self._sending:
            try:
                if len(content) <= _SMALL:
                    self._stream.sendall(head + content)
                else:
                    self._stream.sendall(head)
                    self._stream.sendall(content)
            except BaseException:  # an interruption, too, may leave a part of a message, which nothing can follow
                self.close()
                raise

    def receive(self, loads: Callable[[Any], Any] = pickle.loads) -> tuple[Any, ...]:
        """Wait for a message.

        Raises:
            EOFError, OSError: the connection ended or broke.
        """
        (length,) = _HEAD.unpack(self._exactly(_HEAD.size))
        if length > _LONGEST:
            raise EOFError(f"a message of {length} bytes")
        message: tuple[Any, ...] = loads(self._exactly(length))
        return message

    def _exactly(self, length: int) -> bytearray:
        """Receive a number of bytes. Memory is allocated when they arrive, not when they are announced."""
        content = bytearray()
        while len(content) < length:
            piece = self._stream.recv(min(length - len(content), _PIECE))
            if not piece:
                raise EOFError("the other side closed the connection")
            content += piece
        return content

    def close(self) -> None:
        """End the connection for both sides. May be called twice."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._socket.close()


def _proof(key: bytes, side: bytes, both: bytes) -> bytes:
    return hmac.digest(key, side + both, "sha256")
