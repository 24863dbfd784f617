"""Turns a project's networks into networks of the library, on which containers have their services' names."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from containerkit.errors import SpecError
from containerkit.project.realize import network_options
from containerkit.spec.network import Attach, Network

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.network import LiveNetwork
    from containerkit.project.project import Project

__all__ = ["connection", "described"]


def described(name: str, keys: Mapping[str, Any]) -> Network | None:
    """Return the description of a network, or None for an external one.

    Raises:
        SpecError: a value is not supported.
    """
    if keys.get("external"):
        return None
    subnets: list[str] = []
    for each in keys.get("ipam", {}).get("config", ()):
        if "subnet" in each:
            subnets.append(each["subnet"])
            _check_gateway(name, each)
    if not subnets:
        subnets = ["auto4"] if keys.get("enable_ipv4", True) else []
        subnets += ["auto6"] if keys.get("enable_ipv6") else []
    options = keys.get("driver_opts", {})
    mtu = options.get("com.docker.network.driver.mtu")
    if mtu is not None and not mtu.isdecimal():
        raise SpecError(f"networks.{name}.driver_opts.com.docker.network.driver.mtu: {mtu!r:.60} is not a number")
    return Network(
        _short(keys["name"]), subnets=tuple(subnets), internal=bool(keys.get("internal")),
        mtu=None if mtu is None else int(mtu),
        isolated=options.get("com.docker.network.bridge.enable_icc") == "false",
    )  # fmt: skip


def _check_gateway(name: str, each: Mapping[str, Any]) -> None:
    try:
        first = ipaddress.ip_network(each["subnet"], strict=False).network_address + 1
    except ValueError as error:
        raise SpecError(f"networks.{name}.ipam: {error}") from None
    if each.get("gateway", str(first)) != str(first):
        raise SpecError(f"networks.{name}.ipam.gateway: it must be the first address of the subnet, {first}")


def _short(name: str) -> str:
    return name[:63]


def connection(
    project: Project,
    service: str,
    container: str,
    networks: Mapping[str, LiveNetwork],
    shared: Callable[[str], Any],
) -> dict[str, Any]:
    """Return the arguments of a container for its networks.

    Args:
        project: the project.
        service: the service of the container.
        container: the container's name.
        networks: the open networks.
        shared: returns the container of a service whose network is shared.
    """
    keys = project.model["services"][service]
    mode = keys.get("network_mode")
    if mode in ("none", "host"):
        if keys.get("ports") and mode == "none":
            raise SpecError(f"services.{service}.ports: ports need a network")
        return {"network": mode}
    if mode is not None and mode.startswith("service:"):
        return {"network": shared(mode.removeprefix("service:"))}
    if mode is not None:
        return {"network": "internet", **network_options(keys)}
    ranked = sorted((keys.get("networks") or {}).items(), key=_rank)
    attached = [_attach(project, service, container, name, how or {}, networks) for name, how in ranked]
    if "mac_address" in keys and attached:
        import attrs

        attached[0] = attrs.evolve(attached[0], mac=keys["mac_address"])
    return {"network": attached, **network_options(keys)}


def _rank(item: tuple[str, Any]) -> tuple[int, int]:
    how = item[1] or {}
    return -how.get("gw_priority", 0), -how.get("priority", 0)


def _attach(
    project: Project,
    service: str,
    container: str,
    name: str,
    how: Mapping[str, Any],
    networks: Mapping[str, LiveNetwork],
) -> Attach:
    network: Any = networks.get(name)
    if network is None:
        from containerkit.network.keeper import Kept

        network = Kept(project.model["networks"][name]["name"])
    links = [
        link.partition(":")[2]
        for keys in project.model["services"].values()
        for link in keys.get("links", ())
        if link.partition(":")[0] == service and ":" in link
    ]
    addresses = [how[key] for key in ("ipv4_address", "ipv6_address") if key in how]
    aliases = dict.fromkeys((service, *how.get("aliases", ()), *links, container))
    return Attach(
        network, aliases=tuple(aliases), addresses=tuple(addresses), mac=how.get("mac_address"),
        interface=how.get("interface_name"),
    )  # fmt: skip
