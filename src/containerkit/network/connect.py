"""Connects containers to their networks.

Prepares descriptions, makes the networks of starts, attaches running containers.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import _native
from containerkit._linux.hostroot import HOSTNAME
from containerkit.errors import SpecError, StateError
from containerkit.namespace import Kind
from containerkit.network import elsewhere, files
from containerkit.network.endpoint import Endpoint, make_owned, may_take_short_way, plan_of
from containerkit.network.live import Claim, LiveNetwork, release_all
from containerkit.network.making import Made, Making
from containerkit.plan.tape import Plan
from containerkit.spec.network import CNI, OTHER, Attach, Macvlan, Network, Port, host_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.container.lifecycle import Container
    from containerkit.namespace import Namespace
    from containerkit.network.endpoint import Wire
    from containerkit.network.published import Published
    from containerkit.network.resolver import Peer
    from containerkit.network.router import Router
    from containerkit.plan.program import Program
    from containerkit.spec.container import Spec
    from containerkit.spec.network import DNS, Egress

__all__ = [
    "Connection",
    "Connector",
    "as_names",
    "connected",
    "connected_once",
    "joining",
    "owned",
    "restrict",
    "shared",
]

_INTERNET: Final = Network("internet", isolated=True)
"""The network of ``network="internet"``: containers on it reach the outside but not each other."""

_shared: dict[tuple[int, Network], LiveNetwork] = {}
_lock = threading.Lock()


def shared(network: Network) -> LiveNetwork:
    """Return the network that all containers of this process with an equal description share.

    Side effects: it stays open until the process ends.
    """
    key = os.getpid(), network
    with _lock:
        known = _shared.get(key)
        if known is None or known.closed:
            known = _shared[key] = LiveNetwork(network)
        return known


def _renew() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held the lock at the fork
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_renew)


@attrs.frozen(eq=False)
class Connector:
    """Makes the network of each start of one description.

    Attributes:
        attached: the networks, and how the container is attached to each.
        names: the names of the container.
        ports, egress, dns: those of the description.
        sysctls: parameters of the network namespace, by their path below ``net``.
        has_default_route: whether one of these networks may have its default route.
        latest: the plan of the last container's namespace.
        owner: the user namespace that owns the network namespace (default: that of the router).
    """

    attached: tuple[tuple[LiveNetwork, Attach], ...]
    names: tuple[str, ...]
    ports: tuple[Port, ...]
    egress: Egress | None
    dns: DNS | None
    sysctls: dict[str, str]
    has_default_route: bool = True
    latest: list[Program] = attrs.field(factory=list)
    owner: Namespace | None = None

    @property
    def router(self) -> Router:
        """The router of all its networks."""
        return self.attached[0][0].router

    def make(self) -> Connection:
        """Make the network of one container, as :meth:`take` does, and wait until it is complete."""
        made = self.take()
        try:
            made.finish()
        except BaseException:
            made.close()
            raise
        return made

    def take(self) -> Connection:
        """Make the network of one container. The returned object owns all resources.

        It may be incomplete until :meth:`Connection.finish`: the start that joins it waits for the rest.

        Raises:
            StateError: a network was closed, or an address or port belongs to another container.
            SetupError: an operation failed. Nothing is left behind.
        """
        undo = ExitStack()
        try:
            return self._take(undo)
        except BaseException:
            undo.close()
            raise

    def _take(self, undo: ExitStack) -> Connection:
        router = self.router
        token = object()
        making = None if self.owner is not None else Making(router, self.sysctls, *self.latest)
        if making is not None:
            undo.callback(making.close)
        claims = self._claims(undo)
        addresses = tuple(text for claim in claims for text in claim.addresses)
        self._permit(router, claims, addresses, undo)
        namespace = self._namespace(making, tuple(claim.wire for claim in claims), undo)
        made = Connection.owning(namespace, token, claims, self.dns, self.egress)
        made.ending = undo
        attendant = router.attendant
        undo.callback(router.while_open, attendant.remove_container, token)
        made.attend()
        outward = next((claim for claim in claims if claim.wire.has_default_route), claims[0])
        internal = outward.live.network.internal
        over = outward.wire if not internal and may_take_short_way(outward.wire, self.egress) else None
        for port in sorted(self.ports, key=lambda each: each.last is not None):  # ranges avoid the others
            published = attendant.publish(port, outward.addresses, over, internal=internal)
            undo.callback(published.close)
            made.published.append(published)
            if port.fd is not None:
                made.sockets[port.fd] = fd_inside = _listening(published)
                undo.callback(os.close, fd_inside)
        made.published.sort(key=lambda each: self.ports.index(each.port))
        return made

    def _namespace(self, making: Making | None, wires: tuple[Wire, ...], undo: ExitStack) -> Making | Made:
        if making is not None:
            self.latest[:] = [making.go_on(wires)]
            return making
        assert self.owner is not None
        made = Made(make_owned(self.router, wires, self.sysctls, self.owner.fileno()))
        undo.callback(made.close)
        return made

    def _claims(self, undo: ExitStack) -> list[Claim]:
        claims: list[Claim] = []
        undo.callback(release_all, claims)
        has_default_route = self.has_default_route
        for position, (live, attach) in enumerate(self.attached):
            live.claim(attach, position, self.names, has_default_route=has_default_route, into=claims)
            has_default_route = has_default_route and live.network.internal
        return claims

    def _permit(self, router: Router, claims: list[Claim], addresses: tuple[str, ...], undo: ExitStack) -> None:
        for claim in claims:
            undo.callback(router.while_open, router.rules.remove_endpoint, claim.wire.port)
            router.rules.add_endpoint(claim.wire.port, claim.wire.mac, claim.addresses)
        restrict(router, addresses, self.egress, undo)


def _listening(published: Published) -> int:
    """Return a descriptor of a port's listening socket. Its number is one that starts do not use."""
    fd = fcntl.fcntl(published.fileno(), fcntl.F_DUPFD_CLOEXEC, _native.LOWEST)
    with socket.socket(fileno=os.dup(fd)) as listening:
        listening.listen()
    return fd


@attrs.define(kw_only=True, eq=False, repr=False, weakref_slot=False)
class Connection(Endpoint):
    """The network namespace of a container on networks of this library.

    Attributes:
        claims: its claim on each network.
        token: identifies it to the attendant.
        dns, egress: the name servers, and the egress rules.
        published: its published ports.
        peers: ask the resolvers of its networks that belong to other processes.
        sockets: descriptors of the listening sockets that its commands inherit, by their numbers inside.
        ending: releases all of these.
        making: makes the namespace, and owns its descriptor; None once it is closed.
    """

    claims: list[Claim]
    token: object
    dns: DNS | None = None
    egress: Egress | None = None
    peers: tuple[Peer, ...] = ()
    published: list[Any] = attrs.field(factory=list)
    sockets: dict[int, int] = attrs.field(factory=dict)
    ending: ExitStack = attrs.field(factory=ExitStack)

    making: Making | Made | None = None

    @classmethod
    def owning(
        cls,
        making: Making | Made,
        token: object,
        claims: list[Claim],
        dns: DNS | None = None,
        egress: Egress | None = None,
    ) -> Connection:
        """Return a connection to the namespace that is being made. Its ``ending`` must close that."""
        return cls(
            kind=Kind.NETWORK,
            device=0,  # they are known when it exists
            inode=0,
            fd=-1,
            claims=claims,
            token=token,
            dns=dns,
            egress=egress,
            making=making,
        )

    def fileno(self) -> int:
        """Return the descriptor as soon as the namespace exists. The handle still owns it.

        Raises:
            StateError: the handle is closed.
            SetupError: the namespace could not be made.
        """
        if self._fd < 0 and self.making is not None:
            self._fd = self.making.fileno()
            status = os.fstat(self._fd)
            self.device, self.inode = status.st_dev, status.st_ino
        return super(Connection, self).fileno()  # noqa: UP008 - as in close

    @property
    def awaited(self) -> int:
        """The address of what a start must wait for, 0 if it is complete."""
        return 0 if self.making is None else self.making.awaited

    def finish(self) -> None:
        """Wait until it is complete.

        Raises:
            SetupError: an operation failed.
        """
        if self.making is not None:
            self.fileno()
            self.making.finish()

    def plan(self) -> Plan:
        """Return the operations that made it, for display."""
        router = self.claims[0].live.router
        return Plan(plan_of(router, [claim.wire for claim in self.claims], {}))

    def named(self, name: str) -> None:
        """Add a name by which other containers find it, if it is a valid host name."""
        try:
            known = host_name(name, "id")
        except SpecError:
            return
        self.claims[:] = [each._replace(names=tuple(dict.fromkeys((known, *each.names)))) for each in self.claims]
        for claim in self.claims:
            claim.live.renamed(claim)
        self.attend()
        for each in self._beside:
            each.named(name)

    def ask(self, peers: tuple[Peer, ...]) -> None:
        """Use these resolvers for names that its own networks do not know."""
        self.peers = peers
        self.attend()

    def attend(self) -> None:
        """Register it with the router's attendant under its present names."""
        attendant = self.claims[0].live.router.attendant
        attendant.remove_container(self.token)
        for claim in self.claims:
            attendant.add_container(self.token, claim.live.bridge, claim.addresses, claim.names)
        attendant.set_policy(self.token, self.dns, self.egress, self.peers)

    def close(self) -> None:
        """Release all its resources on its networks. May be called twice."""
        self._fd = -1  # closed with the other resources
        if not hasattr(self, "ending"):  # a signal handler raised before it was made
            return
        try:
            self.ending.close()
        except BaseException:  # a signal handler may have raised in one of its functions
            release_all(self.claims)
            if self.making is not None:
                self.making.close()
            raise
        self.making = None
        super(Connection, self).close()  # noqa: UP008 - attrs replaces a class with slots, so super() fails


def open_network(network: Network) -> LiveNetwork:
    """Open a network; see :meth:`containerkit.Network.open`."""
    return LiveNetwork(network)


# --- What a description means


def connected(spec: Spec) -> Spec:
    """Return a copy of a description in which the network is a namespace to join, with its files in /etc.

    Raises:
        SpecError: the network is not possible as described.
        UnsupportedError, SetupError: a network can't be opened.
    """
    network = spec.network
    if isinstance(network, str) and network in ("none", "host"):
        host = files.no_address if network == "none" else files.loopback
        hosts = files.hosts_file(spec.hosts, spec.hostname, host) if spec.hosts else None
        servers = () if spec.dns is None or spec.dns.servers == "host" else spec.dns.servers
        resolv = files.resolv_conf(servers, spec.dns) if servers else None
        return attrs.evolve(spec, network="none", hosts=(), dns=None, mounts=files.mounts(spec.mounts, hosts, resolv))
    if hasattr(network, "namespace"):
        return _of_pod(spec, network)
    if isinstance(network, str) and network.startswith(OTHER):
        other = elsewhere.find(network.removeprefix(OTHER))
        return joining(spec, other, *other.files())
    if isinstance(network, (Macvlan, CNI)):
        return _outside(spec, network)
    attachments = _attachments(network)
    if any(not isinstance(attach.network, (Network, LiveNetwork, str)) for attach in attachments):
        from containerkit.network.several import of_keepers

        return of_keepers(spec, attachments)
    attached = attached_to(attachments)
    gateways = attached[0][0].gateways
    names = () if spec.hostname in (None, HOSTNAME) else as_names(spec.hostname)
    connector = Connector(attached, names, spec.publish, spec.egress, spec.dns, network_sysctls(spec))
    hosts = files.hosts_file(spec.hosts, spec.hostname, files.own_address)
    return joining(spec, connector, hosts, files.resolv_conf(gateways[:1], spec.dns))


def attached_to(attachments: Iterable[Attach]) -> tuple[tuple[LiveNetwork, Attach], ...]:
    """Return the networks of some attachments, each with its attachment. Networks that are not open are opened.

    Raises:
        StateError: one belongs to another process.
    """
    attached = tuple((_live(attach), attach) for attach in attachments)
    if any(live.router is not attached[0][0].router for live, _ in attached):
        raise StateError("networks: one container can't be on networks of different processes")
    return attached


def owned(spec: Spec, owner: Namespace) -> Spec:
    """Return the result of :func:`connected`, in which a user namespace owns the network namespace.

    Raises:
        SpecError: this is not possible for such a network.
    """
    known = connected(spec)
    choice = known.namespaces.network
    if choice in ("new", "host"):
        return known
    if not isinstance(choice, Connector):
        raise SpecError(
            "network: with a container for each task it must be one that this process has open, or 'internet'; pass "
            "isolation='fork' for another one"
        )
    return attrs.evolve(known, namespaces=attrs.evolve(known.namespaces, network=attrs.evolve(choice, owner=owner)))


def as_names(hostname: str | None) -> tuple[str, ...]:
    """Return the names by which other containers find a container; none if it has no valid host name."""
    try:
        return (host_name(hostname, "hostname"),)
    except SpecError:
        return ()


def _live(attach: Attach) -> LiveNetwork:
    network = _INTERNET if attach.network == "internet" else attach.network
    if isinstance(network, Network):
        return shared(network)
    assert isinstance(network, LiveNetwork)
    return network


def _attachments(network: Any) -> tuple[Attach, ...]:
    listed = network if isinstance(network, tuple) else (network,)
    return tuple(each if isinstance(each, Attach) else Attach(each) for each in listed)


def network_sysctls(spec: Spec) -> dict[str, str]:
    """Return the parameters of its network namespace, by their path below ``net``."""
    prefix = "net."
    return {name[len(prefix) :].replace(".", "/"): value for name, value in spec.sysctls if name.startswith(prefix)}


def joining(spec: Spec, choice: Any, hosts: bytes | str | None, resolv: bytes | str | None) -> Spec:
    """Return a copy of a description that joins the namespace ``choice``, with these files in its /etc."""
    return attrs.evolve(
        spec,
        network="none",
        publish=(),
        egress=None,
        dns=None,
        hosts=(),
        sysctls={name: value for name, value in spec.sysctls if not name.startswith("net.")},
        namespaces=attrs.evolve(spec.namespaces, network=choice),
        mounts=files.mounts(spec.mounts, hosts, resolv),
    )


@attrs.frozen(eq=False)
class _Pod:
    """Provides the network of another container."""

    other: Any

    def take(self) -> Any:
        return self.other.namespace("network")


def _of_pod(spec: Spec, other: Container) -> Spec:
    wishes = other.spec
    theirs = wishes if wishes.network in ("none", "host") else connected_once(wishes)
    found = {mount.target: mount.content for mount in theirs.mounts if mount.type == "file"}
    return joining(spec, _Pod(other), found.get(files.HOSTS), found.get(files.RESOLV))


def connected_once(spec: Spec) -> Spec:
    """Return the result of :func:`connected`, which is computed once for each description."""
    known = spec.connected
    if known is None or _is_stale(known):
        known = connected(spec)
        object.__setattr__(spec, "connected", known)
    return known


def _is_stale(spec: Spec) -> bool:
    choice = spec.namespaces.network
    # Another keeper or container of the same name may have replaced the one that was asked.
    if hasattr(choice, "kept") or isinstance(choice, elsewhere.Elsewhere):
        return True
    return isinstance(choice, Connector) and any(
        live.closed or live.router.pid != os.getpid() for live, _ in choice.attached
    )


def _outside(spec: Spec, network: Macvlan | CNI) -> Spec:
    if isinstance(network, Macvlan):
        from containerkit.network.macvlan import Maker

        maker: Any = Maker(network, network_sysctls(spec))
    else:
        from containerkit.network.cni import Plugins

        maker = Plugins.of(network, spec.publish, network_sysctls(spec))
    servers = () if spec.dns is None or spec.dns.servers == "host" else spec.dns.servers
    resolv = files.resolv_conf(servers, spec.dns) if servers else maker.resolv_conf()
    return joining(spec, maker, files.hosts_file(spec.hosts, spec.hostname, files.no_address), resolv)


def restrict(router: Router, addresses: tuple[str, ...], egress: Egress | None, undo: ExitStack) -> None:
    """Allow addresses to reach only the destinations of the rules."""
    if egress is None:
        return
    for rules in (router.rules, router.host_rules):
        if rules is not None:
            undo.callback(router.while_open, rules.set_egress, addresses, None)
            rules.set_egress(addresses, egress)
