"""A network that another process keeps, as the processes see it whose containers are on it; see :mod:`.keeper`."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import _native
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
        hint = "networks that are kept need a directory of the user's own: set XDG_RUNTIME_DIR"
        raise SetupError("open", 2, base, hint)
    return f"{base}/containerkit/networks"


def path_of(name: str) -> str:
    """Return where the keeper of a network answers.

    Raises:
        SpecError: the name is none, or too long.
    """
    Network(name)  # refuses what is not a name
    path = f"{directory()}/{name}"
    if len(os.fsencode(path)) > _PATH:
        raise SpecError(f"network: the name {name!r:.100} is too long for a socket in {directory()}")
    return path


@attrs.frozen
class Kept:
    """A network that a keeper keeps, by its name. It can be passed to a container as a network.

    Attributes:
        name: the name of the network.
        at: the path of the keeper's socket, where it is not that of a shared network; at most 100 bytes.
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
            StateError: no network of that name is kept.
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
        """Ask the keeper, which is lent some descriptors; returns answer, descriptors that came, and connection.

        Raises:
            StateError: no network of that name is kept, or the keeper refused the request.
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
            raise StateError(f"network {self.name}: nobody keeps one of that name; {hint}") from None
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
    _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.geteuid(), 0):
        raise StateError(f"network {name}: its keeper is another user's (uid {uid})")


def send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    """Send one message, and descriptors with it."""
    data = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("=I", len(data))], list(fds))
    connection.sendall(data)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Receive one message, and the descriptors that came with it.

    Raises:
        ConnectionResetError: there is none any more.
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


def error_of(told: dict[str, Any]) -> Exception:
    """Return the error that a keeper tells of."""
    if told["kind"] == "SetupError":
        return SetupError(*told["arguments"])
    return (SpecError if told["kind"] == "SpecError" else StateError)(told["text"])


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
            "leads_out": connector.leads_out,
        }
        return cls(attach.network, wish)

    def take(self) -> Endpoint:
        """Ask the keeper to make the network of one container.

        Raises:
            StateError, SpecError, SetupError: the keeper refused the request.
        """
        told, fds, connection = self.kept.ask(self.wish)
        return _Remote.connected(fds[0], connection, told)

    def join(self, namespace: int, position: int) -> Joined:
        """Have one more interface made in a network namespace that is there.

        Args:
            namespace: its descriptor.
            position: which of the container's interfaces it is.

        Raises:
            StateError, SpecError, SetupError: the keeper refused the request.
        """
        wish = {**self.wish, "verb": "join", "position": position}
        answer, fds, connection = self.kept.ask(wish, (namespace,))
        _close(fds)
        return Joined(self.kept.name, connection, tuple(answer["addresses"]), outward=answer["leads_out"])


@attrs.frozen(eq=False)
class Joined:
    """What a container has of a keeper's network beside another one; it lasts as long as the connection.

    Calling it asks the keeper's resolver: it is a :data:`containerkit.network.resolver.Peer`.

    Attributes:
        name: the network.
        connection: to the keeper.
        addresses: of the container there.
        outward: whether it is the container's way out, so that all names are asked for there.
    """

    name: str
    connection: socket.socket
    addresses: tuple[str, ...]
    outward: bool = attrs.field(kw_only=True)

    def named(self, name: str) -> None:
        """Add a name by which others find it."""
        send(self.connection, {"name": name})
        receive(self.connection)

    def close(self) -> None:
        """Give back what it has there; harmless when repeated."""
        self.connection.close()

    @property
    def peer(self) -> Peer:
        """What asks its resolver."""
        return Peer(self.name, self.addresses[0], self.outward)


@attrs.frozen(eq=False)
class Peer:
    """Asks the resolver of a network that a keeper has, as a container on it.

    Attributes:
        name: the network.
        source: an address of the container there.
        outward: whether names of the outside are asked for there.
    """

    name: str
    source: str
    outward: bool

    def __call__(self, asked: Question) -> bytes | None:
        """Return the keeper's answer, or None where it has none."""
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
    told: dict[str, Any]

    @classmethod
    def connected(cls, fd: int, connection: socket.socket, told: dict[str, Any]) -> _Remote:
        """Take ownership of a descriptor, and of the connection on which the container's resources depend.

        Args:
            fd: of the network namespace.
            connection: to the keeper.
            told: what the container has of the network: ``addresses``, and ``ports`` that are published.
        """
        status = os.fstat(fd)
        made = cls(
            kind=Kind.NETWORK, device=status.st_dev, inode=status.st_ino, fd=fd, connection=connection, told=told
        )
        made.also(connection.close)
        return made

    def named(self, name: str) -> None:
        """Add a name by which others find it."""
        send(self.connection, {"name": name})
        receive(self.connection)
        for each in self._beside:
            each.named(name)

    def ask(self, peers: tuple[Peer, ...]) -> None:
        """Let what its own network does not know be asked of these."""
        send(self.connection, {"peers": [attrs.asdict(each) for each in peers]})
        receive(self.connection)
