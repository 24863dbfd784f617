"""The uplink of an unprivileged user's router: a program that forwards its packets with sockets of this user.

Each router has one program, ``pasta`` or ``slirp4netns``, for all its containers. It ends with its owner, because it
(or the shell above it) reads a pipe that only the owner holds open.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from errno import EACCES, ENOENT, ETIMEDOUT
from fcntl import ioctl
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

from containerkit.errors import SetupError, UnsupportedError
from containerkit.network import links
from containerkit.network.forked import closed_in_children
from containerkit.plan import calls
from containerkit.plan.netlink import attributes
from containerkit.plan.operation import Slot

if TYPE_CHECKING:
    import subprocess

    from containerkit.network.rules import RouterRules
    from containerkit.plan.operation import Operation

__all__ = ["HostAddresses", "Uplink", "host_addresses", "start"]

_NAME: Final = "up0"
_DEVICE: Final = "/dev/net/tun"
_START_S: Final = 10.0
_GOOD_PASTA: Final = 20240101
"""Older versions of pasta send at a thirtieth of slirp4netns's rate. They are used only if that is missing."""
_SLIRP_NETWORK: Final = "100.127.254.0/24"  # from the range for carriers' internal use; no host has it
_SLIRP_ADDRESS, _SLIRP_GATEWAY = "fd00::100/64", "fd00::2"  # the program's own network, which can't be configured
_GUARDIAN: Final = '"$@" <&- & child=$!; trap "" HUP INT; read -r _ <&"$LIFE"; kill -9 $child'
"""Runs a program as long as the pipe ``$LIFE`` is open. Nothing is ever written to it, so reading it blocks."""


class Owner(Protocol):
    """The interface of a router for this module."""

    netns: int
    holder: int

    def socket(self, family: int, kind: int, protocol: int) -> socket.socket:
        """Return a socket of its namespace."""

    def inside(self) -> list[Operation]:
        """Return the operations that enter its namespace."""

    def run(self, steps: list[Operation]) -> None:
        """Execute operations in a new process."""


class Uplink:
    """The program that forwards a router's packets. This object owns the process, and :meth:`close` ends it.

    Attributes:
        program: ``"pasta"`` or ``"slirp4netns"``.
    """

    def __init__(self, program: str, process: subprocess.Popen[bytes], life: int, words: int) -> None:
        self.program = program
        self._process, self._life, self._words = process, life, words
        closed_in_children(self)

    @property
    def pid(self) -> int:
        """The pid of the program, or of the shell above it."""
        return self._process.pid

    def detach(self) -> int:
        """Detach the descriptor that keeps the program alive. After that :meth:`close` has no effect."""
        life, self._life = self._life, -1
        return life

    def words(self) -> str:
        """Return the end of the program's output."""
        size = os.fstat(self._words).st_size
        return os.pread(self._words, 500, max(0, size - 500)).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the program and wait for it. May be called twice."""
        if self._life < 0:
            return
        os.close(self._life)
        self._life = -1
        try:
            self._process.wait(5)
        except Exception:  # noqa: BLE001 - subprocess.TimeoutExpired, without its import; whatever it is, kill
            self._process.kill()
            self._process.wait()
        os.close(self._words)

    def __repr__(self) -> str:
        return f"<Uplink {self.program} pid {self.pid}{' closed' if self._life < 0 else ''}>"


def start(owner: Owner, *, program: str | None = None) -> Uplink:
    """Start a program for a router, and wait until its interface is up.

    Args:
        owner: the router.
        program: ``"pasta"`` or ``"slirp4netns"``. None chooses the better one of those that are installed.

    Raises:
        UnsupportedError: neither is installed, or this user may not open /dev/net/tun.
        SetupError: it ended, or its interface was not up within 10 s. The error contains its output.

    Side effects: a process, until the uplink's ``close()`` or the end of this process.
    """
    name, path = _found(program)
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        hint = "it must exist, and this user must be able to open it (udev sets mode 0666)"
        raise UnsupportedError("open", EACCES if os.path.exists(_DEVICE) else ENOENT, _DEVICE, hint)
    life_out, life_in = os.pipe()
    words = os.memfd_create(name)
    try:
        process = _spawned(name, path, owner, life_out, words)
    except BaseException:
        os.close(life_in)
        os.close(words)
        raise
    finally:
        os.close(life_out)
    uplink = Uplink(name, process, life_in, words)
    try:
        _await(owner, uplink, process)
        if name == "slirp4netns" and _has_ipv6_default_route():
            _configure_ipv6(owner)
    except BaseException:
        uplink.close()
        raise
    return uplink


def _found(program: str | None) -> tuple[str, str]:
    from shutil import which

    places = {name: which(name) for name in ("pasta", "slirp4netns") if program in (None, name)}
    there = {name: path for name, path in places.items() if path is not None}
    if not there:
        hint = "install the package passt or slirp4netns; without one, use internal networks or Port.socket"
        raise UnsupportedError("start", ENOENT, " or ".join(places), hint)
    if "pasta" in there and ("slirp4netns" not in there or _dated(there["pasta"]) >= _GOOD_PASTA):
        return "pasta", there["pasta"]
    name = next(each for each in ("slirp4netns", "pasta") if each in there)
    return name, there[name]


def _dated(path: str) -> int:
    """Return the date in the version of pasta, such as 20230309, or 0 without one."""
    import subprocess

    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r"(20\d\d)_?([01]\d)_?([0-3]\d)", said.stdout)
    return int("".join(found.groups())) if found else 0


def _spawned(name: str, path: str, owner: Owner, life: int, words: int) -> subprocess.Popen[bytes]:
    import subprocess

    netns, holder = f"/proc/self/fd/{owner.netns}", f"/proc/self/fd/{owner.holder}"
    if name == "slirp4netns":
        argv = [path, "--configure", "--mtu=65520", f"--cidr={_SLIRP_NETWORK}", f"--exit-fd={life}"]
        # Neither the host's loopback nor its resolver: the router has its own resolver.
        argv += ["--disable-host-loopback", "--disable-dns", "--enable-ipv6", "--netns-type=path"]
        argv += [f"--userns-path={holder}"] if owner.holder >= 0 else []
        argv += [netns, _NAME]
    else:
        argv = [path, "--foreground", "--quiet", "--config-net", "--ns-ifname", _NAME, "--no-map-gw"]
        argv += ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--netns", netns]
        argv += ["--userns", holder] if owner.holder >= 0 else ["--netns-only", "--runas", "0:0"]
        argv = ["/bin/sh", "-c", _GUARDIAN, "containerkit-uplink", *argv]
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=words,
        stderr=words,
        pass_fds=(life, owner.netns, *([owner.holder] if owner.holder >= 0 else [])),
        env={**os.environ, "LIFE": str(life)},
        start_new_session=True,  # signals of a terminal are meant for the container, not for its helpers
    )


def _await(owner: Owner, uplink: Uplink, process: subprocess.Popen[bytes]) -> None:
    """Wait until the interface has an address, which the program sets last."""
    until = time.monotonic() + _START_S
    with owner.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as asking:
        request = _NAME.encode().ljust(40, b"\0")
        while True:
            with contextlib.suppress(OSError):
                flags = struct.unpack_from("H", ioctl(asking, 0x8913, request), 16)[0]  # SIOCGIFFLAGS
                ioctl(asking, 0x8915, request)  # SIOCGIFADDR
                if flags & 1:
                    return
            if process.poll() is not None:
                raise SetupError(
                    "start", ENOENT, uplink.program, uplink.words() or f"it ended with {process.returncode}"
                )
            if time.monotonic() > until:
                raise SetupError("start", ETIMEDOUT, uplink.program, uplink.words() or "its interface does not exist")
            time.sleep(0.002)


def _has_ipv6_default_route() -> bool:
    """Return whether the host has a default route for IPv6. Without one, connecting to IPv6 addresses would fail."""
    try:
        with open("/proc/thread-self/net/ipv6_route", encoding="ascii") as file:
            return any(line.startswith("0" * 32 + " 00 ") and line.split()[-1] != "lo" for line in file)
    except OSError:
        return False


def _configure_ipv6(owner: Owner) -> None:
    """Configure what slirp4netns leaves to router advertisements, because a router ignores those."""
    with owner.socket(socket.AF_INET, socket.SOCK_DGRAM, 0) as asking:
        index = struct.unpack_from("=i", ioctl(asking, 0x8933, _NAME.encode().ljust(40, b"\0")), 16)[0]  # SIOCGIFINDEX
    at = Slot("rtnetlink")
    steps = [
        links.address(at, index, _SLIRP_ADDRESS, _NAME),
        links.default_route(at, index, _SLIRP_GATEWAY, _NAME),
    ]
    owner.run([*owner.inside(), *calls.netlink_socket(0, at), *steps, calls.close(at)])


# --- The host's own addresses


def _addresses_message() -> bytes:
    return struct.pack("=IHHIIB3xI", 24, 22, 0x301, 1, 0, 0, 0)  # RTM_GETADDR, a dump


def host_addresses() -> set[str]:
    """Return the addresses of all interfaces of the calling thread's network namespace."""
    found: set[str] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as asking:
        asking.settimeout(5)
        asking.send(_addresses_message())
        while True:
            data = asking.recv(1 << 16)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind in (2, 3):  # an error, or the end
                    return found
                if kind == 20:
                    found |= _of_message(data[16:length])
                data = data[length + -length % 4 :]


def _of_message(body: bytes) -> set[str]:
    parts = dict(attributes(body[8:]))
    packed = parts.get(2) or parts.get(1)  # IFA_LOCAL, else IFA_ADDRESS
    return {str(ip_address(packed))} if packed and len(packed) in (4, 16) else set()


class HostAddresses:
    """Denies containers of an unprivileged user the host's own services, which the forwarding program can reach.

    Args:
        rules: the router's rules, which get the host's addresses now and whenever they change.

    Attributes:
        socket: readable when the addresses may have changed. Call :meth:`changed` then.
    """

    def __init__(self, rules: RouterRules) -> None:
        self._rules = rules
        self.socket: Final = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self.socket.bind((0, 0x10 | 0x100))  # RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
        self.socket.setblocking(False)
        rules.set_host_addresses(host_addresses())

    def changed(self) -> None:
        """Read the addresses again."""
        with contextlib.suppress(OSError):  # no more messages, or an overflow: both are fine
            while self.socket.recv(1 << 16):
                pass
        self._rules.set_host_addresses(host_addresses())

    def close(self) -> None:
        """Stop following them."""
        self.socket.close()
