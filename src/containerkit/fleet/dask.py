"""Dask as the engine of a fleet."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any, ClassVar, Final

from containerkit.errors import SpecError, UnsupportedError
from containerkit.fleet.engine import Node
from containerkit.fleet.perform import perform
from containerkit.fleet.workers import WorkerEngine

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.cgroup import Limits
    from containerkit.fleet.channel import Held, Ticket

__all__ = ["DaskEngine"]

_ENCRYPTED: Final = ("tls://", "wss://")
_ASKED_EVERY_S: Final = 5.0
"""The time in seconds for which the workers' declared resources are cached, because a request takes a round trip."""


class DaskEngine(WorkerEngine[Any]):
    """Tasks are calls of a Dask client.

    Limits become resources of those names, ``cpus`` and ``memory`` (in bytes), if the workers declare them:
    ``dask worker ... --resources "cpus=4 memory=16e9"``. Otherwise a worker runs as many tasks as it has threads.

    Args:
        client: the client of the cluster. The caller closes it.
        host: the address on which this driver listens (default: the one from which it reaches the scheduler).

    Raises:
        UnsupportedError: Dask is not installed.
        SpecError: it is not a client, or its cluster uses TLS and it has no certificate.
    """

    name: ClassVar[str] = "dask"

    def __init__(self, client: Any, host: str | None) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UnsupportedError("import", 2, "distributed", "pip install containerkit[dask]") from error
        if not isinstance(client, Client) or client.asynchronous:
            raise SpecError(f"Fleet.dask: {client!r:.100} is not a synchronous distributed.Client")
        tls = None
        if str(client.scheduler.address).startswith(_ENCRYPTED):
            tls = client.security.get_connection_args("client").get("ssl_context")
            if tls is None:
                raise SpecError(
                    "Fleet.dask: the cluster uses TLS, and the client has no certificate "
                    "(hint: Client(address, security=Security(tls_ca_file=, tls_client_cert=, tls_client_key=)))"
                )
        self._client: Any = client
        self._declared: set[str] = set()
        self._asked_at = -_ASKED_EVERY_S
        super().__init__(host or _address_towards(client.scheduler.address), tls)

    def carry(
        self,
        ticket: Ticket,
        limits: Limits | None,
        more: dict[str, Any],
        through: Callable[[BaseException | None], None],
    ) -> Any:
        """Submit a call."""
        future = self._client.submit(
            _perform,
            ticket,
            **more,
            key=f"containerkit-{ticket.id}",
            pure=False,
            retries=0,
            resources=self._needs(limits),
        )

        def done(future: Any) -> None:
            through(None if future.status == "finished" else _error_of(future))

        future.add_done_callback(done)
        return future

    def _needs(self, limits: Limits | None) -> dict[str, float] | None:
        """Return the resources that a task needs, restricted to those that workers declare."""
        wanted: dict[str, float] = {}
        if limits is not None and limits.cpus is not None:
            wanted["cpus"] = limits.cpus
        if limits is not None and isinstance(limits.memory, int):
            wanted["memory"] = limits.memory
        if not wanted:
            return None
        if time.monotonic() > self._asked_at + _ASKED_EVERY_S:
            self._declared = {name for worker in self._workers().values() for name in worker.get("resources", {})}
            self._asked_at = time.monotonic()
        return {name: amount for name, amount in wanted.items() if name in self._declared} or None

    def _workers(self) -> dict[str, Any]:
        known: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return known

    def withdraw(self, handle: Any) -> None:
        """Cancel it."""
        handle.cancel()

    def kill(self, handle: Any, held: Held) -> None:  # noqa: ARG002 - the worker is found by its name
        """Restart its worker, if it has a nanny. Other tasks on the worker are lost."""
        for address, worker in self._workers().items():
            if str(worker["name"]) == held.node:
                self._client.restart_workers([address], raise_for_error=False)

    def nodes(self) -> tuple[Node, ...]:
        """Return the workers."""
        found = []
        for worker in self._workers().values():
            has = worker.get("resources", {})
            memory = has.get("memory")
            found.append(
                Node(
                    name=str(worker["name"]),
                    cpus=has.get("cpus"),
                    memory_bytes=None if memory is None else int(memory),
                )
            )
        return tuple(sorted(found, key=lambda node: node.name))


def _error_of(future: Any) -> BaseException:
    if future.status == "error":
        error = future.exception()
        if isinstance(error, BaseException):
            return error
    return InterruptedError(f"Dask's future is {future.status}")


def _address_towards(scheduler: str) -> str:
    """Return the address of this machine from which it reaches the scheduler. Nothing is sent."""
    kind, _, place = scheduler.rpartition("://")
    if kind not in ("", "tcp", "ws", *(each.rstrip(":/") for each in _ENCRYPTED)):
        return "127.0.0.1"  # inproc: the cluster is in this process
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((host, int(port)))
        return str(sock.getsockname()[0])


def _perform(ticket: Ticket, **more: Any) -> None:
    from distributed import get_worker

    worker = get_worker()

    def tls() -> ssl.SSLContext:
        context: ssl.SSLContext | None = worker.security.get_listen_args("worker").get("ssl_context")
        if context is None:
            raise PermissionError("the driver requires TLS, and the worker has no certificate")
        return context

    perform(ticket, str(worker.name), tls=tls, **more)
