"""The eight kinds of namespaces."""

from __future__ import annotations

from enum import Enum

from containerkit._native import constants as k
from containerkit.errors import SpecError

TYPE_CHECKING = False  # importing typing takes long
if TYPE_CHECKING:
    from typing import Literal

    KindName = Literal["user", "cgroup", "ipc", "uts", "network", "pid", "time", "mount"]

__all__ = ["Kind"]


_FACTS = {  # flag, file in /proc/PID/ns, file there for future children
    "user": (k.CLONE_NEWUSER, "user", "user"),
    "cgroup": (k.CLONE_NEWCGROUP, "cgroup", "cgroup"),
    "ipc": (k.CLONE_NEWIPC, "ipc", "ipc"),
    "uts": (k.CLONE_NEWUTS, "uts", "uts"),
    "network": (k.CLONE_NEWNET, "net", "net"),
    "pid": (k.CLONE_NEWPID, "pid", "pid_for_children"),
    "time": (k.CLONE_NEWTIME, "time", "time_for_children"),
    "mount": (k.CLONE_NEWNS, "mnt", "mnt"),
}


class Kind(Enum):
    """The eight kinds, in an order in which they can be joined.

    Source: namespaces(7).
    """

    USER = "user"
    CGROUP = "cgroup"
    IPC = "ipc"
    UTS = "uts"
    NETWORK = "network"
    PID = "pid"
    TIME = "time"
    MOUNT = "mount"

    @property
    def flag(self) -> int:
        """The ``CLONE_NEW*`` flag of the kind."""
        return _FACTS[self.value][0]

    @property
    def file(self) -> str:
        """The name of the file in ``/proc/PID/ns``."""
        return _FACTS[self.value][1]

    @property
    def file_for_children(self) -> str:
        """The name of the file for the namespace of future children. It differs only for pid and time."""
        return _FACTS[self.value][2]

    @classmethod
    def of(cls, name: Kind | str) -> Kind:
        """Return the kind with this name, such as ``"network"``.

        Raises:
            SpecError: the kind is unknown.
        """
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(sorted(kind.value for kind in cls))
            raise SpecError(f"unknown kind of namespace {name!r}: must be one of {known}") from None
