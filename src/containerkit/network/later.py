"""Attach running containers and existing network namespaces to networks, and detach them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from containerkit.errors import SpecError, StateError
from containerkit.network import endpoint
from containerkit.network.connect import Connection, as_names, restrict
from containerkit.network.live import release_all
from containerkit.spec.network import Attach

if TYPE_CHECKING:
    from containerkit.container.lifecycle import Container
    from containerkit.namespace import Namespace
    from containerkit.network.live import Claim, LiveNetwork
    from containerkit.network.published import Published
    from containerkit.spec.network import DNS, Egress

__all__ = ["Later", "Who", "attach_running", "claims_of", "detach_running", "join", "published_of"]


def claims_of(container: Container) -> list[Claim]:
    """Return the attachments of a container to networks of this library, from its start and later ones."""
    joined = container.joined()
    first = joined.get("network")
    claims = list(first.claims) if isinstance(first, Connection) else []
    claims += [each.claim for each in joined.values() if isinstance(each, Later)]
    return claims


def published_of(container: Container) -> list[Published]:
    """Return the published ports of a container on networks of this library."""
    first = container.joined().get("network")
    return list(first.published) if isinstance(first, Connection) else []


class Later:
    """Another interface of an existing network namespace. It is closed when its container ends."""

    def __init__(self, claim: Claim, ending: ExitStack, namespace: Any, who: Who) -> None:
        self.claim = claim
        self.who = who
        self._ending = ending
        self._namespace = namespace

    def fileno(self) -> int:
        """Return the descriptor of its namespace."""
        number: int = self._namespace.fileno()
        return number

    def named(self, name: str) -> None:
        """Add a name by which other containers find it, if it is a valid host name."""
        known = as_names(name)
        self.claim = self.claim._replace(names=tuple(dict.fromkeys((*known, *self.claim.names))))
        self.claim.live.renamed(self.claim)
        attendant = self.claim.live.router.attendant
        attendant.remove_container(self.who.token, self.claim.live.bridge)
        attendant.add_container(self.who.token, self.claim.live.bridge, self.claim.addresses, self.claim.names)
        attendant.set_policy(self.who.token, self.who.dns, self.who.egress)

    def close(self) -> None:
        """Release its resources on the network. May be called twice."""
        self._ending.close()
        self._namespace.close()


class Who(NamedTuple):
    """The identity of a container for the attendant, and its policy for names."""

    token: object
    dns: DNS | None
    egress: Egress | None


def join(
    live: LiveNetwork,
    attach: Attach,
    namespace: Namespace,
    who: Who,
    names: tuple[str, ...],
    *,
    position: int,
    out: bool,
) -> Later:
    """Attach an existing network namespace to an open network with another interface.

    Args:
        live: the network.
        attach: its aliases, addresses and so on.
        namespace: a handle, which the returned object then owns.
        who: the container.
        names: its names on the network, in addition to the aliases.
        position: the position of this interface among the container's.
        out: whether it has the default route.

    Raises:
        StateError, SpecError, SetupError: it failed. Nothing is left behind, and the handle is closed.
    """
    router = live.router
    with ExitStack() as undo:
        undo.callback(namespace.close)
        claims: list[Claim] = []
        undo.callback(release_all, claims)
        claim = live.claim(attach, position, names, has_default_route=out, into=claims)
        undo.callback(router.while_open, router.rules.remove_endpoint, claim.wire.port)
        router.rules.add_endpoint(claim.wire.port, claim.wire.mac, claim.addresses)
        restrict(router, claim.addresses, who.egress, undo)
        endpoint.join(router, claim.wire, namespace.fileno())
        undo.callback(router.while_open, endpoint.remove_port, router, claim.wire.port)
        undo.callback(router.while_open, router.attendant.remove_container, who.token, live.bridge)
        router.attendant.add_container(who.token, live.bridge, claim.addresses, claim.names)
        router.attendant.set_policy(who.token, who.dns, who.egress)
        return Later(claim, undo.pop_all(), namespace, who)


def attach_running(live: LiveNetwork, container: Container, how: Attach | None) -> tuple[str, ...]:
    """Attach a running container; see :meth:`LiveNetwork.attach`."""
    attach = Attach(live) if how is None else how
    if attach.network is not live:
        raise SpecError(f"attach: {attach.network!r} is a different network than {live!r}")
    present = claims_of(container)
    if any(claim.live is live for claim in present):
        raise StateError(f"{container!r} is on {live!r} already")
    if container.spec.namespaces.network == "host":
        raise SpecError(f"{container!r} shares the host's network; start it with its own network namespace")
    names = tuple(dict.fromkeys((container.id.lower(), *as_names(container.spec.hostname))))
    taken = {claim.wire.number for claim in present}
    position = next(number for number in range(1024) if number + 2 not in taken)
    out = not any(claim.wire.has_default_route for claim in present)
    later = join(live, attach, container.namespace("network"), _policy(container), names, position=position, out=out)
    try:
        container.keep_until_stopped(later.claim.wire.port, later)
    except BaseException:
        later.close()
        raise
    addresses: tuple[str, ...] = later.claim.addresses
    return addresses


def _policy(container: Container) -> Who:
    """Return the policy of a container, which applies to all its networks."""
    first = container.joined().get("network")
    if isinstance(first, Connection):
        return Who(first.token, first.dns, first.egress)
    return Who(object(), container.spec.dns, container.spec.egress)


def detach_running(live: LiveNetwork, container: Container) -> None:
    """Detach a container from a network; see :meth:`LiveNetwork.detach`."""
    joined = container.joined()
    for name, each in joined.items():
        if isinstance(each, Later) and each.claim.live is live:
            container.keep_until_stopped(name, None)
            each.close()
            return
    first = joined.get("network")
    if isinstance(first, Connection):
        for claim in first.claims:
            if claim.live is live:
                endpoint.remove_port(live.router, claim.wire.port)
                live.router.attendant.remove_container(first.token, live.bridge)
                live.router.rules.remove_endpoint(claim.wire.port)
                first.claims.remove(claim)
                # The next container that gets the address must not get the connections to its ports too.
                for published in [each for each in first.published if each.target in claim.addresses]:
                    first.published.remove(published)
                    published.close()
                live.release(claim)
                return
    raise StateError(f"{container!r} is not on {live!r}")
