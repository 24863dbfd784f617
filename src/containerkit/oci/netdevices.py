"""``linux.netDevices``: move network devices of the runtime's namespace to the container's.

Source: OCI runtime-spec, config-linux.md, "Network Devices"; rtnetlink(7), RTM_SETLINK.
"""

from __future__ import annotations

import os
import socket
from struct import pack, unpack_from

from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.oci.config import NetDevice

__all__ = ["move"]

_RTM_NEWLINK = 16
_REQUEST, _ACK = 1, 4
_IFNAME, _NET_NS_FD = 3, 28
_ERROR = 2


def move(devices: Mapping[str, NetDevice], pid: int) -> None:
    """Move devices, and rename them to their names inside.

    Args:
        devices: by name, with the new name.
        pid: a process of the container.

    Raises:
        RuntimeFailure: there is no such device, or the kernel refused to move it.
    """
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as channel:
            channel.bind((0, 0))
            for number, (name, device) in enumerate(devices.items(), start=1):
                _move_one(channel, number, name, device.name or name, namespace)
    finally:
        os.close(namespace)


def _attribute(kind: int, content: bytes) -> bytes:
    return (pack("=HH", 4 + len(content), kind) + content).ljust((4 + len(content) + 3) // 4 * 4, b"\0")


def _move_one(channel: socket.socket, number: int, name: str, inner: str, namespace: int) -> None:
    path = f"config.json: linux.netDevices.{name}"
    if not 0 < len(os.fsencode(inner)) < 16 or "/" in inner:
        raise RuntimeFailure(f"{path}.name: {inner!r} can't be the name of a device")
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        raise RuntimeFailure(f"{path}: no such device") from None
    body = pack("=BxHiII", 0, 0, index, 0, 0)
    body += _attribute(_NET_NS_FD, pack("=I", namespace)) + _attribute(_IFNAME, os.fsencode(inner) + b"\0")
    channel.send(pack("=IHHII", 16 + len(body), _RTM_NEWLINK, _REQUEST | _ACK, number, 0) + body)
    answer = channel.recv(65536)
    kind = unpack_from("=H", answer, 4)[0]
    error = unpack_from("=i", answer, 16)[0] if kind == _ERROR else 0
    if error:
        raise RuntimeFailure(f"{path}: move to the container: {strerror(-error)}")
