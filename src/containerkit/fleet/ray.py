"""Ray as the engine of a fleet."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, ClassVar

from containerkit.errors import SpecError, UnsupportedError
from containerkit.fleet.engine import Node
from containerkit.fleet.perform import perform
from containerkit.fleet.workers import WorkerEngine

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from concurrent.futures import Future

    from containerkit.cgroup import Limits
    from containerkit.fleet.channel import Held, Ticket

__all__ = ["RayEngine"]


class RayEngine(WorkerEngine[Any]):
    """Tasks are Ray tasks, whose ``num_cpus`` and ``memory`` are the container's limits.

    Args:
        address: of the cluster, as for ``ray.init``. Ignored if this program is already connected to one, which then
            stays connected.
        host: the address on which this driver listens (default: this node's address in the cluster).

    Raises:
        UnsupportedError: Ray is not installed.
        SpecError: the cluster is reached through a Ray client, or uses TLS and the certificate can't be read.
    """

    name: ClassVar[str] = "ray"

    def __init__(self, address: str | None, host: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UnsupportedError("import", 2, "ray", "pip install containerkit[ray]") from error
        tls = _context(driver=True) if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true") else None
        if address is not None and address.startswith("ray://"):
            raise SpecError(
                f"Fleet.ray({address!r}): a Ray client is outside of the cluster, but nodes must reach the driver "
                "(hint: run it on a node: ray job submit)"
            )
        self._ray: Any = ray
        self._ours = not ray.is_initialized()
        if self._ours:
            ray.init(address=address, logging_level="warning", log_to_driver=False)
        super().__init__(host or ray.util.get_node_ip_address(), tls)
        self._task: Any = ray.remote(max_retries=0)(_perform)

    def carry(
        self,
        ticket: Ticket,
        limits: Limits | None,
        more: dict[str, Any],
        through: Callable[[BaseException | None], None],
    ) -> Any:
        """Submit a Ray task."""
        needs: dict[str, Any] = {}
        if limits is not None and limits.cpus is not None:
            needs["num_cpus"] = limits.cpus
        if limits is not None and isinstance(limits.memory, int):
            needs["memory"] = limits.memory
        ref = self._task.options(name=f"containerkit {ticket.id}", **needs).remote(ticket, **more)

        def done(future: Future[None]) -> None:
            through(InterruptedError("it was cancelled") if future.cancelled() else future.exception())

        ref.future().add_done_callback(done)
        return ref

    def withdraw(self, handle: Any) -> None:
        """Cancel it if it has not begun."""
        self._ray.cancel(handle, force=False)

    def kill(self, handle: Any, held: Held) -> None:  # noqa: ARG002 - Ray finds it by the handle
        """Kill its worker process, which belongs to this task only."""
        self._ray.cancel(handle, force=True)

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that are alive."""
        found = []
        for node in self._ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                memory = has.get("memory")
                found.append(
                    Node(
                        name=_name(node.get("NodeName") or node["NodeManagerAddress"], node["NodeID"]),
                        cpus=has.get("CPU", 0.0),
                        memory_bytes=None if memory is None else int(memory),
                    )
                )
        return tuple(sorted(found, key=lambda node: node.name))

    def close(self) -> None:
        """Disconnect from the cluster, unless the program was connected before."""
        super().close()
        if self._ours and self._ray.is_initialized():
            self._ray.shutdown()


def _name(name: str, node: str) -> str:
    return f"{name}/{node[:8]}"


def _perform(ticket: Ticket, **more: Any) -> None:
    import ray

    perform(ticket, _own_name(ray), tls=_context, **more)


def _context(*, driver: bool = False) -> ssl.SSLContext:
    """Return the certificates that Ray uses on this node, and the authority for those of others.

    Names in certificates are not checked, because any holder of a certificate of the cluster can run code on all nodes.

    Raises:
        SpecError: they can't be read.
    """
    import ssl

    found = [os.environ.get(f"RAY_TLS_{name}", "") for name in ("SERVER_CERT", "SERVER_KEY", "CA_CERT")]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT if driver else ssl.PROTOCOL_TLS_SERVER)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(found[0], found[1])
        context.load_verify_locations(found[2])
    except OSError as error:
        raise SpecError(
            f"Fleet.ray: certificates {found}: {error} (hint: RAY_USE_TLS needs RAY_TLS_SERVER_CERT, "
            "RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT)"
        ) from error
    return context


_names: list[str] = []


def _own_name(ray: Any) -> str:
    """Return the name of this node. Each worker asks Ray once."""
    if not _names:
        node = ray.get_runtime_context().get_node_id()
        known = {each["NodeID"]: each.get("NodeName") or each["NodeManagerAddress"] for each in ray.nodes()}
        _names.append(_name(known.get(node, ""), node))
    return _names[0]
