"""The operations of a start, as data.

A *plan* is a flat, ordered tuple of :class:`Operation`; almost each is one system call whose arguments are resolved to
integers, bytes and *slots*. A slot is a named register of the child: it holds a file descriptor or a pid that is only
known once the start runs, because an earlier operation made it (``result=``) or because the caller hands it in.

Building a plan touches nothing: no system call, no file. :meth:`Plan.encode` compiles it once to the flat tape which
the interpreters of :mod:`containerkit._native` walk; the layout of the tape is drawn in ``_native/native.h``.
"""

from __future__ import annotations

import os
from struct import pack
from threading import RLock
from typing import TYPE_CHECKING, Final, NamedTuple
from weakref import WeakValueDictionary

from containerkit._native import constants as k

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["ARGV", "ENVP", "SLOTS", "Argument", "Block", "Operation", "Shape", "Slot", "Vector", "numbers"]

SLOTS: Final = 1024
"""How many registers a tape has."""


class Slot(NamedTuple):
    """A register of the child, by name: equal names are the same register."""

    name: str


class Vector(NamedTuple):
    """The argument or environment vector that the caller hands in at each start."""

    name: str


ARGV: Final = Vector("argv")
ENVP: Final = Vector("envp")


class Block(NamedTuple):
    """A structure in memory whose address is handed to the kernel.

    Attributes:
        content: the bytes.
        patches: what is written over them just before the call: at an offset in bytes, the 32-bit value of a slot
            or the 64-bit address of other bytes.
        name: if given, the caller may hand in other bytes of the same length at each start.
    """

    content: bytes
    patches: tuple[tuple[int, Slot | bytes | Block], ...] = ()
    name: str = ""


Argument = int | bytes | Slot | Vector | Block


class Operation(NamedTuple):
    """One step of a plan.

    Attributes:
        name: what is done: the system call's name, or the step's.
        target: what it is done to, for people.
        step: the kind of step (``constants.STEP_*``).
        call: the system call's number, for ``STEP_CALL``.
        args: at most six. Bytes are passed as the address of a NUL-terminated copy.
        result: the slot that takes the value returned.
        tolerate: error numbers that count as success, at most four.
        hint: the remedy to show when it fails.
        skip: how many of the next operations are left out when it fails with a tolerated error.
        leap: how many of the next operations are left out when it succeeds.
        jump: for ``STEP_CLONE``: the label where the new process goes on.
        label: a name that a jump can aim at.
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
        """Return one line for people, such as ``mount proc on /proc``."""
        return f"{self.name} {self.target}".rstrip()


class Shape:
    """All of a description that its plan depends on, as a key: equal parts give the same object while it lives."""

    __slots__ = ("__weakref__", "parts")

    parts: tuple[object, ...]

    def __new__(cls, *parts: object) -> Self:  # noqa: D102 - the class tells
        with _known.lock:
            shape = _known.shapes.get(parts)
            if shape is None:
                shape = super().__new__(cls)
                shape.parts = parts
                _known.shapes[parts] = shape
        return shape  # type: ignore[return-value] # there are no subclasses

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.parts


class _Known:
    """The shapes that are in use. The handler of a signal may ask for one in the midst of the same."""

    def __init__(self) -> None:
        self.shapes: WeakValueDictionary[tuple[object, ...], Shape] = WeakValueDictionary()
        self.lock = RLock()


_known = _Known()
os.register_at_fork(after_in_child=lambda: setattr(_known, "lock", RLock()))


# --- The operations, each named after its system call ----------------------------------------------------------------


def numbers(values: Iterable[int | Slot]) -> Block:
    """Return descriptors as an array of 32-bit numbers, -1 in the place of a slot's until it is known."""
    listed = tuple(values)
    content = b"".join(pack("=i", -1 if isinstance(value, Slot) else value) for value in listed)
    return Block(content, tuple((4 * at, value) for at, value in enumerate(listed) if isinstance(value, Slot)))
