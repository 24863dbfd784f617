"""The options that describe a container's network."""

from __future__ import annotations

from containerkit.cli import values
from containerkit.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

__all__ = ["define", "fields"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}
_KEYS: Final = ("alias", "ip", "ip6", "mac", "interface", "down", "up")


def define(group: Any) -> None:
    """Add the options."""
    group.add_argument(
        "--network",
        metavar="NAME[:OPTION=VALUE,...]",
        **_LISTS,
        help="none (default), host, internet, a network of 'containerkit network create', container:ID (or its "
        f"name) for the network of that container, macvlan:INTERFACE or "
        f"cni:NAME; options of a network are {', '.join(_KEYS)}; repeatable",
    )
    group.add_argument(
        "-p",
        "--publish",
        metavar="[HOST:][PORT:]PORT[/udp]",
        **_LISTS,
        help="publish a port or a range of ports on the host, by default on 127.0.0.1; repeatable",
    )
    group.add_argument(
        "-P", "--publish-all", action="store_true", help="publish all ports that the image exposes, on free ports"
    )
    group.add_argument(
        "--egress",
        metavar="NAME|*.NAME|CIDR[:PORT]",
        **_LISTS,
        help="a destination that it may reach, all others are blocked; or 'none'; repeatable",
    )
    group.add_argument("--dns", metavar="ADDRESS", **_LISTS, help="a name server (default: those of the host)")
    group.add_argument("--dns-search", metavar="DOMAIN", **_LISTS, help="a domain for names without dots; repeatable")
    group.add_argument(
        "--add-host",
        metavar="NAME:ADDRESS",
        **_LISTS,
        help="add a line to /etc/hosts; the address may be host-gateway, the host's own",
    )


def fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`containerkit.Container` for its network.

    Raises:
        SpecError: a value is invalid, or options contradict each other.
    """
    found: dict[str, Any] = {}
    if options.network:
        found["network"] = _network(options.network)
    if options.publish:
        found["publish"] = tuple(options.publish)
    if options.egress:
        from containerkit.spec.traffic import Egress

        nothing = options.egress == ["none"]
        found["egress"] = Egress.nothing() if nothing else Egress.only(*options.egress)
    if options.dns or options.dns_search:
        from containerkit.spec.network import DNS

        found["dns"] = DNS(servers=tuple(options.dns) or "host", search=tuple(options.dns_search))
    if options.add_host:
        found["hosts"] = dict(host(text) for text in options.add_host)
    return found


def host(text: str) -> tuple[str, str]:
    name, mark, address = text.partition(":")
    if not mark:
        name, mark, address = text.partition("=")
    if not mark:
        raise SpecError(f"--add-host: {text!r} is not NAME:ADDRESS")
    return name, address.strip("[]")


def _network(wishes: list[str]) -> Any:
    if len(wishes) > 1:
        return [_one(text) for text in wishes]
    return _one(wishes[0])


def _one(text: str) -> Any:
    kind, mark, rest = text.partition(":")
    if text in ("none", "host", "internet") or (kind == "container" and mark):
        return text
    if kind == "macvlan" and mark:
        return _macvlan(rest)
    if kind == "cni" and mark:
        from containerkit.spec.network import CNI

        return CNI(rest)
    from containerkit.network.keeper import Kept
    from containerkit.spec.network import Attach, Rate

    chosen = values.pairs("--network", rest.split(",")) if rest else {}
    aliases = [text.partition("=")[2] for text in rest.split(",") if text.startswith("alias=")]
    if strange := [name for name in chosen if name not in _KEYS]:
        raise SpecError(f"--network {kind}: unknown option {strange[0]!r}; choose from {', '.join(_KEYS)}")
    addresses = tuple(chosen[name] for name in ("ip", "ip6") if name in chosen)
    return Attach(
        Kept(kind),
        aliases=aliases,
        addresses=addresses,
        mac=chosen.get("mac"),
        interface=chosen.get("interface"),
        rate=Rate(down=chosen.get("down"), up=chosen.get("up")),
    )


def _macvlan(text: str) -> Any:
    from containerkit.spec.network import Macvlan

    parent, *rest = text.split(",")
    chosen: dict[str, Any] = {}
    for each in rest:
        name, mark, value = each.partition("=")
        if not mark or name not in ("ip", "gateway", "mode", "mac"):
            raise SpecError(f"--network macvlan: unknown option {each!r}; choose from ip=, gateway=, mode=, mac=")
        if name in ("ip", "gateway"):
            chosen.setdefault("addresses" if name == "ip" else name, []).append(value)
        else:
            chosen[name] = value
    return Macvlan(parent, **chosen)
