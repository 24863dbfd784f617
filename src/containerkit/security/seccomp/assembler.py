"""An assembler for classic BPF that writes programs from the end to the start.

Jumps of classic BPF only go forward, and conditional jumps by at most 255 instructions. When a program is written from
the end, the position of each target is known before an instruction jumps to it. If a target is out of reach, an
intermediate jump is placed just after the instruction.

Source: linux/filter.h, seccomp(2).
"""

from __future__ import annotations

from struct import pack
from typing import Final

from containerkit.errors import SpecError

__all__ = ["EQUAL", "GREATER", "GREATER_EQUAL", "MAXIMUM", "Assembler"]

MAXIMUM: Final = 4096
"""The maximum number of instructions that the kernel accepts (``BPF_MAXINSNS``)."""

EQUAL: Final = 0x15
GREATER: Final = 0x25
GREATER_EQUAL: Final = 0x35
_LOAD_WORD: Final = 0x20
_AND: Final = 0x54
_GOTO: Final = 0x05
_RETURN: Final = 0x06
_REACH: Final = 255

Label = int
"""The number of instructions from the target to the end, including the target."""


class Assembler:
    """A program that grows at its front."""

    def __init__(self) -> None:
        self._backwards: list[tuple[int, int, int, int]] = []
        self._returns: dict[int, Label] = {}

    def verdict(self, value: int) -> Label:
        """Return from the filter with a value. An equal instruction within reach is used again."""
        label = self._returns.get(value)
        if label is None or len(self._backwards) - label > _REACH:
            label = self._returns[value] = self._push(_RETURN, 0, 0, value)
        return label

    def test(self, kind: int, value: int, yes: Label, no: Label) -> Label:
        """Compare the accumulator with a constant and jump to one of two labels."""
        if yes == no:
            return yes
        while True:
            here = len(self._backwards)
            if here - no > _REACH:
                no = self._step_to(no)
            elif here - yes > _REACH:
                yes = self._step_to(yes)
            else:
                return self._push(kind, here - yes, here - no, value)

    def load(self, offset: int, then: Label) -> Label:
        """Load a word of ``struct seccomp_data`` and continue."""
        self._meet(then)
        return self._push(_LOAD_WORD, 0, 0, offset)

    def mask(self, value: int, then: Label) -> Label:
        """Keep some bits of the accumulator and continue."""
        self._meet(then)
        return self._push(_AND, 0, 0, value)

    def program(self, start: Label) -> bytes:
        """Return the array of ``struct sock_filter`` that starts at a label.

        Raises:
            SpecError: the program is longer than the kernel accepts.
        """
        self._meet(start)
        count = len(self._backwards)
        if count > MAXIMUM:
            raise SpecError(f"seccomp filter: {count} instructions, the kernel accepts {MAXIMUM}: use fewer rules")
        return b"".join([pack("=HBBI", *each) for each in reversed(self._backwards)])

    def _push(self, code: int, yes: int, no: int, value: int) -> Label:
        self._backwards.append((code, yes, no, value))
        return len(self._backwards)

    def _meet(self, label: Label) -> None:
        """Make sure that the label's instruction follows the one that is pushed next."""
        if label != len(self._backwards):
            self._step_to(label)

    def _step_to(self, label: Label) -> Label:
        code, _, _, value = self._backwards[label - 1]
        if code == _RETURN:  # a copy is as long as a jump to it, and executes one instruction less
            self._returns[value] = copy = self._push(_RETURN, 0, 0, value)
            return copy
        return self._push(_GOTO, 0, 0, len(self._backwards) - label)
