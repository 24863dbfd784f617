"""The files /etc/hosts and /etc/resolv.conf of a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from containerkit._linux.hostroot import HOSTNAME, hosts_line
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.spec.network import DNS

__all__ = ["hosts_file", "mounts", "resolv_conf"]

HOSTS: Final = "/etc/hosts"
RESOLV: Final = "/etc/resolv.conf"
GATEWAY: Final = "host-gateway"
"""The name that means the address of the gateway, as in Docker."""

_OPTIONAL: Final = (("optional", None),)
_LOCAL: Final = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hosts_file(pairs: Iterable[tuple[str, str]], hostname: str | None, gateways: tuple[str, ...]) -> bytes:
    """Return the text of /etc/hosts.

    Args:
        pairs: names and addresses, or :data:`GATEWAY`.
        hostname: the container's own. Only the default name is in the file. Others are resolved by DNS.
        gateways: the gateways of its network.

    Source: hosts(5).
    """
    text = _LOCAL + (hosts_line(HOSTNAME) if hostname == HOSTNAME else b"")
    for name, address in pairs:
        known = gateways[0] if address == GATEWAY and gateways else address
        text += f"{known}\t{name}\n".encode()
    return text


def resolv_conf(servers: Iterable[str], dns: DNS | None) -> bytes:
    """Return the text of /etc/resolv.conf. Source: resolv.conf(5)."""
    lines = [f"nameserver {server}" for server in servers]
    if dns is not None and dns.search:
        lines.append("search " + " ".join(dns.search))
    if dns is not None and dns.options:
        lines.append("options " + " ".join(dns.options))
    return "".join(f"{line}\n" for line in lines).encode()


def mounts(own: tuple[Mount, ...], hosts: bytes | str | None, resolv: bytes | str | None) -> tuple[Mount, ...]:
    """Return the mounts of a container with these files, unless it has its own mounts at their paths."""
    covered = {mount.target for mount in own}
    wanted = ((HOSTS, hosts), (RESOLV, resolv))
    files = [Mount.file(path, text) for path, text in wanted if text is not None and path not in covered]
    # A read-only root without these files has no use for them.
    return (*(attrs.evolve(each, options=_OPTIONAL) for each in files), *own)
