"""Networks that several processes share. Each is kept by one process until it is removed.

``containerkit network create`` starts the keeper, which opens the network and listens on a socket. To connect a
container, the keeper makes its network namespace and sends the descriptor. The container's resources last as long as
the connection, so nothing is left when its owner ends, even if it is killed. When the keeper ends, the network ends
too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import _native
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Kind
from containerkit.network.connect import Connector
from containerkit.network.endpoint import Endpoint
from containerkit.network.leases import DIRECTORY
from containerkit.spec.network import DNS, Attach, Network, Rate
from containerkit.spec.traffic import Egress, EgressRule, Port
from containerkit.start.staging import share_holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.network.live import LiveNetwork

__all__ = ["Kept", "Remote", "as_error", "create", "known", "serve"]

_LARGEST: Final = 1 << 20
_START_S: Final = 20.0
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


def _path(name: str) -> str:
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

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int], socket.socket]:
        """Send a request to the keeper. Return the answer, its descriptors, and the connection.

        Raises:
            StateError: no network of that name is kept, or the keeper refused the request.
            SpecError, SetupError: the keeper refused the request.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            connection.connect(self.at or _path(self.name))
            _check_peer(connection, self.name)
            _send(connection, request)
            answer, fds = _receive(connection)
        except (ConnectionError, FileNotFoundError):
            connection.close()
            hint = f"create it first: containerkit network create {self.name}"
            raise StateError(f"network {self.name}: nobody keeps one of that name; {hint}") from None
        except BaseException:
            connection.close()
            raise
        if "error" in answer:
            connection.close()
            raise as_error(answer["error"])
        return answer, fds, connection


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _check_peer(connection: socket.socket, name: str) -> None:
    _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (os.geteuid(), 0):
        raise StateError(f"network {name}: its keeper is another user's (uid {uid})")


def _send(connection: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
    data = json.dumps(message).encode()
    socket.send_fds(connection, [struct.pack("=I", len(data))], list(fds))
    connection.sendall(data)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
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


def as_error(told: dict[str, Any]) -> Exception:
    """Return the error that a keeper has told of."""
    if told["kind"] == "SetupError":
        return SetupError(*told["arguments"])
    return (SpecError if told["kind"] == "SpecError" else StateError)(told["text"])


def _as_told(error: Exception) -> dict[str, Any]:
    if isinstance(error, SetupError):
        return {"kind": "SetupError", "arguments": [error.operation, error.errno, error.target, error.hint]}
    kind = "SpecError" if isinstance(error, SpecError) else "StateError"
    return {"kind": kind, "text": str(error)}


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
        }
        return cls(attach.network, wish)

    def take(self) -> Endpoint:
        """Ask the keeper to make the network of one container.

        Raises:
            StateError, SpecError, SetupError: the keeper refused the request.
        """
        told, fds, connection = self.kept.ask(self.wish)
        return _Remote.connected(fds[0], connection, told)


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
        _send(self.connection, {"name": name})
        _receive(self.connection)


# --- The keeper


def serve(network: Network, listening: socket.socket, ready: int, life: socket.socket | None = None) -> None:
    """Keep a network until its removal is requested. The process does nothing else.

    Args:
        network: the network to keep.
        listening: the listening socket.
        ready: a descriptor to which the result of the opening is written.
        life: a socket. When its other side is closed the network ends, too.
    """
    try:
        live = network.open()
    except (SetupError, SpecError, StateError) as error:
        os.write(ready, json.dumps(_as_told(error)).encode())
        return
    os.write(ready, b"{}")
    os.close(ready)
    ending = threading.Event()
    asked = [listening] if life is None else [listening, life]
    while not ending.is_set():
        found = select.select(asked, [], [])[0]
        if life in found or ending.is_set():
            break
        connection, _ = listening.accept()
        threading.Thread(target=_attend, args=(connection, live, ending, listening), daemon=True).start()
    live.close()


def _attend(connection: socket.socket, live: LiveNetwork, ending: threading.Event, listening: socket.socket) -> None:
    with connection, contextlib.suppress(OSError, ValueError):
        request, _ = _receive(connection)
        try:
            match request.get("verb"):
                case "inspect":
                    holder = () if live.router.privileged else (live.router.holder,)
                    _send(connection, {**live.inspect(), "pid": os.getpid()}, holder)
                case "remove":
                    _check_removable(live, request)
                    ending.set()
                    _send(connection, {})
                    listening.shutdown(socket.SHUT_RDWR)
                case "connect":
                    _connect(connection, request, live)
        except (SetupError, SpecError, StateError) as error:
            _send(connection, {"error": _as_told(error)})


def _check_removable(live: LiveNetwork, request: dict[str, Any]) -> None:
    if live.inspect()["containers"] and not request.get("force"):
        raise StateError(f"network {live.network.name}: containers are on it; stop them, or pass --force")


def _connect(connection: socket.socket, request: dict[str, Any], live: LiveNetwork) -> None:
    """Make the network of a container, and hold its resources as long as the connection lasts."""
    egress = request["egress"]
    how = request["attach"]
    connector = Connector(
        ((live, Attach(live, **{**how, "rate": Rate(**how["rate"])})),),
        tuple(request["names"]),
        tuple(Port(**port) for port in request["ports"]),
        None if egress is None else Egress([_rule(rule) for rule in egress]),
        None if request["dns"] is None else DNS(**request["dns"]),
        request["sysctls"],
    )
    made = connector.take()
    try:
        ports = [{**attrs.asdict(each.port), "host_port": each.host_port} for each in made.published]
        _send(connection, {"addresses": list(made.claims[0].addresses), "ports": ports}, (made.fileno(),))
        while True:
            more, _ = _receive(connection)
            made.named(str(more.get("name")))
            _send(connection, {})
    finally:
        made.close()


def _rule(told: dict[str, Any]) -> EgressRule:
    return EgressRule(told["what"], tuple((first, last) for first, last in told["ports"]), told["protocol"])


_children: Final[list[subprocess.Popen[bytes]]] = []
"""Keepers that this process has started: it reaps them if it is still there at their end."""


def _reap() -> None:
    _children[:] = [each for each in _children if each.poll() is None]


def create(network: Network) -> int:
    """Start the keeper of a network, and return its pid once the network is open.

    Raises:
        StateError: a network of that name is already kept.
        SpecError, SetupError: the network can't be opened.

    Side effects: a process, until the network is removed.
    """
    path = _path(network.name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        _bind(listening, path, network.name)
        description = json.dumps(attrs.asdict(network))
        words = [sys.executable, "-m", "containerkit.network.keeper", str(listening.fileno()), str(write), description]
        keeper = subprocess.Popen(
            words,
            pass_fds=(listening.fileno(), write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        os.close(write)
        write = -1
        told = os.read(read, _LARGEST)
        answer = json.loads(told) if told else {"kind": "StateError", "text": "the keeper has ended"}
        if answer:
            keeper.wait(_START_S)
            os.unlink(path)
            raise as_error(answer)
        _reap()
        _children.append(keeper)
        return keeper.pid
    finally:
        listening.close()
        for fd in (read, write):
            if fd >= 0:
                os.close(fd)


def _bind(listening: socket.socket, path: str, name: str) -> None:
    """Take the name. Remove what a dead keeper has left in its place."""
    for _ in range(2):
        try:
            listening.bind(path)
        except OSError as error:
            if name in [each for each, _ in known()]:
                raise StateError(f"network {name}: it is already kept; see 'containerkit network ls'") from None
            if not os.path.lexists(path):
                raise SetupError("bind", error.errno or 0, path, "") from None
            os.unlink(path)
        else:
            os.chmod(path, 0o600)
            listening.listen(64)
            return
    raise StateError(f"network {name}: another process is creating a network of that name")


def known() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each kept network and its keeper's description."""
    if not os.path.isdir(directory()):
        return
    for name in sorted(os.listdir(directory())):
        with contextlib.suppress(StateError, SpecError):
            yield name, Kept(name).inspect()


def remove(name: str, *, force: bool) -> None:
    """Stop a keeper, and with it its network.

    Raises:
        StateError: it is not kept, or containers are on it and ``force`` is false.
    """
    _, _, connection = Kept(name).ask({"verb": "remove", "force": force})
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(name))
    connection.settimeout(_START_S)
    with contextlib.suppress(OSError):
        connection.recv(1)
    connection.close()
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and any(each == name for each, _ in known()):
        time.sleep(0.01)
    _reap()


def sweep() -> list[str]:
    """Remove the sockets of dead keepers. Return descriptions of them."""
    try:
        at = directory()
        names = set(os.listdir(at))
    except (SetupError, OSError):
        return []
    gone = sorted(names - {name for name, _ in known()})
    for name in gone:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{at}/{name}")
    return [f"socket of network {name}" for name in gone]


def _main(words: list[str]) -> None:
    listening = socket.socket(fileno=int(words[0]))
    ready = int(words[1])
    for fd in (listening.fileno(), ready):
        os.set_inheritable(fd, False)
    told = json.loads(words[2])
    serve(Network(**told), listening, ready)


if __name__ == "__main__":
    _main(sys.argv[1:])
