"""Operations that write the parameters of a network namespace."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from containerkit._native import constants as k
from containerkit.plan import calls
from containerkit.plan.operation import Slot

if TYPE_CHECKING:
    from containerkit.plan.operation import Operation

__all__ = ["has_ipv6", "write_sysctl"]

_PROC: Final = Slot("proc")
_READ_ONLY: Final = "networks need a writable /proc/sys; inside a container, start the outer one with it unmasked"


def has_ipv6() -> bool:
    """Return whether the kernel supports IPv6."""
    return os.path.exists("/proc/sys/net/ipv6/conf/default/disable_ipv6")


def write_sysctl(
    name: str, value: str, *, tolerate: tuple[int, ...] = (), refused: tuple[int, ...] = ()
) -> list[Operation]:
    """Return the operations that write a parameter of the network namespace that they run in.

    Args:
        name: below ``net``, with slashes.
        value: the value.
        tolerate: errors of the open after which the write is skipped.
        refused: errors of the write that count as success.
    """
    at = Slot("sysctl")
    path = f"sys/net/{name}"
    return [
        calls.open_at(_PROC, path.encode(), k.O_WRONLY, at, target=path, tolerate=tolerate, hint=_READ_ONLY)._replace(
            skip=2 if tolerate else 0
        ),
        calls.write(at, value.encode(), f"{path}={value}", tolerate=refused),
        calls.close(at),
    ]
