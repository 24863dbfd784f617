"""The cpuset controller selects processors and memory nodes.

Source: cpuset(7); "Cpuset" in Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting, unsupported
from containerkit.cgroup.quantities import numbers
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.stats import CpusetStats

_OUTSIDE = "the list must lie within the parent group's; see cpuset.cpus.effective there"

_PARTITION = (
    "a partition takes its processors from a parent that is itself a partition: create the group right below one, and "
    "name in cpuset_cpus processors of the parent that no sibling uses"
)


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that apply the limits."""
    return _version_2(limits) if version == 2 else _version_1(limits)


def _version_2(limits: Limits) -> list[Setting | Attachment]:
    found: list[Setting | Attachment] = []
    if limits.cpuset_cpus is not None:
        found.append(Setting("cpuset.cpus", _within(limits.cpuset_cpus, "cpus", 2), _OUTSIDE))
        if limits.cpuset_exclusive:
            hint = "exclusive processors need kernel 6.7, and no sibling may use them"
            found.append(Setting("cpuset.cpus.exclusive", limits.cpuset_cpus.encode(), hint))
    elif limits.cpuset_exclusive:
        raise SpecError("cpuset_exclusive: name the processors in cpuset_cpus")
    if limits.cpuset_mems is not None:
        found.append(Setting("cpuset.mems", _within(limits.cpuset_mems, "mems", 2), _OUTSIDE))
    if limits.cpuset_partition is not None:
        found.append(Setting("cpuset.cpus.partition", limits.cpuset_partition.encode(), _PARTITION, judged=True))
    return found


def _version_1(limits: Limits) -> list[Setting | Attachment]:
    """Return the lists, by default the parent's. A version 1 group starts without any, and then accepts no process."""
    if limits.cpuset_partition is not None:
        raise unsupported("cpuset_partition", version=1)
    found: list[Setting | Attachment] = []
    for kind, wish in (("cpus", limits.cpuset_cpus), ("mems", limits.cpuset_mems)):
        found.append(Setting(f"cpuset.{kind}", _inherit(kind) if wish is None else _within(wish, kind, 1), _OUTSIDE))
    if limits.cpuset_exclusive is not None:
        hint = "another group already uses one of those processors"
        found.append(Setting("cpuset.cpu_exclusive", b"1" if limits.cpuset_exclusive else b"0", hint))
    return found


def _inherit(kind: str) -> Callable[[Callable[[str], str | None]], bytes]:
    def value(read: Callable[[str], str | None]) -> bytes:
        own = (read(f"cpuset.{kind}") or "").strip()
        return (own or (read(f"../cpuset.{kind}") or "").strip()).encode()

    return value


def _within(wish: str, kind: str, version: int) -> Callable[[Callable[[str], str | None]], bytes]:
    """Check the list against the parent's. Version 2 would accept any number and silently use none of them."""

    def value(read: Callable[[str], str | None]) -> bytes:
        file = f"../cpuset.{kind}.effective" if version == 2 else f"../cpuset.{kind}"
        there = (read(file) or "").strip()
        outside = numbers(wish) - numbers(there) if there else frozenset()
        if outside:
            raise SpecError(f"cpuset_{kind}: {sorted(outside)} are not among {there}, which this group may use")
        return wish.encode()

    return value


def report(read: Callable[[str], str | None], version: int) -> CpusetStats:
    """Return the processors and memory nodes on which the group can run."""
    from containerkit.cgroup.stats import CpusetStats

    names = ("cpuset.cpus.effective", "cpuset.mems.effective") if version == 2 else (
        "cpuset.effective_cpus",
        "cpuset.effective_mems",
    )  # fmt: skip
    lists: list[frozenset[int]] = []
    for name in names:
        text = (read(name) or "").strip()
        try:
            lists.append(numbers(text) if text else frozenset())
        except SpecError:
            lists.append(frozenset())
    partition = (read("cpuset.cpus.partition") or "").strip() if version == 2 else ""
    return CpusetStats(cpus=lists[0], mems=lists[1], partition=partition or None)
