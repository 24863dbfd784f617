"""A tape, built step by step: what :mod:`containerkit.plan` does for descriptions, for the command line of OCI.

The layout is the one of ``_native/native.h``. A plan is data that is printed, compared and cached; a tape of the
command line is used once and thrown away, and its maker must load in less time than the start takes. So this one packs
as it goes, and keeps of each step only the name and the target, for the message when it fails.
"""

from __future__ import annotations

from struct import Struct, pack

from containerkit._native import constants as k

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["SLOTS", "Data", "Slot", "Tape"]

SLOTS = 1024
_NO_SLOT = 0xFFFF
_STEP = Struct("=HHi8B4h6q")
_KINDS, _SKIP, _LEAP, _TOLERATED, _VALUES = 3, 9, 10, 11, 15
"""Where the fields of a step begin."""

_MORE_CALLS = {
    "x86_64": {"accept4": 288},
    "aarch64": {"accept4": 242},
}.get(k.MACHINE, {})


class Slot:
    """A register of the process that walks the tape."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number


class Data:
    """A place in the tape's data; its address is handed to the kernel."""

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

    __slots__ = ("_data", "_places", "_slots", "_steps", "names")

    def __init__(self) -> None:
        self._steps: list[list[int]] = []
        self._data = bytearray()
        self._places: dict[bytes, int] = {}
        self._slots: dict[str, Slot] = {}
        self.names: list[tuple[str, str, str]] = []

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def slot_count(self) -> int:
        """How many registers the tape uses."""
        return len(self._slots)

    def __str__(self) -> str:
        return "\n".join(f"{number:3} {name} {target}".rstrip() for number, (name, target, _) in enumerate(self.names))

    def slot(self, name: str) -> Slot:
        """Return the register of that name; equal names are the same register."""
        found = self._slots.get(name)
        if found is None:
            if len(self._slots) >= SLOTS:
                raise ValueError(f"a tape has at most {SLOTS} slots")
            found = self._slots[name] = Slot(len(self._slots))
        return found

    def block(self, content: bytes, *patches: tuple[int, Slot | Data]) -> Data:
        """Place a structure in memory; patches are written into it by steps of their own, made here and now.

        Args:
            content: the bytes.
            patches: at an offset the 32-bit value of a slot, or the 64-bit address of other data.
        """
        place = Data(self._place(content + b"\0", shared=False), len(content))
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
        """Add a step and return its number."""
        number = _NO_SLOT if result is None else result.number
        step = [kind, number, call, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        for position, argument in enumerate(args):
            if type(argument) is int:  # most of them are
                step[_VALUES + position] = argument
            else:
                step[_KINDS + position], step[_VALUES + position] = self._argument(argument)
        for position, error in enumerate(ok):
            step[_TOLERATED + position] = error
        self._steps.append(step)
        self.names.append((name, target, hint))
        return len(self._steps) - 1

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
            target: what it acts on, for people.
            result: the register that takes the value returned.
            ok: error numbers that count as success, at most four.
            hint: the remedy to show when it fails.
        """
        number = k.SYSTEM_CALLS.get(name) or _MORE_CALLS.get(name)
        if number is None and name != "read":  # whose number is 0 on x86_64
            raise ValueError(f"this machine has no system call {name}")
        return self.step(k.STEP_CALL, name, *args, call=number or 0, target=target, result=result, ok=ok, hint=hint)

    def skip_here(self, number: int) -> None:
        """Let the walk go on here when step ``number`` fails with a tolerated error."""
        self._steps[number][_SKIP] = self._reach(number)

    def leap_here(self, number: int) -> None:
        """Let the walk go on here when step ``number`` succeeds."""
        self._steps[number][_LEAP] = self._reach(number)

    def aim_here(self, number: int) -> None:
        """Let the process that the clone of step ``number`` makes go on here."""
        self._steps[number][-1] = len(self._steps)

    def _reach(self, number: int) -> int:
        reach = len(self._steps) - number - 1
        if reach > 255:
            raise ValueError("a step can skip at most 255 others")
        return reach

    def _argument(self, argument: Argument) -> tuple[int, int]:
        if isinstance(argument, int):
            return k.ARG_INTEGER, argument
        if isinstance(argument, bytes):
            if b"\0" in argument:
                raise ValueError(f"a NUL byte inside {argument!r}")
            return k.ARG_DATA, self._place(argument + b"\0")
        if isinstance(argument, Slot):
            return k.ARG_SLOT, argument.number
        if isinstance(argument, Data):
            return k.ARG_DATA, argument.offset
        return argument.kind, 0

    def _place(self, content: bytes, *, shared: bool = True) -> int:
        found = self._places.get(content) if shared else None
        if found is not None:
            return found
        self._data += bytes(-len(self._data) % 8)  # structures want their alignment
        offset = len(self._data)
        self._data += content
        if shared:
            self._places[content] = offset
        return offset

    def encode(self) -> tuple[bytes, bytes]:
        """Return the packed steps and the data that they point into."""
        return b"".join([_STEP.pack(*step) for step in self._steps]), bytes(self._data)

    def image(self, argv: Iterable[bytes], envp: Iterable[bytes]) -> bytes:
        """Return what the init's ``walk`` mode reads from a memfd: ``struct ck_image`` of native.h."""
        steps, data = self.encode()
        arguments, environment = list(argv), list(envp)
        header = pack("=6I", len(self._steps), len(data), len(arguments), len(environment), 0, 0)
        strings = b"".join([word + b"\0" for word in arguments + environment])
        return header + steps + data + strings
