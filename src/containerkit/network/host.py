"""The one setting of the host that an uplink changes while its owner lives: forwarding.

A link and a route end with their owner, but a setting does not. So a guard, a shell that reads a pipe, restores the
settings when the last owner on the host has ended. A record in /run lets ``containerkit gc`` restore them if the
guard was killed too.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import socket
import struct
import subprocess
from errno import ENOENT
from typing import Final

from containerkit._linux.textfile import read_or_empty
from containerkit.errors import SetupError, UnsupportedError
from containerkit.network.forked import closed_in_children
from containerkit.network.leases import DIRECTORY

__all__ = ["PREFIX", "Forwarding", "outward_mtu", "restore"]

PREFIX: Final = "ck"
"""The prefix of the host's interface names of all uplinks."""

_RECORD: Final = f"{DIRECTORY}/forwarding"
_V4, _V6 = "/proc/sys/net/ipv4", "/proc/sys/net/ipv6"
_USUAL_MTU, _LEAST_MTU = 1500, 1280
_MTU_OF, _NAME_LENGTH = 0x8921, 16  # SIOCGIFMTU, IFNAMSIZ
_GUARD: Final = """
exec 3<&0
{
read -r _ <&3
n=0
while [ -e "/sys/class/net/$1" ] && [ $n -lt 100 ]; do sleep 0.05; n=$((n+1)); done
for other in /sys/class/net/ck*; do [ -e "$other" ] && exit 0; done
while read -r path value; do
    case $path in */ipv4/*) [ "$(cat /proc/sys/net/ipv4/ip_forward)" = 1 ] && continue;; esac
    echo "$value" > "$path"
done < "$2"
rm -f "$2"
} &
"""
"""If another program enabled forwarding for all interfaces in the meantime, it stays enabled."""


class Forwarding:
    """The host forwards packets of an uplink and their answers until :meth:`close`.

    Args:
        uplink: the interface of the uplink on the host.
        ipv6: whether to forward IPv6 too.

    Attributes:
        changed: the interfaces for which forwarding was off.

    Raises:
        SetupError: /proc/sys can't be written to.

    Side effects: turns ``forwarding`` of the host's interfaces on, and starts the guard.
    """

    def __init__(self, uplink: str, *, ipv6: bool) -> None:
        self.changed: tuple[str, ...] = ()
        self._life = -1
        closed_in_children(self)
        wanted = _wanted(uplink)
        wanted += _wanted6(uplink) if ipv6 else []
        recorded = os.path.exists(_RECORD)
        others = [(path, old) for path, old, name in wanted if name != uplink]
        if others:
            self._record(others)
        if others or recorded:
            self._watch(uplink)
        self.changed = tuple(dict.fromkeys(name for _, _, name in wanted if name not in (uplink, "all")))
        for path, _, name in wanted:
            try:
                _write(path, "1")
            except SetupError as error:
                if error.errno != ENOENT or name in (uplink, "all"):
                    raise
                # Another interface of the host was removed in the meantime.

    @staticmethod
    def _record(changes: list[tuple[str, str]]) -> None:
        os.makedirs(DIRECTORY, mode=0o700, exist_ok=True)
        fd = os.open(_RECORD, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, "".join(f"{path} {old}\n" for path, old in changes).encode())
        finally:
            os.close(fd)

    def _watch(self, uplink: str) -> None:
        arguments = ["/bin/sh", "-c", _GUARD, "containerkit-guard", uplink, _RECORD]
        reading, self._life = os.pipe()
        try:
            # The first shell ends at once, so the guard is no child of this process, which need not wait for it.
            subprocess.run(
                arguments,
                check=True,
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                start_new_session=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            self.close()
            hint = "it runs a shell to restore the host's forwarding later; or enable it: sysctl net.ipv4.ip_forward=1"
            raise UnsupportedError("execve", getattr(error, "errno", 0) or 0, "/bin/sh", hint) from None
        finally:
            os.close(reading)

    def detach(self) -> int:
        """Detach the descriptor of the guard's pipe. Return it, or -1 without a guard. The caller owns it."""
        life, self._life = self._life, -1
        return life

    def close(self) -> None:
        """Let the guard restore the settings when the uplink is gone. May be called twice."""
        life = self.detach()
        if life >= 0:
            os.close(life)


def _write(path: str, value: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        hint = "the host must forward packets: make /proc/sys writable, or set net.ipv4.ip_forward=1 on the host"
        raise SetupError("write", error.errno or 0, path, hint) from None


def _routed(path: str, column: int) -> list[str]:
    """Return the interfaces of the host's routes."""
    names = (line.split()[column] for line in read_or_empty(path).splitlines() if not line.startswith("Iface"))
    return sorted({name for name in names if name != "lo" and not name.startswith(PREFIX)})


def outward_mtu() -> int:
    """Return the MTU of the interface of the host's default route in bytes, at most 1500 and at least 1280.

    With a larger one the host would refuse packets of containers by ICMP messages, which many networks drop. Without a
    default route it is 1500.
    """
    net = "/proc/thread-self/net"
    found = {line.split()[0] for line in read_or_empty(f"{net}/route").splitlines() if line.split()[1] == "00000000"}
    for line in read_or_empty(f"{net}/ipv6_route").splitlines():
        words = line.split()
        if words[0] == "0" * 32 and words[1] == "00":
            found.add(words[-1])
    mtus = [_USUAL_MTU]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in found - {"lo"}:
            with contextlib.suppress(OSError):  # it was removed in the meantime
                answer = fcntl.ioctl(asking, _MTU_OF, name.encode().ljust(2 * _NAME_LENGTH, b"\0"))
                mtus.append(struct.unpack_from("=i", answer, _NAME_LENGTH)[0])
    return max(_LEAST_MTU, min(mtus))


def _wanted(uplink: str) -> list[tuple[str, str, str]]:
    """Return the path, the present value and the interface of each setting that is off."""
    names = [uplink, *_routed("/proc/net/route", 0)]
    paths = [(f"{_V4}/conf/{name}/forwarding", name) for name in names]
    return [(path, "0", name) for path, name in paths if read_or_empty(path) == "0"]


def _wanted6(uplink: str) -> list[tuple[str, str, str]]:
    """Do the same for IPv6. Before Linux 6.17 it has one setting for all interfaces."""
    if read_or_empty(f"{_V6}/conf/all/forwarding") != "0":
        return []
    names = [uplink, *_routed("/proc/net/ipv6_route", 9)]
    if os.path.exists(f"{_V6}/conf/{uplink}/force_forwarding"):
        paths = [(f"{_V6}/conf/{name}/force_forwarding", name) for name in names]
        return [(path, "0", name) for path, name in paths if read_or_empty(path) == "0"]
    # By default a router ignores advertisements of others, so the host would lose its default route.
    advertised = [(f"{_V6}/conf/{name}/accept_ra", name) for name in names[1:]]
    for path, _ in [each for each in advertised if read_or_empty(each[0]) == "1"]:
        _write(path, "2")
    return [(f"{_V6}/conf/all/forwarding", "0", "all")]


def restore() -> list[str]:
    """Restore what dead owners with dead guards have changed. Return descriptions of it."""
    if not os.path.exists(_RECORD) or glob.glob(f"/sys/class/net/{PREFIX}*"):
        return []
    done: list[str] = []
    for line in read_or_empty(_RECORD).splitlines():
        path, _, value = line.partition(" ")
        if "/ipv4/" in path and read_or_empty(f"{_V4}/ip_forward") == "1":
            continue
        with contextlib.suppress(SetupError):  # the interface is gone
            _write(path, value)
            done.append(f"forwarding of the host ({path})")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_RECORD)
    return done
