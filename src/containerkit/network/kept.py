"""The client of :mod:`.keeper`: networks of another process, for processes whose containers are on them."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import _native
from containerkit._linux.listeners import listener_of, refuse_stopped
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Kind
from containerkit.network import dns
from containerkit.network.endpoint import Endpoint
from containerkit.network.leases import DIRECTORY
from containerkit.spec.network import Network
from containerkit.start.staging import share_holder

if TYPE_CHECKING:
    from containerkit.network.connect import Connector
    from containerkit.network.dns import Question
    from containerkit.spec.network import Attach

__all__ = ["Joined", "Kept", "Peer", "Remote", "directory", "error_of", "path_of", "receive", "send"]

_LARGEST: Final = 1 << 20
_PATH: Final = 100
"""The longest path of a socket in bytes that works everywhere. Source: unix(7)."""


def directory() -> str:
    """Return the directory of the sockets of this user's keepers."""
    if os.geteuid() == 0:
        return f"{DIRECTORY}/kept"
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if not os.path.isdir(base):
        hint = "named networks need a runtime directory of the user: set XDG_RUNTIME_DIR"
        raise SetupError("open", 2, base, hint)
    return f"{base}/containerkit/networks"


def path_of(name: str) -> str:
    """Return the path of the socket of a network's keeper.

    Raises:
        SpecError: the name is invalid or too long.
    """
    Network(name)  # refuses an invalid name
    path = f"{directory()}/{name}"
    if len(os.fsencode(path)) > _PATH:
        raise SpecError(f"network: the name {name!r:.100} is too long for a socket in {directory()}")
    return path


@attrs.frozen
class Kept:
    """A network that has a keeper, by its name. It can be passed to a container as a network.

    Attributes:
        name: the name of the network.
        at: the path of the keeper's socket, if it is not that of a shared network; at most 100 bytes.
    """

    name: str
    at: str | None = None
    containerkit_network = True

    def inspect(self, *, joins: bool = False) -> dict[str, Any]:
        """Return the keeper's description of the network.

        Args:
            joins: whether containers of this process must be able to join it. Those of an unprivileged user are then
                made in the keeper's user namespace.

        Raises:
            StateError: no network of that name exists.
        """
        answer, fds, connection = self.ask({"verb": "inspect"})
        connection.close()
        if joins and fds:
            share_holder(fds.pop())
        _close(fds)
        return answer

    def ask(
        self, request: dict[str, Any], lent: tuple[int, ...] = ()
    ) -> tuple[dict[str, Any], list[int], socket.socket]:
        """Send a request with descriptors to the keeper. Return the answer, its descriptors, and the connection.

        Raises:
            StateError: no network of that name exists, or the keeper refused the request.
            SpecError, SetupError: the keeper refused the request.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self.at or path_of(self.name))
            _check_peer(connection, self.name)
            send(connection, request, lent)
            answer, fds = receive(connection)
        except (ConnectionError, FileNotFoundError):
            connection.close()
            hint = f"create it first: containerkit network create {self.name}"
            raise StateError(f"network {self.name}: it does not exist; {hint}") from None
        except BaseException:
            connection.close()
            raise
        if "error" in answer:
            connection.close()
            raise error_of(answer["error"])
        return answer, fds, connection


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _check_peer(connection: socket.socket, name: str) -> None:
    _, uid = listener_of(connection)
    if uid not in (os.geteuid(), 0):
        raise StateError(f"network {name}: it belongs to another user (uid {uid})")
    refuse_stopped(connection, f"network {name}")


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message, and descriptors with it."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("=I", len(data))], list(fds))
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message, and the descriptors that came with it.

    Raises:
        ConnectionResetError: the connection has ended.
    """
    head, fds, _, _ = socket.recv_fds(connection, 4, 4)
    if len(head) < 4:
        raise ConnectionResetError
    (left,) = struct.unpack("=I", head)
    if left > _LARGEST:
        raise ConnectionResetError
    data = bytearray()
    while len(data) < left:
        piece = connection.recv(left - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    answer: dict[str, Any] = json.loads(data)
    return answer, [_native.high(fd) for fd in fds]


def error_of(answer: dict[str, Any]) -> Exception:
    """Return the error in a keeper's answer."""
    if answer["kind"] == "SetupError":
        return SetupError(*answer["arguments"])
    return (SpecError if answer["kind"] == "SpecError" else StateError)(answer["text"])


# --- The container's side


@attrs.frozen(eq=False)
class Remote:
    """Asks a keeper for the network of each start of one description.

    Attributes:
        kept: the network.
        wish: the request.
    """

    kept: Kept
    wish: dict[str, Any]

    @classmethod
    def of(cls, attach: Attach, connector: Connector) -> Remote:
        """Return the connector for an attachment and the other network options of a container."""
        wish = {
            "verb": "connect",
            "attach": {**attrs.asdict(attach, filter=lambda field, _: field.name != "network")},
            "names": list(connector.names),
            "ports": [attrs.asdict(port) for port in connector.ports],
            "egress": None if connector.egress is None else [attrs.asdict(rule) for rule in connector.egress.rules],
            "dns": None if connector.dns is None else attrs.asdict(connector.dns),
            "sysctls": connector.sysctls,
            "leads_out": connector.has_default_route,
        }
        assert isinstance(attach.network, Kept)
        return cls(attach.network, wish)

    def take(self) -> Endpoint:
        """Ask the keeper to make the network of one container.

        Raises:
            StateError, SpecError, SetupError: the keeper refused the request.
        """
        answer, fds, connection = self.kept.ask(self.wish)
        return _Remote.connected(fds[0], connection, answer)

    def join(self, namespace: int, position: int) -> Joined:
        """Request another interface in an existing network namespace.

        Args:
            namespace: its descriptor.
            position: the position of this interface among the container's.

        Raises:
            StateError, SpecError, SetupError: the keeper refused the request.
        """
        wish = {**self.wish, "verb": "join", "position": position}
        answer, fds, connection = self.kept.ask(wish, (namespace,))
        _close(fds)
        return Joined(self.kept.name, connection, tuple(answer["addresses"]), outward=answer["leads_out"])


@attrs.frozen(eq=False)
class Joined:
    """The interface of a container on a keeper's network, in addition to other networks. It ends with the connection.

    Calling it asks the keeper's resolver: it is a :data:`containerkit.network.resolver.Peer`.

    Attributes:
        name: the network.
        connection: the connection to the keeper.
        addresses: the addresses of the container on it.
        outward: whether it has the container's default route, so that its resolver gets all questions.
    """

    name: str
    connection: socket.socket
    addresses: tuple[str, ...]
    outward: bool = attrs.field(kw_only=True)

    def named(self, name: str) -> None:
        """Add a name by which other containers find it."""
        send(self.connection, {"name": name})
        receive(self.connection)

    def close(self) -> None:
        """Release the interface. May be called twice."""
        self.connection.close()

    @property
    def peer(self) -> Peer:
        """The object that asks its resolver."""
        return Peer(self.name, self.addresses[0], self.outward)


@attrs.frozen(eq=False)
class Peer:
    """Asks the resolver of a keeper's network, for a container on it.

    Attributes:
        name: the network.
        source: an address of the container on it.
        outward: whether its resolver also gets questions about outside names.
    """

    name: str
    source: str
    outward: bool

    def __call__(self, asked: Question) -> bytes | None:
        """Return the keeper's answer, or None if it does not know the name."""
        request = {"verb": "ask", "question": dns.ask(asked, asked.number).hex(), "source": self.source}
        try:
            answer, fds, connection = Kept(self.name).ask({**request, "outward": self.outward})
        except (StateError, SpecError, SetupError, OSError):
            return None
        connection.close()
        _close(fds)
        return bytes.fromhex(answer["reply"]) if answer["reply"] is not None else None


@attrs.define(kw_only=True, eq=False, repr=False, weakref_slot=False)
class _Remote(Endpoint):
    connection: socket.socket
    answer: dict[str, Any]

    @classmethod
    def connected(cls, fd: int, connection: socket.socket, answer: dict[str, Any]) -> _Remote:
        """Take ownership of a descriptor, and of the connection on which the container's resources depend.

        Args:
            fd: the descriptor of the network namespace.
            connection: the connection to the keeper.
            answer: the keeper's answer, with ``addresses`` and published ``ports`` of the container.
        """
        status = os.fstat(fd)
        made = cls(
            kind=Kind.NETWORK, device=status.st_dev, inode=status.st_ino, fd=fd, connection=connection, answer=answer
        )
        made.also(connection.close)
        return made

    def named(self, name: str) -> None:
        """Add a name by which other containers find it."""
        send(self.connection, {"name": name})
        receive(self.connection)
        for each in self._beside:
            each.named(name)

    def ask(self, peers: tuple[Peer, ...]) -> None:
        """Use these resolvers for names that its own network does not know."""
        send(self.connection, {"peers": [attrs.asdict(each) for each in peers]})
        receive(self.connection)
