"""Macvlan: an interface of a container directly on one of the host's networks."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from containerkit._linux.privileges import is_privileged
from containerkit._native import constants as k
from containerkit.errors import SetupError, UnsupportedError
from containerkit.network import links
from containerkit.network.endpoint import Endpoint, settings_of
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.plan.program import proc
from containerkit.start.staging import opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.spec.network import Macvlan

__all__ = ["Maker"]

_INDEX: Final = 2


class Maker:
    """Makes the network of each start of one description.

    Args:
        wish: the description.
        sysctls: parameters of the network namespace, by their path below ``net``.

    Raises:
        UnsupportedError: the caller is not root.
    """

    def __init__(self, wish: Macvlan, sysctls: Mapping[str, str]) -> None:
        if not is_privileged():
            hint = "only root can use an interface of the host: use network='internet'"
            raise UnsupportedError("netlink", 1, f"macvlan on {wish.parent}", hint)
        self._wish = wish
        self._sysctls = sysctls

    def take(self) -> Endpoint:
        """Make the network of one container.

        Raises:
            SetupError: the parent does not exist, or the kernel refused an operation.
        """
        try:
            parent = socket.if_nametoindex(self._wish.parent)
        except OSError as error:
            hint = "pass the name of one of the host's interfaces (see: ip link)"
            raise SetupError("netlink", error.errno or 19, f"macvlan on {self._wish.parent}", hint) from None
        (fd,) = opened(self._plan(parent), {"proc": proc()}, ("endpoint",))
        return Endpoint.adopt(fd, [])

    def _plan(self, parent: int) -> list[Operation]:
        wish, own, outside, inside = self._wish, Slot("endpoint"), Slot("outside"), Slot("rtnetlink")
        here = "eth0"
        steps = [
            *calls.netlink_socket(0, outside),
            calls.unshare(k.CLONE_NEWNET, "network namespace"),
            calls.open_at(Slot("proc"), b"thread-self/ns/net", k.O_RDONLY, own),
            *calls.netlink_socket(0, inside),
            *settings_of(self._sysctls),
            links.set_up(inside, "lo", 1),
            links.macvlan(outside, parent, here, own, index=_INDEX, mode=wish.mode, mac=wish.mac, mtu=wish.mtu),
            links.set_up(inside, here, _INDEX),
            *[links.address(inside, _INDEX, address, here) for address in wish.addresses],
            *[links.default_route(inside, _INDEX, gateway, here) for gateway in wish.gateway],
            links.look_at(inside, here),
        ]
        return [*steps, calls.close(inside), calls.close(outside)]

    def resolv_conf(self) -> bytes | None:
        """Return the host's name servers without those that only the host can reach; None if there are no others."""
        return hosts_servers()


def hosts_servers() -> bytes | None:
    """Return the host's /etc/resolv.conf without servers on the loopback; None if there are no others."""
    for path in ("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = [line for line in file if not _is_local(line)]
        except OSError:
            continue
        if any(line.startswith("nameserver") for line in lines):
            return "".join(lines).encode()
    return None


def _is_local(line: str) -> bool:
    words = line.split()
    if len(words) != 2 or words[0] != "nameserver":
        return False
    try:
        return ip_address(words[1].partition("%")[0]).is_loopback
    except ValueError:
        return True
