"""The read-only view of a group: its directories, its processes and what they use."""

from __future__ import annotations

import os
from _thread import allocate_lock
from typing import TYPE_CHECKING, Literal

from containerkit.cgroup.directory import Directory  # noqa: TC001 - resolving the signature's annotations needs it
from containerkit.cgroup.limits import Limits  # noqa: TC001 - as above
from containerkit.errors import StateError

if TYPE_CHECKING:
    from weakref import ReferenceType

    from containerkit.cgroup.events import Events
    from containerkit.cgroup.hierarchy import Tree
    from containerkit.cgroup.pressure import PressureReader
    from containerkit.cgroup.stats import GroupUsage, Stats

__all__ = ["GroupView"]


class GroupView:
    """A group as one directory in each hierarchy that serves it, with the kernel's reports from there.

    Args:
        name: the name of the group.
        parts: the directories, version 2 last. The view owns them from now on.
        limits: the limits of the group.
        owned: whether the group belongs to this process.
        others: directories of the parent group that a process joins where this group has no directory.
    """

    __slots__ = (
        "_attach",
        "_events",
        "_former_kills",
        "_inner",
        "_maker",
        "_others",
        "_owned",
        "_parts",
        "_removing",
        "_state",
        "limits",
        "name",
    )

    def __init__(
        self,
        name: str,
        parts: list[Directory],
        limits: Limits,
        *,
        owned: bool,
        others: tuple[Directory, ...] = (),
    ) -> None:
        self.name = name
        self.limits = limits
        self._parts = parts
        self._others = others
        self._owned = owned
        self._maker = os.getpid()
        self._attach: list[int] = []
        self._inner: Tree | None = None
        self._events: list[ReferenceType[Events]] = []
        self._former_kills = 0
        self._removing = allocate_lock()
        self._state: Literal["open", "removed", "closed"] = "open"

    def __repr__(self) -> str:
        kinds = ", ".join(",".join(sorted(part.names)) or "version 2" for part in self._parts)
        return f"<CGroup {self.name} {self._state} ({kinds})>"

    @property
    def path(self) -> str:
        """The path of the version 2 directory, or of the first hierarchy if there is none."""
        return self._parts[-1].path if self._parts else ""

    @property
    def owned(self) -> bool:
        """Whether the group belongs to this process. Limits of other groups can be changed by others at any time."""
        return self._owned

    @property
    def paths(self) -> dict[str, str]:
        """The path for each version 1 controller. The path for version 2 has the empty name."""
        return {name: part.path for part in self._parts for name in (part.names or {""})}

    @property
    def directory_fd(self) -> int | None:
        """A descriptor of the version 2 directory for CLONE_INTO_CGROUP, or None. The group owns it."""
        last = self.unified
        return last.fd if last is not None and last.fd >= 0 else None

    @property
    def parts(self) -> tuple[Directory, ...]:
        """The directories, version 2 last."""
        return tuple(self._parts)

    @property
    def _joined(self) -> tuple[Directory, ...]:
        """The directories that a process joins."""
        return (*self._others, *self._parts)

    @property
    def unified(self) -> Directory | None:
        """The version 2 directory."""
        return self._parts[-1] if self._parts and self._parts[-1].version == 2 else None

    def part(self, controller: str) -> Directory | None:
        """Return the directory in the hierarchy of a controller, or None if there is none."""
        old = "blkio" if controller == "io" else controller
        for part in self._parts:
            if old in part.names or (part.version == 2 and controller in part.available()):
                return part
        return None

    def _check_open(self) -> None:
        if self._state != "open":
            raise StateError(f"group {self.name}: it is {self._state}")

    # Reports -------------------------------------------------------------------------------------------------------

    def processes(self) -> frozenset[int]:
        """Return the pids of all processes in the group and below it, as numbered in this pid namespace."""
        from containerkit.cgroup.processes import processes

        self._check_open()
        return processes(self._parts)

    def usage(self) -> GroupUsage:
        """Return what the processes have used so far. This is cheap, because every run does it at its end."""
        from containerkit.cgroup.usage import usage

        self._check_open()
        with self._removing:
            return usage(self.parts, self._former_kills)

    def stats(self) -> Stats:
        """Return the reports of all controllers that the group is in."""
        from containerkit.cgroup.usage import stats

        self._check_open()
        with self._removing:
            return stats(self.parts, self._former_kills)

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed a process because the group was out of memory."""
        return bool(self.oom_kills)

    @property
    def oom_kills(self) -> int | None:
        """How many processes the kernel killed because the group was out of memory; None without that controller."""
        from containerkit.cgroup.usage import oom_kills

        self._check_open()
        with self._removing:
            return oom_kills(self.parts, self._former_kills)

    @property
    def pressure(self) -> PressureReader:
        """Pressure stall information of the group: ``.cpu``, ``.memory``, ``.io``, and triggers."""
        from containerkit.cgroup.pressure import PressureReader

        self._check_open()
        return PressureReader(self.unified, self.path)
