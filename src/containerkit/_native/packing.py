"""Packs steps and their data into the bytes of a tape. ``native.h`` defines the layout.

The planner and the OCI command describe steps differently. Both use this packer.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NO_SLOT", "SLOTS", "Packer"]

SLOTS = 1024
"""The maximum number of registers of a tape: CK_SLOTS in native.h."""

NO_SLOT = 0xFFFF
"""The register of a step whose value is not stored."""

STEP = Struct("=HHi8B4h6q")
_KINDS, _SKIP, _LEAP, _TOLERATED, _VALUES = 3, 9, 10, 11, 15
"""The offsets of the fields of a step."""

_MOST_ARGUMENTS, _MOST_TOLERATED, _LONGEST_REACH = 6, 4, 255


class Packer:
    """Collects the steps of one tape, and the data that they point into.

    Attributes:
        steps: the fields of each step.
        slots: the number of each register by its name.
    """

    __slots__ = ("_data", "_places", "_size", "slots", "steps")

    def __init__(self) -> None:
        self.steps: list[list[int]] = []
        self._data: list[bytes] = []  # the strings and structures, which are joined once: they can be a megabyte
        self._size = 0
        self.slots: dict[str, int] = {}
        self._places: dict[bytes, int] = {}

    def number_of(self, name: str) -> int:
        """Return the number of a register. Equal names mean the same register.

        Raises:
            ValueError: no register is free.
        """
        number = self.slots.setdefault(name, len(self.slots))
        if number >= SLOTS:
            raise ValueError(f"a tape has at most {SLOTS} slots")
        return number

    def text(self, content: bytes) -> int:
        """Place a string and return its offset. Equal strings are placed once.

        Raises:
            ValueError: it contains a NUL.
        """
        found = self._places.get(content)
        if found is not None:
            return found
        if b"\0" in content:
            raise ValueError(f"a NUL byte inside {content!r}")
        return self.place(content, shared=True)

    def place(self, content: bytes, *, shared: bool) -> int:
        """Place bytes with the alignment of structures, and return their offset.

        A NUL follows them, so that the data always ends in one and no string runs past it.

        Args:
            content: the bytes.
            shared: whether equal bytes are placed once, because nothing is written over them.
        """
        found = self._places.get(content) if shared else None
        if found is not None:
            return found
        gap = -self._size % 8
        offset = self._size + gap
        self._data += (bytes(gap), content, b"\0")
        self._size = offset + len(content) + 1
        if shared:
            self._places[content] = offset
        return offset

    def add(
        self, kind: int, call: int, result: int, kinds: Sequence[int], values: Sequence[int], tolerated: Sequence[int]
    ) -> int:
        """Add a step and return its number.

        Args:
            kind: its kind (``constants.STEP_*``).
            call: the number of the system call.
            result: the register for the returned value, or ``NO_SLOT``.
            kinds, values: the kinds (``constants.ARG_*``) and values of its arguments, at most six.
            tolerated: error numbers that count as success, at most four.

        Raises:
            ValueError: there are more of them.
        """
        count = len(values)
        if count > _MOST_ARGUMENTS or len(tolerated) > _MOST_TOLERATED:
            raise ValueError("at most six arguments and four tolerated errors")
        step = [kind, result, call, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        step[_KINDS : _KINDS + count] = kinds
        step[_VALUES : _VALUES + count] = values
        if tolerated:
            step[_TOLERATED : _TOLERATED + len(tolerated)] = tolerated
        self.steps.append(step)
        return len(self.steps) - 1

    def skip(self, number: int, count: int) -> None:
        """Skip the next steps if a step fails with a tolerated error.

        Raises:
            ValueError: more than 255.
        """
        self.steps[number][_SKIP] = _reach(count)

    def leap(self, number: int, count: int) -> None:
        """Skip the next steps if a step succeeds.

        Raises:
            ValueError: more than 255.
        """
        self.steps[number][_LEAP] = _reach(count)

    def aim(self, number: int, target: int) -> None:
        """Let the process that a step clones continue at another step: the sixth argument of the clone."""
        self.steps[number][-1] = target

    def packed(self) -> tuple[bytes, bytes]:
        """Return the packed steps and the data that they point into."""
        return b"".join([STEP.pack(*step) for step in self.steps]), b"".join(self._data)


def _reach(count: int) -> int:
    if count > _LONGEST_REACH:
        raise ValueError(f"a step can skip at most {_LONGEST_REACH} others")
    return count
