"""Local sockets, with the extension module ``_socket``, because importing ``socket`` takes too long."""

from __future__ import annotations

import _socket
import os
from struct import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

__all__ = ["Channel"]

_STREAM = _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC


class Channel:
    """A connected or listening socket. It owns its descriptor."""

    __slots__ = ("_socket",)

    def __init__(self, inner: _socket.socket) -> None:
        self._socket = inner

    def __repr__(self) -> str:
        fd = self.fileno()
        return f"<Channel {'closed' if fd < 0 else f'fd {fd}'}>"

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Return the two ends of a connection of whole messages. Source: SOCK_SEQPACKET in unix(7)."""
        one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        return cls(one), cls(other)

    @classmethod
    def listening(cls, path: str) -> Channel:
        """Bind a socket to a path and listen.

        Raises:
            OSError: the path can't be bound.
        """
        channel = cls(_socket.socket(_socket.AF_UNIX, _STREAM))
        try:
            channel._socket.bind(path)
            channel._socket.listen(1)
        except BaseException:
            channel.close()
            raise
        return channel

    @classmethod
    def connected(cls, path: str) -> Channel:
        """Connect to a socket.

        Raises:
            OSError: nobody listens.
        """
        channel = cls(_socket.socket(_socket.AF_UNIX, _STREAM))
        try:
            channel._socket.connect(path)
        except BaseException:
            channel.close()
            raise
        return channel

    @classmethod
    def adopted(cls, fd: int) -> Channel:
        """Return the owner of a connected socket that another program has passed to this process."""
        os.set_inheritable(fd, False)
        return cls(_socket.socket(fileno=fd))

    def fileno(self) -> int:
        """Return the descriptor, or -1 if closed."""
        return self._socket.fileno()

    def send(self, content: bytes) -> None:
        """Send a message."""
        self._socket.send(content)

    def receive(self) -> bytes:
        """Return the next message, or empty bytes at the end, even if the other side was killed."""
        try:
            return self._socket.recv(64)
        except ConnectionResetError:
            return b""

    def send_descriptor(self, fd: int, message: bytes) -> None:
        """Send a descriptor with a message. Source: SCM_RIGHTS in unix(7)."""
        self._socket.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack("=i", fd))])

    def close(self) -> None:
        """Close it. May be called twice."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
