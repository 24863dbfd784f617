"""The operations of a start, as data.

A *plan* is a flat, ordered tuple of :class:`Operation`. Nearly every operation is one system call. Its arguments are
integers, bytes and *slots*. A slot is a named register of the child. It holds a file descriptor or a pid that is only
known when the start runs, because an earlier operation made it (``result=``) or because the caller passes it.

Building a plan makes no system call. :meth:`Plan.encode` compiles it once to the flat tape that the interpreters of
:mod:`containerkit._native` execute. The layout of the tape is documented in ``_native/native.h``.
"""

from __future__ import annotations

import os
from _thread import RLock
from struct import pack

from containerkit._native import constants as k
from containerkit.typed import NamedTuple
from containerkit.weak import WeakValues

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final, Self

__all__ = ["ARGV", "ENVP", "SLOTS", "Argument", "Block", "Operation", "Shape", "Slot", "Vector", "numbers"]

SLOTS: Final = 1024
"""The number of registers of a tape."""


class Slot(NamedTuple):
    """A register of the child, by name: equal names are the same register."""

    name: str


class Vector(NamedTuple):
    """The argument or environment vector that the caller passes at each start."""

    name: str


ARGV: Final = Vector("argv")
ENVP: Final = Vector("envp")


class Block(NamedTuple):
    """A structure in memory whose address is passed to the kernel.

    Attributes:
        content: the bytes.
        patches: values to write into them just before the call: at an offset in bytes, the 32-bit value of a slot or
            the 64-bit address of other bytes.
        name: if given, the caller may pass other bytes of the same length at each start.
    """

    content: bytes
    patches: tuple[tuple[int, Slot | bytes | Block], ...] = ()
    name: str = ""


Argument = int | bytes | Slot | Vector | Block


class Operation(NamedTuple):
    """One step of a plan.

    Attributes:
        name: the name of the system call or step.
        target: what it acts on, for errors.
        step: the kind of step (``constants.STEP_*``).
        call: the system call's number, for ``STEP_CALL``.
        args: at most six. Bytes are passed as the address of a NUL-terminated copy.
        result: the slot for the returned value.
        tolerate: error numbers that count as success, at most four.
        hint: the remedy to show when it fails.
        skip: how many of the next operations are skipped if it fails with a tolerated error.
        leap: how many of the next operations are skipped if it succeeds.
        jump: for ``STEP_CLONE``: the label at which the new process continues.
        label: a name that a jump can use.
    """

    name: str
    target: str = ""
    step: int = k.STEP_CALL
    call: int = 0
    args: tuple[Argument, ...] = ()
    result: Slot | None = None
    tolerate: tuple[int, ...] = ()
    hint: str = ""
    jump: str = ""
    label: str = ""
    skip: int = 0
    leap: int = 0

    def describe(self) -> str:
        """Return a readable line, such as ``mount proc on /proc``."""
        return f"{self.name} {self.target}".rstrip()


class Shape:
    """A key of those parts of a description on which its plan depends.

    Equal parts give the same object while it lives.
    """

    __slots__ = ("__weakref__", "parts")

    parts: tuple[object, ...]

    def __new__(cls, *parts: object) -> Self:  # noqa: D102 - see the class
        def make() -> Shape:
            shape = object.__new__(cls)
            shape.parts = parts
            return shape

        with _known.lock:
            return _known.shapes.get(parts, make)  # type: ignore[return-value] # there are no subclasses

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.parts


class _Known:
    """The shapes that are in use. A signal handler may request one while another request is in progress."""

    def __init__(self) -> None:
        self.shapes: WeakValues[Shape] = WeakValues()
        self.lock = RLock()


_known = _Known()
os.register_at_fork(after_in_child=lambda: setattr(_known, "lock", RLock()))


# --- The operations, each named after its system call ----------------------------------------------------------------


def numbers(values: Iterable[int | Slot]) -> Block:
    """Return descriptors as an array of 32-bit numbers, with -1 for a slot until its value is known."""
    listed = tuple(values)
    content = b"".join(pack("=i", -1 if isinstance(value, Slot) else value) for value in listed)
    return Block(content, tuple((4 * at, value) for at, value in enumerate(listed) if isinstance(value, Slot)))
