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
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit._linux.listeners import has_listener
from containerkit.descriptors import close_all, close_last, keep_pipe
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Namespace
from containerkit.network import later
from containerkit.network.connect import Connection, Connector
from containerkit.network.endpoint import may_take_short_way
from containerkit.network.kept import Kept, Peer, directory, error_of, path_of, receive, send
from containerkit.spec.network import DNS, Attach, Network, Rate
from containerkit.spec.traffic import Egress, EgressRule, Port
from containerkit.start.staging import share_holder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.network.live import LiveNetwork

__all__ = ["Kept", "create", "directory", "known", "names", "serve"]

_START_S: Final = 20.0
_LARGEST: Final = 1 << 20
_BACKLOG: Final = 64


def _error_message(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError) and not isinstance(error, SetupError):
        error = SetupError("open", error.errno or 0, str(error.filename or "network"), "the network can't be opened")
    if isinstance(error, SetupError):
        return {"kind": "SetupError", "arguments": [error.operation, error.errno, error.target, error.hint]}
    kind = "SpecError" if isinstance(error, SpecError) else "StateError"
    return {"kind": kind, "text": str(error)}


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def serve(network: Network, listening: socket.socket, ready: int, life: socket.socket | None = None) -> None:
    """Keep a network until its removal is requested. The process does nothing else.

    Args:
        network: the network to keep.
        listening: the listening socket.
        ready: a descriptor to which the result of the opening is written.
        life: a socket. When its other side is closed, the network ends too.
    """
    listening.listen(_BACKLOG)  # from now on the kernel reports this process as the one that listens
    try:
        live = network.open()
    except (SetupError, SpecError, StateError, OSError) as error:
        _tell(ready, _error_message(error))
        return
    _tell(ready, {})
    ending = threading.Event()
    asked = [listening] if life is None else [listening, life]
    while not ending.is_set():
        found = select.select(asked, [], [])[0]
        if life in found or ending.is_set():
            break
        connection, _ = listening.accept()
        threading.Thread(target=_handle_connection, args=(connection, live, ending, listening), daemon=True).start()
    live.close()


def _tell(ready: int, answer: dict[str, Any]) -> None:
    """Report the result of the opening, unless the process that asked for it was killed: the network stays anyway."""
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, json.dumps(answer).encode())
    os.close(ready)


def _handle_connection(
    connection: socket.socket, live: LiveNetwork, ending: threading.Event, listening: socket.socket
) -> None:
    with connection, contextlib.suppress(OSError, ValueError):
        request, lent = receive(connection)
        try:
            match request.get("verb"):
                case "inspect":
                    holder = () if live.router.privileged else (live.router.holder,)
                    within = os.fstat(holder[0]).st_ino if holder else 0
                    send(connection, {**live.inspect(), "pid": os.getpid(), "user_namespace": within}, holder)
                case "remove":
                    _check_removable(live, request)
                    ending.set()
                    send(connection, {})
                    listening.shutdown(socket.SHUT_RDWR)
                case "connect":
                    _connect(connection, request, live)
                case "join":
                    _join(connection, request, live, lent.pop())
                case "ask":
                    reply = _resolved(live, bytes.fromhex(request["question"]), request)
                    send(connection, {"reply": None if reply is None else reply.hex()})
        except (SetupError, SpecError, StateError) as error:
            send(connection, {"error": _error_message(error)})
        finally:
            _close(lent)


def _check_removable(live: LiveNetwork, request: dict[str, Any]) -> None:
    if live.inspect()["containers"] and not request.get("force"):
        raise StateError(f"network {live.network.name}: containers are on it; stop them, or pass --force")


def _resolved(live: LiveNetwork, question: bytes, request: dict[str, Any]) -> bytes | None:
    resolver, source = live.router.attendant.resolver, str(request["source"])
    if not request["outward"]:
        return resolver.known(question, source)
    reply, asked = resolver.answer_locally(question, source)
    return reply if asked is None else resolver.forward(asked, source)


def _how(live: LiveNetwork, request: dict[str, Any]) -> Attach:
    how = request["attach"]
    return Attach(live, **{**how, "rate": Rate(**how["rate"])})


def _rules(request: dict[str, Any]) -> tuple[Egress | None, DNS | None]:
    egress = request["egress"]
    return (
        None if egress is None else Egress([_rule(rule) for rule in egress]),
        None if request["dns"] is None else DNS(**request["dns"]),
    )


def _connect(connection: socket.socket, request: dict[str, Any], live: LiveNetwork) -> None:
    """Make the network of a container, and keep its resources until the connection ends."""
    connector = Connector(
        ((live, _how(live, request)),),
        tuple(request["names"]),
        tuple(Port(**port) for port in request["ports"]),
        *_rules(request),
        request["sysctls"],
        request["leads_out"],
    )
    made = connector.make()
    try:
        ports = [{**attrs.asdict(each.port), "host_port": each.host_port, "last": None} for each in made.published]
        send(connection, {"addresses": list(made.claims[0].addresses), "ports": ports}, (made.fileno(),))
        _hold(connection, made)
    finally:
        made.close()


def _join(connection: socket.socket, request: dict[str, Any], live: LiveNetwork, namespace: int) -> None:
    """Make another interface of a container, and keep it until the connection ends."""
    egress, dns = _rules(request)
    who = later.Who(object(), dns, egress)
    names, position, out = tuple(request["names"]), int(request["position"]), bool(request["leads_out"])
    try:
        handle = Namespace.from_fd(namespace, "network")
    finally:
        os.close(namespace)
    with ExitStack() as stack:
        made = later.join(live, _how(live, request), handle, who, names, position=position, out=out)
        stack.callback(made.close)
        inner = live.network.internal
        over = made.claim.wire if not inner and may_take_short_way(made.claim.wire, egress) else None
        for port in request["ports"]:
            published = live.router.attendant.publish(Port(**port), made.claim.addresses, over, internal=inner)
            stack.callback(published.close)
        answer = {"addresses": list(made.claim.addresses), "leads_out": made.claim.wire.has_default_route}
        send(connection, answer)
        _hold(connection, made)


def _hold(connection: socket.socket, made: Connection | later.Later) -> None:
    """Handle the requests of a container's owner until the connection ends."""
    while True:
        more, _ = receive(connection)
        if "peers" in more and isinstance(made, Connection):
            made.ask(tuple(Peer(**each) for each in more["peers"]))
        else:
            made.named(str(more.get("name")))
        send(connection, {})


def _rule(fields: dict[str, Any]) -> EgressRule:
    return EgressRule(fields["what"], tuple((first, last) for first, last in fields["ports"]), fields["protocol"])


_children: Final[list[subprocess.Popen[bytes]]] = []
"""The keepers that this process started. It reaps them if it lives longer."""


def _reap() -> None:
    _children[:] = [each for each in _children if each.poll() is None]


def create(network: Network) -> int:
    """Start the keeper of a network, and return its pid once the network is open.

    Raises:
        StateError: a network of that name already exists.
        SpecError, SetupError: the network can't be opened.

    Side effects: a process, until the network is removed.
    """
    path = path_of(network.name)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    except OSError as error:
        raise SetupError("mkdir", error.errno or 0, os.path.dirname(path), "networks can't be kept") from None
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    fds = _holder_of_others()
    holder = tuple(fds)
    try:
        read, write = keep_pipe(fds)
        _bind(listening, path, network.name)
        description = json.dumps(attrs.asdict(network))
        numbers = [str(fd) for fd in (listening.fileno(), write, *holder)]
        keeper = subprocess.Popen(
            [sys.executable, "-m", "containerkit.network.keeper", description, *numbers],
            pass_fds=(listening.fileno(), write, *holder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        close_last(fds)  # the end for writing
        raw = os.read(read, _LARGEST)
        answer = json.loads(raw) if raw else {"kind": "StateError", "text": "the keeper has ended"}
        if answer:
            keeper.wait(_START_S)
            os.unlink(path)
            raise error_of(answer)
        _reap()
        _children.append(keeper)
        return keeper.pid
    finally:
        listening.close()
        close_all(fds)


def _holder_of_others() -> list[int]:
    """Return the user namespace of this user's other networks. A container can be on all networks that share one."""
    for name, _ in known() if os.geteuid() != 0 else ():
        with contextlib.suppress(StateError, SpecError, SetupError):
            _, fds, connection = Kept(name).ask({"verb": "inspect"})
            connection.close()
            if fds:
                _close(fds[1:])
                return fds[:1]
    return []


def _bind(listening: socket.socket, path: str, name: str) -> None:
    """Bind the socket of the name. Remove the socket of a dead keeper."""
    for _ in range(2):
        try:
            listening.bind(path)
        except OSError as error:
            if name in names():
                raise StateError(f"network {name}: it already exists; see 'containerkit network ls'") from None
            if not os.path.lexists(path):
                raise SetupError("bind", error.errno or 0, path, "") from None
            os.unlink(path)
        else:
            os.chmod(path, 0o600)
            listening.listen(_BACKLOG)
            return
    raise StateError(f"network {name}: another process is creating a network of that name")


def names() -> list[str]:
    """Return the names of the networks that have a keeper, even if it does not answer."""
    try:
        at = directory()
        return [name for name in sorted(os.listdir(at)) if has_listener(f"{at}/{name}")]
    except FileNotFoundError:
        return []


def known() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of each network whose keeper answers, and the keeper's description."""
    for name in names():
        with contextlib.suppress(StateError, SpecError):
            yield name, Kept(name).inspect()


def remove(name: str, *, force: bool) -> None:
    """Stop a keeper, and with it its network.

    Raises:
        StateError: it does not exist, or containers are on it and ``force`` is false.
    """
    _, _, connection = Kept(name).ask({"verb": "remove", "force": force})
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path_of(name))
    connection.settimeout(_START_S)
    with contextlib.suppress(OSError):
        connection.recv(1)
    connection.close()
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and name in names():
        time.sleep(0.01)
    _reap()


def sweep() -> list[str]:
    """Remove the sockets of dead keepers. Return descriptions of them."""
    try:
        at = directory()
        gone = sorted(set(os.listdir(at)) - set(names()))
    except (SetupError, OSError):
        return []
    for name in gone:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{at}/{name}")
    return [f"socket of network {name}" for name in gone]


def _main(words: list[str]) -> None:
    description, *numbers = words
    fds = [int(each) for each in numbers]
    for fd in fds:
        os.set_inheritable(fd, False)
    if len(fds) > 2:
        share_holder(fds[2])
    serve(Network(**json.loads(description)), socket.socket(fileno=fds[0]), fds[1])


if __name__ == "__main__":
    _main(sys.argv[1:])
