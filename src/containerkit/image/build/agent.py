"""Forward an ssh agent to the command of a build. The command can request keys and signatures, and change nothing.

An agent accepts only processes of its own user. Those of a container belong to another user, so the requests are
forwarded by this process.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager, suppress
from struct import pack, unpack
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["forwarded_agent"]

_ALLOWED: Final = (11, 13)  # SSH_AGENTC_REQUEST_IDENTITIES, SSH_AGENTC_SIGN_REQUEST
_FAILURE: Final = pack(">IB", 1, 5)  # SSH_AGENT_FAILURE
_LARGEST: Final = 256 * 1024


@contextmanager
def forwarded_agent(agent: str, place: Path) -> Iterator[None]:
    """Forward the requests of processes that connect to a new socket, while the context lasts.

    Args:
        agent: the socket of the agent.
        place: where to create the new socket. Any process that can open it can send requests.

    Raises:
        SetupError: the agent does not answer.

    Source: the SSH agent protocol, draft-miller-ssh-agent, section 4; Dockerfile reference, "RUN --mount=type=ssh".
    """
    _connect(agent).close()
    with socket.socket(socket.AF_UNIX) as server:
        _bind(server, place)
        server.listen()
        thread = threading.Thread(target=_serve, args=(server, agent), name="ssh-agent", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept()
            thread.join()


def _connect(agent: str) -> socket.socket:
    found = socket.socket(socket.AF_UNIX)
    try:
        found.connect(agent)
    except OSError as error:
        found.close()
        raise SetupError("connect", error.errno or 0, agent, "SSH_AUTH_SOCK must name a running agent") from error
    return found


def _bind(server: socket.socket, place: Path) -> None:
    """Bind the socket by a short name, because its address can have only 107 bytes."""
    directory = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        server.bind(f"/proc/self/fd/{directory}/{place.name}")
    finally:
        os.close(directory)


def _serve(server: socket.socket, agent: str) -> None:
    callers: list[tuple[threading.Thread, socket.socket]] = []
    while True:
        try:
            caller, _ = server.accept()
        except OSError:
            break
        thread = threading.Thread(target=_forward, args=(caller, agent), name="ssh-agent", daemon=True)
        thread.start()
        callers.append((thread, caller))
    for thread, caller in callers:
        with suppress(OSError):
            caller.shutdown(socket.SHUT_RDWR)
        thread.join()


def _forward(caller: socket.socket, agent: str) -> None:
    with caller, suppress(OSError, SetupError), _connect(agent) as source:
        while (request := _message(caller)) is not None:
            if request[4] not in _ALLOWED:
                caller.sendall(_FAILURE)
                continue
            source.sendall(request)
            answer = _message(source)
            if answer is None:
                return
            caller.sendall(answer)


def _message(connection: socket.socket) -> bytes | None:
    """Read one message with its length prefix. Return None at the end, or if the length is invalid."""
    head = _exactly(connection, 4)
    if head is None:
        return None
    (length,) = unpack(">I", head)
    if not 0 < length <= _LARGEST:
        return None
    body = _exactly(connection, length)
    return None if body is None else head + body


def _exactly(connection: socket.socket, size: int) -> bytes | None:
    found = bytearray()
    while len(found) < size:
        piece = connection.recv(size - len(found))
        if not piece:
            return None
        found += piece
    return bytes(found)
