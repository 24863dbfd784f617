"""The files /etc/hosts and /etc/resolv.conf of a container."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._linux.hostroot import HOSTNAME, hosts_line
from containerkit.errors import SpecError
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from containerkit.spec.network import DNS

__all__ = ["hosts_file", "loopback", "mounts", "no_address", "own_address", "resolv_conf"]

HOSTS: Final = "/etc/hosts"
RESOLV: Final = "/etc/resolv.conf"
GATEWAY: Final = "host-gateway"
"""The name that means the address of the host, as in Docker."""

_ANYWHERE: Final = "192.0.2.1"  # no packet is sent there

_OPTIONAL: Final = (("optional", None),)
_LOCAL: Final = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def own_address() -> str:
    """Return the host's own IPv4 address, at which containers with an egress rule for it reach the host.

    Raises:
        SpecError: the host has only the loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        with contextlib.suppress(OSError):  # no route leads outside
            asking.connect((_ANYWHERE, 9))
        found: str = asking.getsockname()[0]
    if found in ("0.0.0.0", "127.0.0.1"):  # noqa: S104 - compared, not bound
        raise SpecError("hosts: 'host-gateway': this host has no IPv4 address except the loopback")
    return found


def loopback() -> str:
    """Return the address of the host for containers that share its network."""
    return "127.0.0.1"


def no_address() -> str:
    """Refuse containers whose network does not reach the host.

    Raises:
        SpecError: always.
    """
    raise SpecError(
        "hosts: 'host-gateway' needs network='internet', a Network or 'host': other networks don't reach it"
    )


def hosts_file(pairs: Iterable[tuple[str, str]], hostname: str | None, host: Callable[[], str]) -> bytes:
    """Return the text of /etc/hosts.

    Args:
        pairs: names and addresses, or :data:`GATEWAY`.
        hostname: the container's own. Only the default name is in the file. Others are resolved by DNS.
        host: returns the address of the host. It is called only if a pair needs it.

    Source: hosts(5).
    """
    text = _LOCAL + (hosts_line(HOSTNAME) if hostname == HOSTNAME else b"")
    for name, address in pairs:
        known = host() if address == GATEWAY else address
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
