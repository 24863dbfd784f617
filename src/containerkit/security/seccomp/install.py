"""The operation that installs a compiled filter."""

from __future__ import annotations

from struct import pack

from containerkit.plan.calls import call
from containerkit.plan.operation import Block, Operation, Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["FLAGS", "install"]

FLAGS: Final = {"tsync": 1, "log": 2, "spec_allow": 4, "wait_killable_recv": 32}
"""The flags by the last part of their names, ``SECCOMP_FILTER_FLAG_*``."""

_NEW_LISTENER: Final = 8
_TSYNC_ESRCH: Final = 16
_SET_MODE_FILTER: Final = 1
_HINT: Final = "it needs no_new_privs or CAP_SYS_ADMIN, and a kernel with CONFIG_SECCOMP_FILTER"


def install(program: bytes, flags: int = 0, listener: Slot | None = None) -> Operation:
    """Return the operation that installs a filter in the calling thread.

    Args:
        program: an array of ``struct sock_filter``.
        flags: values from :data:`FLAGS`.
        listener: the slot for the listener's descriptor.

    Source: seccomp(2).
    """
    if listener is not None:
        # TSYNC and a listener both use the return value. The kernel accepts both together only with this flag.
        flags |= _NEW_LISTENER | (_TSYNC_ESRCH if flags & FLAGS["tsync"] else 0)
    count = len(program) // 8
    header = Block(pack("=H6xQ", count, 0), ((8, program),))
    target = f"filter of {count} instructions"
    return call("seccomp", _SET_MODE_FILTER, flags, header, target=target, result=listener, hint=_HINT)
