"""Networks of detached containers: serves names, ports and rules after the starting process has ended.

The keeper of a kept network serves it. For ``"internet"`` each container has a separate process, the attendant, a child
of the container's keeper. Each of the two ends when the other ends for any reason.

Source: unix(7); pidfd_open(2).
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from errno import EEXIST

from containerkit.errors import ContainerError, SetupError, SpecError, StateError
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

    from containerkit.detached.store import Entry
    from containerkit.network.kept import Kept
    from containerkit.spec.container import Spec

__all__ = ["Attendant", "drop_network", "kept_network", "main", "refuse_bound", "wired"]

_LARGEST: Final = 1 << 16
_LEFT_S: Final = 5.0


def refuse_bound(spec: Spec) -> None:
    """Refuse a network that ends with this process.

    Raises:
        SpecError: the network ends with this process.
    """
    from containerkit.spec.network import CNI, Attach, Network

    network = spec.network
    if isinstance(network, (str, Network)) or type(network).__name__ in ("Kept", "Macvlan"):
        pass
    elif isinstance(network, Attach):
        refuse_bound(evolve(spec, network=network.network))
    elif isinstance(network, CNI):
        raise SpecError("detach: a CNI network must be removed by the process that created it")
    elif isinstance(network, tuple):
        raise SpecError("detach: a detached container can have at most one network")
    else:
        raise SpecError(
            f"detach: {network!r:.100} ends with this process: pass a Network, which is kept, or 'internet'"
        )
    if any(port.fd is not None for port in spec.publish):
        raise SpecError("detach: a listening socket can't be passed to it: publish the port by its number")


def kept_network(spec: Spec) -> tuple[Spec, str | None]:
    """Return a description whose network outlives this process, and the name of a network that was created for it.

    Raises:
        StateError: a different network of that name is kept.
        SetupError: it can't be created.

    Side effects: a process that keeps the network, if there was none of its name.
    """
    from containerkit.spec.network import Attach, Network

    attach = spec.network if isinstance(spec.network, Attach) else None
    network = spec.network if attach is None else attach.network
    if not isinstance(network, Network):
        return spec, None
    from containerkit.network import keeper

    kept, made = keeper.Kept(network.name), None
    try:
        told = kept.inspect()
    except StateError:
        keeper.create(network)
        made = network.name
    else:
        if told["internal"] != network.internal or network.mtu not in (None, told["mtu"]):
            raise StateError(f"network {network.name}: a different network of that name is kept: choose another name")
    chosen: Any = kept if attach is None else evolve(attach, network=kept)
    return evolve(spec, network=chosen), made


def drop_network(name: str) -> None:
    """Remove a network that :func:`kept_network` has created, unless another container uses it now."""
    from containerkit.network import keeper

    with suppress(ContainerError):
        keeper.remove(name, force=False)


class Attendant:
    """The process that serves the network of one container.

    Attributes:
        pidfd: of the process.
        life: a socket; the process ends when it is closed.
        network: the network, for the description.
    """

    def __init__(self, entry: Entry) -> None:
        import socket
        import subprocess

        from containerkit.network.kept import Kept

        directory = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # The path may be too long for a socket. The path of the descriptor is short.
        at = f"/proc/self/fd/{directory}/network"
        self.life, theirs = socket.socketpair()
        read, write = os.pipe2(os.O_CLOEXEC)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listening, theirs:
            if os.path.lexists(at):
                os.unlink(at)  # from a former run
            listening.bind(at)
            listening.listen(8)
            given = (listening.fileno(), write, theirs.fileno())
            # A new interpreter has none of our locks, and takes less memory than a fork.
            words = [sys.executable, "-sP", "-c", _PROGRAM, os.pathsep.join(map(os.path.abspath, sys.path))]
            null = subprocess.DEVNULL
            process = subprocess.Popen(
                [*words, *map(str, given)], pass_fds=given, stdin=null, stdout=null, stderr=null, cwd="/"
            )
        os.close(write)
        self.pid: int = process.pid
        self.pidfd: int = os.pidfd_open(process.pid)
        self.network: Kept = Kept("internet", at)
        process.returncode = 0  # the keeper reaps it
        told = os.read(read, _LARGEST)
        os.close(read)
        if told != b"{}":
            self._fail(told)

    def _fail(self, told: bytes) -> None:
        import json

        from containerkit.network.kept import error_of

        self.life.close()
        if not told:
            raise StateError("network internet: its attendant has ended")
        raise error_of(json.loads(told))


_PROGRAM: Final = """
import os, sys
sys.path[:] = sys.argv[1].split(os.pathsep)
from containerkit.detached.wiring import main
main([int(word) for word in sys.argv[2:]])
"""


def main(given: list[int]) -> None:
    """Serve a network until the process at the other end of the last descriptor has ended.

    Args:
        given: descriptors: the listening socket, a pipe for the result of the opening, and a socket.
    """
    from socket import socket

    from containerkit.network.keeper import serve
    from containerkit.spec.network import Network

    for fd in given:
        os.set_inheritable(fd, False)
    listening, ready, life = given
    serve(Network("internet", isolated=True), socket(fileno=listening), ready, socket(fileno=life))


def _attendant(entry: Entry) -> Attendant:
    """Start an attendant. A killed one may have left a link that the kernel is still removing."""
    deadline = time.monotonic() + _LEFT_S
    while True:
        try:
            return Attendant(entry)
        except SetupError as error:
            if error.errno != EEXIST or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _wait_until_left(network: Kept, own: str) -> None:
    """Wait until the network has released the ports and addresses of a former run, which may be needed again."""
    deadline = time.monotonic() + _LEFT_S
    while any(own in each["names"] for each in network.inspect()["containers"]) and time.monotonic() < deadline:
        time.sleep(0.002)


def wired(spec: Spec, entry: Entry, name: str) -> tuple[Spec, Attendant | None]:
    """Return a description that can be started, and the attendant of its network, if it has one.

    Args:
        spec: the recorded description.
        entry: the record.
        name: of the container, by which others on its network find it.

    Raises:
        StateError, SetupError, UnsupportedError: the network can't be created or joined.
    """
    from containerkit.spec.network import OTHER, Attach

    network = spec.network
    if network in ("none", "host") or type(network).__name__ == "Macvlan":
        return spec, None
    if isinstance(network, str) and network.startswith(OTHER):  # found by its id or name at each start
        return spec, None
    attach = network if isinstance(network, Attach) else Attach(network)
    attendant = None
    if attach.network == "internet":
        attendant = _attendant(entry)
        attach = evolve(attach, network=attendant.network)
    else:
        from containerkit.network.kept import Kept

        assert isinstance(attach.network, Kept)
        _wait_until_left(attach.network, entry.id)
    aliases = (*_host_names(name, entry.id), *attach.aliases)
    return evolve(spec, network=evolve(attach, aliases=tuple(dict.fromkeys(aliases)))), attendant


def _host_names(*names: str) -> list[str]:
    """Return the names that are valid host names."""
    from containerkit.spec.network import host_name

    found = []
    for name in names:
        with suppress(SpecError):
            found.append(host_name(name, "name"))
    return found
