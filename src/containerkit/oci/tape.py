"""Build a tape step by step. For descriptions, :mod:`containerkit.plan.operation` does this.

A plan is data that is printed, compared and cached. A tape of the command line is used once, and this module must load
in less time than a start takes. So it packs each step immediately, with the same packer, and keeps only name and target
for error messages.
"""

from __future__ import annotations

from struct import pack

from containerkit._native import constants as k
from containerkit._native.packing import NO_SLOT, SLOTS, Packer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SLOTS", "Data", "Slot", "Tape"]

_MORE_CALLS = {
    "x86_64": {"accept4": 288},
    "aarch64": {"accept4": 242},
}.get(k.MACHINE, {})
_CALLS = {**k.SYSTEM_CALLS, **_MORE_CALLS}
_CALL, _INTEGER, _DATA, _SLOT = k.STEP_CALL, k.ARG_INTEGER, k.ARG_DATA, k.ARG_SLOT


class Slot:
    """A register of the process that executes the tape."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Data:
    """A position in the tape's data. Its address is passed to the kernel."""

    __slots__ = ("length", "offset")

    def __init__(self, offset: int, length: int) -> None:
        self.offset = offset
        self.length = length


class Vector:
    """The argument or environment vector of the exec."""

    __slots__ = ("kind",)

    def __init__(self, kind: int) -> None:
        self.kind = kind


ARGV = Vector(k.ARG_ARGV)
ENVP = Vector(k.ARG_ENVP)

if TYPE_CHECKING:
    Argument = int | bytes | Slot | Data | Vector
    Descriptor = int | Slot


class Tape:
    """Steps in the order in which they are made."""

    __slots__ = ("_packer", "names")

    def __init__(self) -> None:
        self._packer = Packer()
        self.names: list[tuple[str, str, str]] = []

    def __len__(self) -> int:
        return len(self.names)

    @property
    def slot_count(self) -> int:
        """How many registers the tape uses."""
        return len(self._packer.slots)

    def __str__(self) -> str:
        return "\n".join(f"{number:3} {name} {target}".rstrip() for number, (name, target, _) in enumerate(self.names))

    def slot(self, name: str) -> Slot:
        """Return the register of that name. Equal names mean the same register.

        Raises:
            ValueError: no register is free.
        """
        return Slot(self._packer.number_of(name))

    def block(self, content: bytes, *patches: tuple[int, Slot | Data]) -> Data:
        """Place a structure in memory. Its patches are written into it by steps, which are added here.

        Args:
            content: the bytes.
            patches: at an offset the 32-bit value of a slot, or the 64-bit address of other data.
        """
        place = Data(self._packer.place(content, shared=False), len(content))
        for at, source in patches:
            kind = k.STEP_STORE_SLOT if isinstance(source, Slot) else k.STEP_STORE_ADDRESS
            self.step(kind, "store", place.offset + at, source)
        return place

    def step(
        self,
        kind: int,
        name: str,
        *args: Argument,
        call: int = 0,
        target: str = "",
        result: Slot | None = None,
        ok: Sequence[int] = (),
        hint: str = "",
    ) -> int:
        """Add a step and return its number.

        Raises:
            ValueError: too many arguments or tolerated errors, a NUL inside a string.
        """
        return self._add(kind, call, name, args, target, result, ok, hint)

    def _add(
        self,
        kind: int,
        call: int,
        name: str,
        args: tuple[Argument, ...],
        target: str,
        result: Slot | None,
        ok: Sequence[int],
        hint: str,
    ) -> int:
        """Add a step. A start adds hundreds of them."""
        kinds: list[int] = []
        values: list[int] = []
        for argument in args:
            if isinstance(argument, int):
                kinds.append(_INTEGER)
                values.append(argument)
            elif isinstance(argument, Slot):
                kinds.append(_SLOT)
                values.append(argument.number)
            elif isinstance(argument, bytes):
                kinds.append(_DATA)
                values.append(self._packer.text(argument))
            elif isinstance(argument, Data):
                kinds.append(_DATA)
                values.append(argument.offset)
            else:
                kinds.append(argument.kind)
                values.append(0)
        self.names.append((name, target, hint))
        return self._packer.add(kind, call, NO_SLOT if result is None else result.number, kinds, values, ok)

    def call(
        self,
        name: str,
        *args: Argument,
        target: str = "",
        result: Slot | None = None,
        ok: Sequence[int] = (),
        hint: str = "",
    ) -> int:
        """Add a system call by its name and return the step's number.

        Args:
            name: the system call.
            args: at most six; bytes are passed as the address of a NUL-terminated copy.
            target: what it acts on, for messages.
            result: the register that takes the value returned.
            ok: error numbers that count as success, at most four.
            hint: the remedy to show when it fails.
        """
        number = _CALLS.get(name)
        if number is None:
            raise ValueError(f"this machine has no system call {name}")
        return self._add(_CALL, number, name, args, target, result, ok, hint)

    def skip_here(self, number: int) -> None:
        """Continue here if step ``number`` fails with a tolerated error."""
        self._packer.skip(number, len(self) - number - 1)

    def leap_here(self, number: int) -> None:
        """Continue here if step ``number`` succeeds."""
        self._packer.leap(number, len(self) - number - 1)

    def aim_here(self, number: int) -> None:
        """Let the process that step ``number`` clones continue here."""
        self._packer.aim(number, len(self))

    def encode(self) -> tuple[bytes, bytes]:
        """Return the packed steps and the data that they point into."""
        return self._packer.packed()

    def image(self, argv: Iterable[bytes], envp: Iterable[bytes]) -> bytes:
        """Return the memfd content for the init's ``walk`` mode: ``struct ck_image`` of native.h."""
        steps, data = self.encode()
        arguments, environment = list(argv), list(envp)
        counts = len(self), len(data), len(arguments), len(environment), self.slot_count
        header = pack("=6IiI", 0, *counts, -1, 0)
        strings = b"".join([word + b"\0" for word in arguments + environment])
        return header + b"\xff" * (8 * self.slot_count) + steps + data + strings
