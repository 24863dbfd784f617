"""Leases of subnets, so that networks of different owners and of the host do not overlap.

A lease is a lock on a file in /run/containerkit/networks. The kernel drops it when the owner ends, even if it is
killed. The file is named after the subnet, so that other owners see which subnets are taken. Networks of an
unprivileged user are in namespaces of its own, which no other owner sees. Their leases are below $XDG_RUNTIME_DIR, and
only keep apart what is chosen for them, so that a container can be on networks of several processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import threading
from ipaddress import IPv4Network, IPv6Network, ip_network
from struct import pack
from typing import TYPE_CHECKING, Final

from containerkit._native import high
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError
from containerkit.network.forked import closed_in_children
from containerkit.plan.netlink import DUMP, attributes, message, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Subnet = IPv4Network | IPv6Network

__all__ = ["DIRECTORY", "Lease", "lease", "routes", "sweep"]

DIRECTORY: Final = "/run/containerkit/networks"

_POOLS: Final = (IPv4Network("10.176.0.0/12"), IPv4Network("172.24.0.0/13"), IPv4Network("100.96.0.0/11"))
_PREFIX: Final = 20
"""4,093 containers. A bridge has 1,023 ports, and an address is reused only after all others were used."""

_GETROUTE, _NEWROUTE = 26, 24


class Lease:
    """A subnet of one network, until :meth:`release`, which may be called twice."""

    __slots__ = ("__weakref__", "_fd", "_path", "subnet")

    def __init__(self, subnet: Subnet, fd: int, path: str) -> None:
        self.subnet = subnet
        self._fd = fd
        self._path = path
        _ours.add(subnet)
        closed_in_children(self)

    def detach(self) -> int:
        """Detach the lease. Return the locked descriptor, or -1 without one."""
        fd, self._fd = self._fd, -2
        return fd

    def release(self) -> None:
        """Release it for other networks."""
        fd, self._fd = self._fd, -2
        if fd == -2:
            return
        _ours.discard(self.subnet)
        if fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough if a forked child has a copy
            os.close(fd)


_ours: set[Subnet] = set()
_lock = threading.Lock()


def routes() -> list[Subnet]:
    """Return the subnets to which this network namespace has routes, in any table, except the default routes.

    Raises:
        SetupError: the kernel refused the request.
    """
    found: list[Subnet] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as asking:
            asking.send(message(_GETROUTE, DUMP, pack("=BBBBBBBBI", *[0] * 9)))
            while True:
                data = asking.recv(1 << 17)
                for kind, body in messages(data):
                    if kind != _NEWROUTE:
                        return found
                    if (subnet := _destination(body)) is not None:
                        found.append(subnet)
    except OSError as error:
        raise SetupError("netlink", error.errno or 0, "RTM_GETROUTE", "") from None


def _destination(body: bytes) -> Subnet | None:
    prefix = body[1]
    packed = dict(attributes(body[12:])).get(1)
    if packed is None or prefix == 0:
        return None
    found = ip_network((packed, prefix), strict=False)
    return None if found.is_loopback or found.is_multicast or found.is_link_local else found


def lease(wanted: str, *, shared: bool) -> Lease:
    """Lease a subnet.

    Args:
        wanted: ``"auto4"``, ``"auto6"``, or a subnet.
        shared: whether the host routes the subnet. Then subnets of other owners are refused.

    Raises:
        StateError: it overlaps a network of this machine.
        SpecError: it overlaps a route of the host.
        UnsupportedError: all subnets are in use.
        SetupError: the lock files can't be made.

    Side effects: a file in :data:`DIRECTORY`, or for an unprivileged user below $XDG_RUNTIME_DIR, if that is set.
    """
    taken = routes()
    place = DIRECTORY if shared else _of_user()
    with _lock, _gate(place) as listed:
        others = [*listed(), *_ours]
        if wanted not in ("auto4", "auto6"):
            subnet = ip_network(wanted)
            if met := _meeting(subnet, others if shared else list(_ours)):
                raise StateError(
                    f"subnet {subnet}: it overlaps the network {met} on this host; choose another, or 'auto4'"
                )
            if met := _meeting(subnet, taken):
                raise SpecError(f"subnet {subnet}: the host has a route to {met}; choose another, or 'auto4'")
            return _hold(subnet, None if _meeting(subnet, others) else place)
        for subnet in _candidates(wanted):
            if not _meeting(subnet, others) and not _meeting(subnet, taken):
                return _hold(subnet, place)
    raise UnsupportedError(
        "lease", 28, f"subnet {wanted}", "all are in use: pass one, such as subnets=('10.9.0.0/24',)"
    )


def _candidates(wanted: str) -> Iterator[Subnet]:
    if wanted == "auto4":
        for pool in _POOLS:
            yield from pool.subnets(new_prefix=_PREFIX)
        return
    seed = b"containerkit"
    with contextlib.suppress(OSError), open("/etc/machine-id", "rb") as file:
        seed += file.read()
    # 40 random bits, as RFC 4193 requires, then one subnet for each network
    prefix = b"\xfd" + hashlib.sha256(seed).digest()[:5]
    for number in range(1 << 16):
        yield IPv6Network((prefix + number.to_bytes(2, "big") + bytes(8), 64))


def _meeting(subnet: Subnet, others: list[Subnet]) -> Subnet | None:
    return next((other for other in others if other.version == subnet.version and _overlap(subnet, other)), None)


def _overlap(one: Subnet, other: Subnet) -> bool:
    shorter = min(one.prefixlen, other.prefixlen)
    shift = one.max_prefixlen - shorter
    return int(one.network_address) >> shift == int(other.network_address) >> shift


def _of_user() -> str | None:
    """Return the directory of an unprivileged user's leases; None without a runtime directory."""
    base = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return f"{base}/containerkit/leases" if os.access(base, os.W_OK) else None


def _open(place: str, name: str) -> int:
    path = f"{place}/{name}"
    try:
        os.makedirs(place, mode=0o700, exist_ok=True)
        return high(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        hint = f"{place} must be writable: mount a tmpfs on /run (podman and docker run: --tmpfs /run)"
        raise SetupError("open", error.errno or 0, path, hint) from None


def _hold(subnet: Subnet, place: str | None) -> Lease:
    if place is None:
        return Lease(subnet, -1, "")
    name = f"{subnet.network_address}-{subnet.prefixlen}"
    fd = _open(place, name)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.ftruncate(fd, 0)
    os.write(fd, b"%d\n" % os.getpid())
    return Lease(subnet, fd, f"{place}/{name}")


@contextlib.contextmanager
def _gate(place: str | None) -> Iterator[Callable[[], list[Subnet]]]:
    """Let one owner at a time choose a subnet. Yield a function that returns the leases and removes stale files."""
    if place is None:
        yield list
        return
    fd = _open(place, "gate")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield lambda: _leased(place)[0]
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _leased(place: str) -> tuple[list[Subnet], list[str]]:
    """Return the leased subnets, and the stale files. The caller must hold the lock of :func:`_gate`."""
    held: list[Subnet] = []
    removed: list[str] = []
    for name in sorted(os.listdir(place)):
        base, _, prefix = name.rpartition("-")
        try:
            subnet = ip_network(f"{base}/{prefix}")
            fd = os.open(f"{place}/{name}", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, ValueError):
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held.append(subnet)
        else:
            os.unlink(f"{place}/{name}")
            removed.append(f"lease of {subnet}")
        finally:
            os.close(fd)
    return held, removed


def sweep() -> list[str]:
    """Remove the leases of dead owners. Return descriptions of them."""
    place = DIRECTORY if os.geteuid() == 0 else _of_user()
    if place is None or not os.path.isdir(place) or not os.access(place, os.W_OK):
        return []
    fd = _open(place, "gate")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return _leased(place)[1]
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)
