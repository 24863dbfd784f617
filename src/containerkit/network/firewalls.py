"""Whether packet filters of other programs drop forwarded packets. They are read, never changed."""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError
from containerkit.network.nfnetlink import DROP, FORWARD, INET, IPV4
from containerkit.plan.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["others_drop_forwarded"]

_GETCHAIN: Final = 10 << 8 | 4  # NFT_MSG_GETCHAIN of nf_tables
_DUMP: Final = 0x301
_HOOK, _POLICY, _HOOK_NUMBER = 4, 5, 1
_ERROR, _DONE = 2, 3


def others_drop_forwarded() -> bool:
    """Return whether a chain of another program drops all forwarded packets that it does not name.

    Docker's chain does if Docker enabled forwarding. No rule of this library can overrule it, and it must not be
    changed. Then packets are not forwarded, but sent by a program. Chains of iptables-legacy are not seen.

    Raises:
        SetupError: they can't be listed.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as asking:
        asking.settimeout(5)
        try:
            asking.send(struct.pack("=IHHII", 20, _GETCHAIN, _DUMP, 1, 0) + bytes(4))
            return any([_drops(body) for body in _answers(asking)])  # noqa: C419 - all of them are read
        except OSError as error:
            raise SetupError("nft list chains", error.errno or 0, "all tables") from None


def _answers(asking: socket.socket) -> Iterator[bytes]:
    while True:
        data = asking.recv(1 << 16)
        while len(data) >= 16:
            length, kind = struct.unpack_from("=IH", data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise OSError(-struct.unpack_from("=i", data, 16)[0], "refused")
            yield data[16:length]
            data = data[length + -length % 4 :]


def _drops(body: bytes) -> bool:
    """Return whether a chain, as the kernel describes it, drops forwarded packets of IPv4 at its end."""
    parts = dict(attributes(body[4:]))
    if body[0] not in (INET, IPV4) or _HOOK not in parts or _POLICY not in parts:
        return False
    hook = struct.unpack(">I", dict(attributes(parts[_HOOK]))[_HOOK_NUMBER])[0]
    policy = struct.unpack(">I", parts[_POLICY])[0]
    return bool(hook == FORWARD and policy == DROP)
