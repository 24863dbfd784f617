"""Tapes in the reference interpreter: their steps, and the checks for malformed ones."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._native import constants as k
from containerkit._native.outcome import SLOTS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "BESIDE_GATE",
    "COMMAND_GATE",
    "ENTRY_FILE",
    "ENTRY_SIZE",
    "ENTRY_SYMLINK",
    "GATES",
    "LAYOUT",
    "NO_SLOT",
    "Entry",
    "Step",
    "Tape",
    "entries_of",
]

LAYOUT: Final = struct.Struct("=HHi8B4h6q")
NO_SLOT: Final = 0xFFFF
ENTRY_SYMLINK, ENTRY_FILE, ENTRY_KINDS = 1, 2, 3
_ENTRY: Final = struct.Struct("=4I")
ENTRY_SIZE: Final = _ENTRY.size
_KINDS, _ARGUMENT_KINDS, GATES, COMMAND_GATE, BESIDE_GATE = 19, 5, 3, 1, 3
_MOST_OFFSET: Final = 64  # CK_MOST_OFFSET in native.h
_UNKNOWN: Final = frozenset({k.STEP_HOLD})
"""Nothing here is shared with a process that has exec'd."""


class Step(NamedTuple):
    """One step of a tape: ``struct ck_step`` in ``native.h``."""

    kind: int
    result: int
    call: int
    argument_kind: tuple[int, ...]
    skip: int
    leap: int
    tolerate: tuple[int, ...]
    argument: tuple[int, ...]

    @classmethod
    def unpack(cls, packed: bytes) -> Step:
        """Parse the bytes of one step."""
        fields = LAYOUT.unpack(packed)
        return cls(fields[0], fields[1], fields[2], fields[3:9], fields[9], fields[10], fields[11:15], fields[15:])


class Entry(NamedTuple):
    """What a step makes: ``struct ck_entry`` in ``native.h``."""

    kind: int
    mode: int
    path: bytes
    content: bytes


def entries_of(data: bytes) -> Iterator[tuple[int, Entry | None]]:
    """Yield the offset of each entry and the entry, or None and no more if it is malformed."""
    at = 0
    while at < len(data):
        if len(data) - at < ENTRY_SIZE:
            yield at, None
            return
        kind, mode, path_size, content_size = _ENTRY.unpack_from(data, at)
        begin = at + ENTRY_SIZE + path_size
        path, content = data[at + ENTRY_SIZE : begin], data[begin : begin + content_size]
        end = begin + content_size
        end += -end % 8
        is_whole = kind < ENTRY_KINDS and path_size > 1 and end <= len(data) and path.endswith(b"\0")
        if not is_whole or (kind == ENTRY_SYMLINK and not (content_size > 1 and content.endswith(b"\0"))):
            yield at, None
            return
        yield at, Entry(kind, mode, path[:-1], content)
        at = end


class Tape:
    """Checked steps and their data.

    Args:
        steps: the packed steps. An incomplete step at the end is ignored.
        data: the data that they refer to. It ends with a zero byte, or is empty.

    Raises:
        ValueError: a step is malformed.
    """

    __slots__ = ("data", "steps")

    def __init__(self, steps: bytes, data: bytes) -> None:
        size = LAYOUT.size
        self.steps = [Step.unpack(steps[at : at + size]) for at in range(0, len(steps) // size * size, size)]
        self.data = data
        for index, step in enumerate(self.steps):
            if (data and data[-1] != 0) or not self._is_valid(step):
                raise ValueError(f"step {index} of the tape is malformed")

    def _are_within(self, step: Step) -> bool:
        """Return whether everything that the arguments refer to exists."""
        limits = {k.ARG_DATA: len(self.data), k.ARG_SLOT: SLOTS}
        return all(
            kind < _ARGUMENT_KINDS and (kind not in limits or 0 <= value < limits[kind])
            for kind, value in zip(step.argument_kind, step.argument, strict=True)
        )

    @staticmethod
    def _is_known(step: Step) -> bool:
        return step.kind < _KINDS and step.kind not in _UNKNOWN and (step.result == NO_SLOT or step.result < SLOTS)

    def _is_valid(self, step: Step) -> bool:  # noqa: PLR0911 - one for each kind of step
        if not self._is_known(step) or not self._are_within(step):
            return False
        first = step.argument[0]
        match step.kind:
            case k.STEP_CLONE:
                return 0 <= step.argument[5] < len(self.steps)
            case k.STEP_CLOSE:
                return step.argument_kind[0] == k.ARG_SLOT
            case k.STEP_AWAIT | k.STEP_RELEASE:
                last = BESIDE_GATE if step.kind == k.STEP_AWAIT else GATES - 1
                return step.argument_kind[0] == k.ARG_INTEGER and 0 <= first <= last
            case k.STEP_ENTER | k.STEP_STRIP:
                return self._is_list(step, 1 if step.kind == k.STEP_ENTER else 0)
            case k.STEP_NETLINK:
                offset, size = step.argument[1:3]
                kinds = step.argument_kind[1], step.argument_kind[2]
                return kinds == (k.ARG_DATA, k.ARG_INTEGER) and 0 <= size <= len(self.data) - offset
            case k.STEP_POPULATE:
                return self._is_populated(step)
            case k.STEP_OWN_PID:
                kinds = step.argument_kind[0], step.argument_kind[1]
                return kinds == (k.ARG_ENVP, k.ARG_INTEGER) and 0 <= step.argument[1] < _MOST_OFFSET
            case k.STEP_STORE_SLOT | k.STEP_STORE_ADDRESS:
                return first >= 0 and first + (4 if step.kind == k.STEP_STORE_SLOT else 8) <= len(self.data)
            case _:
                return True

    def _is_populated(self, step: Step) -> bool:
        """Return whether the entries of a step lie within the data, and each is well formed."""
        offset, size = step.argument[1:3]
        if step.argument_kind[1:4] != (k.ARG_DATA, k.ARG_INTEGER, k.ARG_SLOT) or offset % 8:
            return False
        if not 0 <= size <= len(self.data) - offset:
            return False
        return all(entry is not None for _, entry in entries_of(self.data[offset : offset + size]))

    def _is_list(self, step: Step, at: int) -> bool:
        """Return whether a step's list of descriptor numbers lies within the data."""
        offset, count = step.argument[at : at + 2]
        if step.argument_kind[at + 1] != k.ARG_INTEGER or count == 0:
            return count == 0
        return step.argument_kind[at] == k.ARG_DATA and 0 < count <= (len(self.data) - offset) // 4
