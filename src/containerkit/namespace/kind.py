"""The eight kinds of namespaces."""

from __future__ import annotations

from enum import Enum

from containerkit._native import constants as k
from containerkit.errors import SpecError

__all__ = ["Kind"]


_FACTS = {  # flag, name in /proc/PID/ns, name there of the one for future children
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
    """The eight kinds, in an order in which they can be joined one after another.

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
        """The kind's ``CLONE_NEW*``."""
        return _FACTS[self.value][0]

    @property
    def file(self) -> str:
        """Its name in ``/proc/PID/ns``."""
        return _FACTS[self.value][1]

    @property
    def file_for_children(self) -> str:
        """The name of the one that future children will be in; differs for pid and time alone."""
        return _FACTS[self.value][2]

    @classmethod
    def of(cls, name: Kind | str) -> Kind:
        """Return the kind of this name, such as ``"network"``.

        Raises:
            SpecError: there is no such kind.
        """
        try:
            return cls(name)
        except ValueError:
            known = ", ".join(sorted(kind.value for kind in cls))
            raise SpecError(f"no kind of namespace is called {name!r}: it is one of {known}") from None
