"""Containers on several networks, of this process and of keepers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs

from containerkit._linux.hostroot import HOSTNAME
from containerkit.errors import SpecError, StateError
from containerkit.network import files
from containerkit.network.connect import Connector, as_names, attached_to, joining, network_sysctls
from containerkit.network.kept import Kept, Remote

if TYPE_CHECKING:
    from containerkit.network.endpoint import Endpoint
    from containerkit.spec.container import Spec
    from containerkit.spec.network import Attach

__all__ = ["of_keepers"]


@attrs.frozen(eq=False)
class Several:
    """Makes the network of each start of one description. One maker makes the namespace, then the guests join it.

    Attributes:
        maker: makes the namespace and the first interfaces, and has the resolver.
        guests: the makers of other interfaces, with the position of each interface.
    """

    maker: Connector | Remote
    guests: tuple[tuple[Remote, int], ...]
    kept = True

    def take(self) -> Endpoint:
        """Make the network of one container. The returned object owns all resources.

        Raises:
            StateError, SpecError, SetupError: it failed. Nothing is left behind.
        """
        made: Any = self.maker.make() if isinstance(self.maker, Connector) else self.maker.take()
        try:
            peers = []
            for remote, position in self.guests:
                joined = remote.join(made.fileno(), position)
                made.beside(joined)
                peers.append(joined.peer)
            if peers:
                made.ask(tuple(peers))
        except BaseException:
            made.close()
            raise
        network: Endpoint = made
        return network


def of_keepers(spec: Spec, attachments: tuple[Attach, ...]) -> Spec:
    """Return a copy of a description that joins networks, some of which belong to keepers.

    Raises:
        StateError: a network does not exist, or an unprivileged user's are in different user namespaces.
        SpecError: a listening socket would belong to a keeper.
    """
    named = [attrs.evolve(each, interface=each.interface or f"eth{at}") for at, each in enumerate(attachments)]
    kept = {at: each.network for at, each in enumerate(named) if isinstance(each.network, Kept)}
    description = {network.name: network.inspect(joins=True) for network in kept.values()}
    if len(description) != len(kept):
        raise SpecError("network: several attachments must name different networks")
    attached = attached_to(each for at, each in enumerate(named) if at not in kept)
    _check_reachable(description, attached)
    inner = [_is_internal(each, description) for each in named]
    leader = inner.index(False) if False in inner else 0
    names = () if spec.hostname in (None, HOSTNAME) else as_names(spec.hostname)

    def connector(which: list[int]) -> Connector:
        ports = spec.publish if leader in which else ()
        chosen = attached if which == mine else ()
        sysctls = network_sysctls(spec)
        return Connector(chosen, names, ports, spec.egress, spec.dns, sysctls, has_default_route=leader in which)

    mine = [at for at in range(len(named)) if at not in kept]
    theirs = list(kept)
    if leader in theirs and any(port.fd is not None for port in spec.publish):
        raise SpecError("publish: a keeper can't pass a listening socket on: open the network in this process")
    maker: Connector | Remote
    if mine:
        maker, gateways = connector(mine), attached[0][0].gateways
    else:
        first = theirs.pop(0)
        maker = Remote.of(named[first], connector([first]))
        gateways = tuple(description[kept[first].name]["gateways"])
    numbered = enumerate(theirs, len(mine) or 1)
    guests = tuple((Remote.of(named[at], connector([at])), number) for number, at in numbered)
    hosts = files.hosts_file(spec.hosts, spec.hostname, files.own_address)
    return joining(spec, Several(maker, guests), hosts, files.resolv_conf(gateways[:1], spec.dns))


def _is_internal(attach: Attach, description: dict[str, dict[str, Any]]) -> bool:
    network = attach.network
    if isinstance(network, Kept):
        return bool(description[network.name]["internal"])
    return bool(getattr(getattr(network, "network", network), "internal", False))


def _check_reachable(description: dict[str, dict[str, Any]], attached: Any) -> None:
    """Refuse networks of an unprivileged user that are in different user namespaces."""
    places = {answer["user_namespace"]: name for name, answer in description.items()}
    for live, _ in attached:
        holder = live.router.holder
        places[os.fstat(holder).st_ino if holder >= 0 else 0] = live.network.name
    if len(places) > 1:
        names = " and ".join(sorted(places.values()))
        raise StateError(
            f"networks {names}: they are in two user namespaces, and a container can only be in one; create one of "
            "them again while the other exists, or open this process's own after a container was on the other"
        )
