"""The processors of the machine: which share a core, their memory nodes, and their allotment to runs."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, Self

import attrs

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Allotment", "Processor", "Topology", "parse_list"]

_SYSTEM: Final = "/sys/devices/system/cpu"


def parse_list(text: str) -> tuple[int, ...]:
    """Return the numbers of a list as the kernel writes it, such as ``0-3,8``. Source: cpuset(7), "List format"."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, dash, last = part.partition("-")
        if part:
            numbers.extend(range(int(first), int(last if dash else first) + 1))
    return tuple(numbers)


@attrs.frozen
class Processor:
    """A processor as the kernel numbers it.

    Attributes:
        number: its number.
        core: the lowest number among those with which it shares a physical core.
        node: the nearest memory node.
    """

    number: int
    core: int
    node: int = 0


@attrs.frozen(kw_only=True)
class Allotment:
    """The exclusive resources of one run.

    Attributes:
        cores: the numbers of its processors.
        memory_nodes: the numbers of the nearest memory nodes.
    """

    cores: tuple[int, ...]
    memory_nodes: tuple[int, ...]


@attrs.frozen
class Topology:
    """The processors that this process may use.

    Attributes:
        processors: each of them.
    """

    processors: tuple[Processor, ...]

    @classmethod
    def read(cls, root: str = _SYSTEM, usable: Iterable[int] | None = None) -> Self:
        """Read it from the kernel.

        Args:
            root: the directory (default /sys/devices/system/cpu).
            usable: the numbers of the processors that may be used (default: those of sched_getaffinity(2)).

        Source: Documentation/admin-guide/cputopology.rst; sysfs-devices-node.
        """
        numbers = sorted(os.sched_getaffinity(0) if usable is None else usable)
        return cls(tuple(_processor(root, number) for number in numbers))

    def allot(self, cores: int, runs: int | None = None, *, siblings: bool = False) -> tuple[Allotment, ...]:
        """Divide the processors among simultaneous runs.

        No two runs share a physical core, and each uses as few memory nodes as possible. Runs are spread evenly over
        the nodes.

        Args:
            cores: the number of processors of each run, at least 1.
            runs: the number of runs (default: as many as possible).
            siblings: let a run use all processors of a physical core (default False: one of each, the others are idle).

        Raises:
            SpecError: not enough processors.
        """
        for name, number in (("cores", cores), ("runs", 1 if runs is None else runs)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise SpecError(f"{name}: {number!r:.100} is not a number of at least 1")
        made = _Partition(self, siblings=siblings).shares(cores, runs)
        if not made or (runs is not None and len(made) < runs):
            room = f"room for {len(made)} runs" if made else "not room for one run"
            hint = "" if siblings else "; siblings=True uses all processors of a core"
            raise SpecError(f"cores: there is {room} with {cores} processors each, of {len(self.processors)}{hint}")
        return tuple(made)


class _Partition:
    """The physical cores that are left, for each memory node."""

    def __init__(self, topology: Topology, *, siblings: bool) -> None:
        cores: dict[tuple[int, int], list[int]] = {}
        for processor in topology.processors:
            cores.setdefault((processor.node, processor.core), []).append(processor.number)
        self._left: dict[int, list[list[int]]] = {}
        for (node, _), numbers in sorted(cores.items()):
            self._left.setdefault(node, []).append(numbers if siblings else numbers[:1])

    def shares(self, cores: int, runs: int | None) -> list[Allotment]:
        made: list[Allotment] = []
        while (runs is None or len(made) < runs) and (share := self._share(cores)) is not None:
            made.append(share)
        return made

    def _share(self, cores: int) -> Allotment | None:
        """Take the processors of one run from the node with the most left, or from several if none has enough."""
        nodes = sorted(self._left, key=lambda node: (-self._room(node), node))
        taken: list[int] = []
        used: list[int] = []
        if sum(map(self._room, nodes)) < cores:
            return None
        for node in nodes:
            if len(taken) < cores and self._left[node]:
                used.append(node)
                while len(taken) < cores and self._left[node]:
                    taken += self._left[node].pop(0)
        return Allotment(cores=tuple(sorted(taken[:cores])), memory_nodes=tuple(sorted(used)))

    def _room(self, node: int) -> int:
        return sum(map(len, self._left[node]))


def _processor(root: str, number: int) -> Processor:
    base = f"{root}/cpu{number}"
    core = number
    for name in ("core_cpus_list", "thread_siblings_list"):
        try:
            with open(f"{base}/topology/{name}", encoding="ascii") as file:
                core = min(parse_list(file.read()), default=number)
            break
        except OSError:  # an older kernel has another name, a virtual machine may have neither
            continue
    try:
        nodes = [int(name[4:]) for name in os.listdir(base) if re.fullmatch(r"node\d+", name)]
    except OSError:
        nodes = []
    return Processor(number, core, min(nodes, default=0))
