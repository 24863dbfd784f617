"""A plan, and the flat tape that it is compiled to. ``_native/native.h`` documents its layout."""

from __future__ import annotations

from struct import Struct as _Layout

from containerkit._native import constants as k
from containerkit._native.packing import NO_SLOT, Packer
from containerkit.errors import SpecError
from containerkit.plan.operation import ARGV, Block, Operation, Slot, Vector, numbers
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Final

__all__ = ["Plan", "Tape"]


class Tape(NamedTuple):
    """A compiled plan.

    Attributes:
        steps: the packed steps.
        data: the strings and structures that the steps point into.
        slots: the register number of each slot's name.
        descriptors: the numbers of the slots for descriptors.
        blocks: offset and length in ``data`` of each named block.
        origin: for each step the index of the operation that it came from.
    """

    steps: bytes
    data: bytes
    slots: dict[str, int]
    descriptors: frozenset[int]
    blocks: dict[str, tuple[int, int]]
    origin: tuple[int, ...]


class Plan:
    """An ordered tuple of operations that can be printed, compared, encoded and run many times."""

    __slots__ = ("operations",)

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.operations = tuple(operations)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.operations == other.operations

    def __hash__(self) -> int:
        return hash(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def __str__(self) -> str:
        return "\n".join(f"{number:3} {step.describe()}" for number, step in enumerate(self))

    def encode(self) -> Tape:
        """Compile to a tape.

        Raises:
            SpecError: too many slots, arguments or tolerated errors, a NUL inside a string, a jump to nowhere.
        """
        return _Encoder().encode(self.operations)


_OPENING: Final = frozenset(
    {"open", "openat", "openat2", "open_tree", "fsopen", "fspick", "fsmount", "socket", "seccomp", "fcntl", "ioctl"}
)


class _Encoder:
    """Collects the tape of one plan."""

    def __init__(self) -> None:
        self.packer = Packer()
        self.origin: list[int] = []
        self.blocks: dict[str, tuple[int, int]] = {}
        self.descriptors: set[int] = set()

    def encode(self, operations: Iterable[Operation]) -> Tape:
        operations = tuple(operations)
        starts: dict[str, int] = {}
        jumps: list[tuple[int, Operation]] = []
        for index, operation in enumerate(operations):
            if operation.label:
                starts[operation.label] = len(self.origin)
            try:
                plain = operation.step not in _WITH_LISTS
                number = self._add(operation if plain else _listed(operation, operations[index + 1 :]), index)
            except ValueError as error:
                raise SpecError(f"{operation.describe()}: {error}") from None
            if operation.jump:
                jumps.append((number, operation))
        self._skips(operations)
        for at, operation in jumps:
            if operation.jump not in starts:
                raise SpecError(f"{operation.describe()}: no operation is labelled {operation.jump!r}")
            self.packer.aim(at, starts[operation.jump])
        steps, data = self.packer.packed()
        return Tape(steps, data, self.packer.slots, frozenset(self.descriptors), self.blocks, tuple(self.origin))

    def _skips(self, operations: tuple[Operation, ...]) -> None:
        """Convert skips from numbers of operations to numbers of steps."""
        for at, index in enumerate(self.origin):
            operation = operations[index]
            if not (operation.skip or operation.leap) or self.origin[at + 1 : at + 2] == [index]:
                continue  # nothing to skip, or a step that belongs to the next one
            try:
                self.packer.skip(at, self._steps_of(at, operation.skip))
                self.packer.leap(at, self._steps_of(at, operation.leap))
            except ValueError as error:
                raise SpecError(f"{operation.describe()}: {error}") from None

    def _steps_of(self, at: int, reach: int) -> int:
        """Return how many steps the next operations have, after the last step of an operation."""
        last, end = self.origin[at] + reach, at + 1
        while end < len(self.origin) and self.origin[end] <= last:
            end += 1
        return end - at - 1

    def _add(self, operation: Operation, index: int) -> int:
        kinds: list[int] = []
        values: list[int] = []
        for argument in operation.args:
            if isinstance(argument, int):
                kind, value = k.ARG_INTEGER, argument
            elif isinstance(argument, bytes):
                kind, value = k.ARG_DATA, self.packer.text(argument)
            elif isinstance(argument, Slot):
                kind, value = k.ARG_SLOT, self.packer.number_of(argument.name)
            elif isinstance(argument, Vector):
                kind, value = (k.ARG_ARGV if argument is ARGV else k.ARG_ENVP), 0
            else:
                kind, value = k.ARG_DATA, self._block(argument, index)
            kinds.append(kind)
            values.append(value)
        result = NO_SLOT if operation.result is None else self.packer.number_of(operation.result.name)
        if operation.name in _OPENING and operation.result is not None:
            self.descriptors.add(result)
        self.origin.append(index)
        return self.packer.add(operation.step, operation.call, result, kinds, values, operation.tolerate)

    def _block(self, block: Block, index: int) -> int:
        offset = self.packer.place(block.content, shared=not (block.patches or block.name))
        if block.name:
            self.blocks[block.name] = offset, len(block.content)
        for at, source in block.patches:
            taken = source if isinstance(source, (Slot, Block)) else Block(source)
            kind = k.STEP_STORE_SLOT if isinstance(taken, Slot) else k.STEP_STORE_ADDRESS
            self._add(Operation("store", step=kind, args=(offset + at, taken)), index)
        return offset


_WITH_LISTS: Final = frozenset({k.STEP_ENTER, k.STEP_STRIP})


def _listed(operation: Operation, later: tuple[Operation, ...]) -> Operation:
    """Return an operation with its lists of descriptors completed for the interpreter.

    Operations that enter the init keep every slot that is used later. It does no harm if a slot holds a pid.
    """
    if operation.step == k.STEP_ENTER:
        image, kept, _, board = operation.args
        assert isinstance(kept, Block)
        taken = numbers([*_unpacked(kept.content), *_used(later)])
        return operation._replace(args=(image, taken, len(taken.content) // 4, board))
    if operation.step == k.STEP_STRIP:
        kept, _, telling, image = operation.args
        assert isinstance(kept, Block)
        return operation._replace(args=(kept, len(kept.content) // 4, telling, image))
    return operation


def _unpacked(content: bytes) -> Iterator[int]:
    """Return the 32-bit numbers of an array."""
    return (number for (number,) in _NUMBER.iter_unpack(content))


_NUMBER: Final = _Layout("=i")


def _used(operations: Iterable[Operation]) -> list[Slot]:
    """Return the slots that operations read, in order of first use."""
    found: dict[Slot, None] = {}
    for operation in operations:
        for argument in operation.args:
            if isinstance(argument, Slot):
                found[argument] = None
            elif isinstance(argument, Block):
                found.update(dict.fromkeys(_patched_with(argument)))
    return list(found)


def _patched_with(block: Block) -> list[Slot]:
    sources = [source for _, source in block.patches]
    inner = [slot for source in sources if isinstance(source, Block) for slot in _patched_with(source)]
    return [*(source for source in sources if isinstance(source, Slot)), *inner]
