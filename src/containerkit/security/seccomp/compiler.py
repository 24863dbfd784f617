"""Compile rules to a program: ranges of numbers become a balanced tree.

When a filter is installed, the kernel runs it once for each system call number to learn which calls are always allowed.
Those calls never run the filter again. So the cost is the length of the paths, not that of the program. Neighbouring
numbers with the same result are merged. The ranges form a search tree that is balanced by the count of numbers in each
branch.
"""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit.security.seccomp import assembler as bpf
from containerkit.security.seccomp.architecture import ARCHITECTURES, X32_BIT, Architecture, architecture, calls_of
from containerkit.security.seccomp.multiplexed import multiplexed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.security.seccomp.profile import Condition, Seccomp

__all__ = ["compile_filter"]


class Test(NamedTuple):
    """A condition on one architecture. Only the bits of the mask are compared."""

    argument: int
    op: str
    value: int
    mask: int


Clause = tuple[tuple[Test, ...], int]
Fate = tuple[Clause, ...]
"""The result for one number: clauses in the order in which they are tested. The last one has no conditions."""

_OF_NUMBER: Final = 0
_OF_ARCHITECTURE: Final = 4
_OF_ARGUMENTS: Final = 16
_NO_CALL: Final = 0xFFFFFFFF
"""The number that a tracer sets to skip a call."""

_LEAST_WEIGHT: Final = 4
"""A range weighs at least as much as four numbers, which limits the depth of narrow ranges."""


@lru_cache(maxsize=64)
def compile_filter(seccomp: Seccomp, machine: str) -> bytes:
    """Compile a filter for a machine. Filters with equal content are compiled once.

    Raises:
        SpecError: the program is longer than the kernel accepts.
    """
    names = dict.fromkeys([machine, *seccomp.architectures])
    wanted = {each.name: each for each in map(architecture, names)}
    out = bpf.Assembler()
    refused = out.verdict(seccomp.foreign_action.value)
    entries: list[tuple[int, bpf.Label]] = []
    for token, group in _by_token(wanted.values()).items():
        entries.append((token, _section(out, seccomp, group)))
    start = refused
    for token, entry in reversed(entries):
        start = out.test(bpf.EQUAL, token, entry, start)
    return out.program(out.load(_OF_ARCHITECTURE, start))


def _by_token(wanted: Iterable[Architecture]) -> dict[int, list[Architecture]]:
    """Group the architectures by their token: x32 shares the token of x86_64."""
    groups: dict[int, list[Architecture]] = {}
    for each in wanted:
        groups.setdefault(each.token, []).append(each)
    return groups


def _section(out: bpf.Assembler, seccomp: Seccomp, group: list[Architecture]) -> bpf.Label:
    """Write the tree of one architecture."""
    unknown: Fate = (((), (seccomp.unknown_action or seccomp.default_action).value),)
    foreign: Fate = (((), seccomp.foreign_action.value),)
    fates: dict[int, Fate] = {}
    for each in group:
        fates.update(_results(seccomp, each))
    zones = [(0, unknown)]
    if group[0].token == ARCHITECTURES["x32"].token:
        present = {each.name for each in group}
        zones = [(0, unknown if "x86_64" in present else foreign)]
        zones += [(X32_BIT, unknown if "x32" in present else foreign), (_NO_CALL, unknown)]
    starts, found = _ranges(fates, zones)
    weights = _weights(starts, min(fates), max(fates))
    tree = _Tree(out, starts, found, weights, big_endian=group[0].big_endian)
    return out.load(_OF_NUMBER, tree.write(0, len(starts)))


def _results(seccomp: Seccomp, of: Architecture) -> dict[int, Fate]:
    """Return the result for each call in an architecture's table."""
    numbers = calls_of(of.table)
    clauses: dict[int, list[Clause]] = {}
    counted = (1 << of.bits) - 1
    for rule in seccomp.rules:
        when = tuple(_test(condition, counted) for condition in rule.when)
        for name in rule.names:
            if name in numbers:
                clauses.setdefault(numbers[name], []).append((when, rule.action.value))
            if of.multiplexed and (second := multiplexed(name, numbers)):
                number, sub_call = second
                picked = Test(0, "eq", sub_call, counted)
                clauses.setdefault(number, []).append(((picked,), rule.action.value))
    otherwise = seccomp.default_action.value
    return {number + of.offset: _result(clauses.get(number, ()), otherwise) for number in numbers.values()}


def _test(condition: Condition, counted: int) -> Test:
    mask = counted & (condition.mask if condition.op in {"masked_eq", "masked_ne"} else counted)
    return Test(condition.argument, condition.op, condition.value & mask, mask)


def _result(clauses: Iterable[Clause], otherwise: int) -> Fate:
    """Drop the clauses that have no effect."""
    kept: list[Clause] = []
    for when, action in clauses:
        if not when:
            otherwise = action
            break
        kept.append((when, action))
    while kept and kept[-1][1] == otherwise:
        kept.pop()
    return (*kept, ((), otherwise))


def _ranges(fates: dict[int, Fate], zones: list[tuple[int, Fate]]) -> tuple[list[int], list[Fate]]:
    """Merge neighbours with the same result. Numbers without one have the result of their zone."""
    starts: list[int] = []
    found: list[Fate] = []

    def begin(number: int, fate: Fate) -> None:
        if starts and starts[-1] == number:
            starts.pop()
            found.pop()
        if not found or found[-1] != fate:
            starts.append(number)
            found.append(fate)

    edges = [edge for edge, _ in zones] + [_NO_CALL + 1]
    for index, (edge, gap) in enumerate(zones):
        begin(edge, gap)
        for number in sorted(number for number in fates if edge <= number < edges[index + 1]):
            begin(number, fates[number])
            if number + 1 < edges[index + 1]:
                begin(number + 1, gap)
    return starts, found


def _weights(starts: list[int], first: int, last: int) -> list[int]:
    """Return the running total of the numbers in each range."""
    ends = [*starts[1:], _NO_CALL]
    sizes = [
        max(_LEAST_WEIGHT, min(end, last + 1) - max(start, first)) for start, end in zip(starts, ends, strict=True)
    ]
    return [0, *accumulate(sizes)]


class _Tree:
    """Writes the search tree of one architecture."""

    def __init__(
        self, out: bpf.Assembler, starts: list[int], fates: list[Fate], weights: list[int], *, big_endian: bool
    ) -> None:
        self._out = out
        self._big_endian = big_endian
        self._starts = starts
        self._results = fates
        self._weights = weights
        self._written: dict[Fate, bpf.Label] = {}

    def write(self, low: int, high: int) -> bpf.Label:
        """Write the decision between the ranges from ``low`` up to ``high``."""
        if high - low == 1:
            return self._leaf(self._results[low])
        weights = self._weights
        middle = bisect_left(weights, (weights[low] + weights[high]) / 2, low + 1, high - 1)
        if middle - 1 > low and weights[low] + weights[high] - 2 * weights[middle - 1] < abs(
            weights[low] + weights[high] - 2 * weights[middle]
        ):
            middle -= 1
        above = self.write(middle, high)
        below = self.write(low, middle)
        return self._out.test(bpf.GREATER_EQUAL, self._starts[middle], above, below)

    def _leaf(self, fate: Fate) -> bpf.Label:
        *clauses, (_, otherwise) = fate
        if not clauses:
            return self._out.verdict(otherwise)
        if fate not in self._written:
            label = self._out.verdict(otherwise)
            for when, action in reversed(clauses):
                label = self._clause(when, self._out.verdict(action), label)
            self._written[fate] = label
        return self._written[fate]

    def _clause(self, when: tuple[Test, ...], yes: bpf.Label, no: bpf.Label) -> bpf.Label:
        for test in reversed(when):
            yes = self._compare(test, yes, no)
        return yes

    def _compare(self, test: Test, yes: bpf.Label, no: bpf.Label) -> bpf.Label:
        """Compare one argument, the high half first."""
        if test.op in {"ne", "masked_ne", "lt", "le"}:
            yes, no = no, yes
        out = self._out
        value, mask = test.value, test.mask
        place = _OF_ARGUMENTS + 8 * test.argument
        low, high = (place + 4, place) if self._big_endian else (place, place + 4)
        final = {"gt": bpf.GREATER, "le": bpf.GREATER, "ge": bpf.GREATER_EQUAL, "lt": bpf.GREATER_EQUAL}
        kind = final.get(test.op, bpf.EQUAL)
        label = self._half(low, mask & _NO_CALL, (kind, value & _NO_CALL), yes, no)
        if not mask >> 32:
            return label
        if test.op in final:
            label = out.test(bpf.EQUAL, value >> 32, label, no)
            label = out.test(bpf.GREATER, value >> 32, yes, label)
            return out.load(high, label)
        return self._half(high, mask >> 32, (bpf.EQUAL, value >> 32), label, no)

    def _half(self, place: int, mask: int, test: tuple[int, int], yes: bpf.Label, no: bpf.Label) -> bpf.Label:
        """Compare 32 bits of an argument."""
        if not mask:
            return yes
        label = self._out.test(*test, yes, no)
        if label == yes == no:
            return label
        if mask != _NO_CALL:
            label = self._out.mask(mask, label)
        return self._out.load(place, label)
