"""Find out whether packet filters of other programs drop forwarded packets. They are read, never changed."""

from __future__ import annotations

import socket
import struct
from errno import ENOBUFS
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError
from containerkit.network.forked import closed_in_children
from containerkit.network.nfnetlink import DROP, FORWARD, INET, IPV4
from containerkit.plan.netlink import attributes, messages

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Watch", "dropping"]

_GETCHAIN: Final = 10 << 8 | 4  # NFT_MSG_GETCHAIN of nf_tables
_DUMP: Final = 0x301
_HOOK, _POLICY, _HOOK_NUMBER = 4, 5, 1
_TABLE, _NAME = 1, 3
_ERROR, _DONE = 2, 3
_CHAIN_CHANGES: Final = {10 << 8 | 3, 10 << 8 | 5}  # NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN


def dropping() -> str:
    """Return a chain of another program that drops all forwarded packets by default, and so those of a router too.

    Returns:
        The chain with its family and table, such as ``"ip filter FORWARD"``; empty if there is none.

    Docker has such a chain if Docker enabled forwarding. No rule of this library can overrule it, and it must not be
    changed. Then a program sends the packets instead. Chains of iptables-legacy are not found.

    Raises:
        SetupError: the chains can't be listed.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as asking:
        asking.settimeout(5)
        try:
            asking.send(struct.pack("=IHHII", 20, _GETCHAIN, _DUMP, 1, 0) + bytes(4))
            found = [_drops(body) for body in _answers(asking)]
        except OSError as error:
            raise SetupError("nft list chains", error.errno or 0, "all tables") from None
    return next(filter(None, found), "")


class Watch:
    """Looks for such a chain again after chains have changed. Any thread may call it.

    It needs one system call if nothing has changed.

    Raises:
        SetupError: ``EPERM`` without CAP_NET_ADMIN.
    """

    def __init__(self) -> None:
        self._events = closed_in_children(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        self._found = ""
        try:
            self._events.setblocking(False)
            self._events.bind((0, 1 << 6))  # NFNLGRP_NFTABLES is the seventh
        except OSError as error:
            self._events.close()
            raise SetupError("bind", error.errno or 0, "changes of nf_tables") from None

    def dropping(self) -> str:
        """Return the present result of :func:`dropping`.

        Raises:
            SetupError: the chains can't be listed.
        """
        if self._changed():
            self._found = dropping()
        return self._found

    def _changed(self) -> bool:
        changed = False
        while True:
            try:
                data = self._events.recv(1 << 16)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != ENOBUFS:  # more events than the socket could hold
                    raise SetupError("recv", error.errno or 0, "changes of nf_tables") from None
                changed = True
                continue
            changed = changed or any(kind in _CHAIN_CHANGES for kind, _ in messages(data))

    def close(self) -> None:
        """Close the socket. May be called twice."""
        self._events.close()


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


def _drops(body: bytes) -> str:
    """Return the name of a chain, as the kernel describes it, that drops forwarded packets of IPv4 at its end."""
    parts = dict(attributes(body[4:]))
    if body[0] not in (INET, IPV4) or _HOOK not in parts or _POLICY not in parts:
        return ""
    hook = struct.unpack(">I", dict(attributes(parts[_HOOK]))[_HOOK_NUMBER])[0]
    policy = struct.unpack(">I", parts[_POLICY])[0]
    if hook != FORWARD or policy != DROP:
        return ""
    table, chain = (parts[number].rstrip(b"\0").decode(errors="replace") for number in (_TABLE, _NAME))
    return f"{'inet' if body[0] == INET else 'ip'} {table} {chain}"
