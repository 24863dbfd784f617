"""Programs of the kernel's virtual machine, and the maps that they share with this process.

:class:`Code` writes a program: a method for each kind of instruction, and labels. The functions below it are the
commands of bpf(2). Source: bpf(2), Documentation/bpf/standardization/instruction-set.rst, include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from containerkit._native.calls_seam import backend, syscall

__all__ = [
    "DEVICES_OF_A_GROUP",
    "FRAME",
    "TRAFFIC_CONTROL",
    "Code",
    "Map",
    "Register",
    "attach",
    "attached",
    "detach",
    "load",
    "new_hash",
    "new_lru_hash",
    "remove",
    "store",
]

TRAFFIC_CONTROL: Final = 3  # BPF_PROG_TYPE_SCHED_CLS
DEVICES_OF_A_GROUP: Final = 15  # BPF_PROG_TYPE_CGROUP_DEVICE

_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE, _PROG_LOAD = 0, 2, 3, 5
_PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _PROG_QUERY = 8, 9, 13, 16
_ALLOW_MULTI: Final = 2  # BPF_F_ALLOW_MULTI
_MOST_ATTACHED: Final = 64  # BPF_CGROUP_MAX_PROGS
_HASH, _LRU_HASH = 1, 9
_ON_DEMAND: Final = 1  # BPF_F_NO_PREALLOC: elements get their memory when they are added
_INSTRUCTION: Final = struct.Struct("=BBhi")
_ATTRIBUTES: Final = 128
"""The bytes of ``union bpf_attr`` that are passed. The kernel accepts more than it knows if the rest is zero."""

# The parts of an operation code: the class, the size of an access to memory, the operation, and its operand.
_LOAD, _STORE_VALUE, _STORE, _ARITHMETIC, _JUMP, _JUMP_32, _ARITHMETIC_64 = 0x61, 0x62, 0x63, 0x04, 0x05, 0x06, 0x07
_SIZES: Final = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
_OPERATIONS: Final = {"+": 0x00, "-": 0x10, "|": 0x40, "&": 0x50, ">>": 0x70, "=": 0xB0}
_CONDITIONS: Final = {"==": 0x10, ">": 0x20, "&": 0x40, "!=": 0x50, "signed >": 0x60, "<": 0xA0, "<=": 0xB0}
_REGISTER: Final = 0x08
_CALL, _EXIT = 0x85, 0x95
_WIDE: Final = 0x18  # the one instruction with a constant of 64 bits, or a map
_IS_MAP: Final = 1  # BPF_PSEUDO_MAP_FD


class Register(int):
    """One of the registers r0 to r10, as different from a number."""

    __slots__ = ()


class Map(int):
    """The descriptor of a map, as different from a number."""

    __slots__ = ()


FRAME: Final = Register(10)
"""Points to the end of the program's 512 bytes of stack."""


class Code:
    """A program. Its methods append instructions; a jump goes to a label that stands further down.

    Registers 1 to 5 are the arguments of a call, which loses their content. Register 0 is the result.
    """

    def __init__(self) -> None:
        # operation, target, source, offset, value or label
        self._parts: list[tuple[int, int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        self._labels[name] = len(self._parts)

    def load(self, size: int, target: Register, at: Register, offset: int) -> None:
        """Load 1, 2, 4 or 8 bytes from memory. The rest of the register becomes zero."""
        self._add(_LOAD | _SIZES[size], target, at, offset)

    def store(self, size: int, at: Register, offset: int, value: int) -> None:
        """Store 1, 2, 4 or 8 bytes in memory: of a register, or a number."""
        if isinstance(value, Register):
            self._add(_STORE | _SIZES[size], at, value, offset)
        else:
            self._add(_STORE_VALUE | _SIZES[size], at, 0, offset, value)

    def compute(self, target: Register, operation: str, value: int, *, wide: bool = True) -> None:
        """Compute ``+``, ``-``, ``|``, ``&``, ``>>`` or ``=`` with a register or a number, in 64 bits or in 32."""
        code = (_ARITHMETIC_64 if wide else _ARITHMETIC) | _OPERATIONS[operation]
        if isinstance(value, Register):
            self._add(code | _REGISTER, target, value)
        else:
            self._add(code, target, 0, 0, value)

    def wide(self, target: Register, value: int) -> None:
        """Set a register to a number of 64 bits, or to a map."""
        kind = _IS_MAP if isinstance(value, Map) else 0
        self._add(_WIDE, target, kind, 0, value & 0xFFFF_FFFF)
        self._add(0, 0, 0, 0, value >> 32)

    def jump(self, label: str) -> None:
        """Continue at a label."""
        self._parts.append((_JUMP, 0, 0, 0, label))

    def jump_if(self, one: Register, condition: str, other: int, label: str) -> None:
        """Continue at a label if a comparison is true: of 64 bits with a register, of 32 bits with a number."""
        code = _CONDITIONS[condition]
        if isinstance(other, Register):
            self._parts.append((_JUMP | _REGISTER | code, one, other, 0, label))
        else:
            self._parts.append((_JUMP_32 | code, one, 0, other, label))

    def jump_if_null(self, pointer: Register, label: str) -> None:
        """Continue at a label if a map has no such element. The verifier requires this test of all 64 bits."""
        self._parts.append((_JUMP | _CONDITIONS["=="], pointer, 0, 0, label))

    def call(self, helper: int) -> None:
        """Call a function of the kernel. Source: bpf-helpers(7)."""
        self._add(_CALL, 0, 0, 0, helper)

    def exit(self) -> None:
        """End. Register 0 is the verdict."""
        self._add(_EXIT)

    def _add(self, code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> None:
        self._parts.append((code, target, source, offset, value))

    def encode(self) -> bytes:
        """Return the program as the kernel reads it."""
        encoded = []
        for position, (code, target, source, offset, value) in enumerate(self._parts):
            if isinstance(value, str):  # a jump; what it compares with stands where others have their offset
                distance = self._labels[value] - position - 1
                encoded.append(_INSTRUCTION.pack(code, source << 4 | target, distance, _signed(offset)))
            else:
                encoded.append(_INSTRUCTION.pack(code, source << 4 | target, offset, _signed(value)))
        return b"".join(encoded)


def _signed(value: int) -> int:
    return value - (1 << 32) if value >= 1 << 31 else value


# --- The commands


def _bpf(command: int, attributes: bytes, *pointed: tuple[int, bytes]) -> tuple[int, bytearray]:
    """Call bpf(2). Return its result, and the attributes with what follows them as the kernel left them.

    Args:
        command: its number.
        attributes: the part of ``union bpf_attr`` that belongs to it.
        pointed: each an offset in the attributes, and the bytes to which they point there. The first ones follow the
            attributes immediately.
    """
    memory = bytearray(attributes.ljust(_ATTRIBUTES, b"\0"))
    places = []
    for offset, content in pointed:
        memory += bytes(-len(memory) % 8)
        places.append((offset, len(memory)))
        memory += content
    begin = backend.address(memory)
    for offset, place in places:
        struct.pack_into("=Q", memory, offset, begin + place)
    return syscall("bpf", command, memory, _ATTRIBUTES, target="bpf"), memory


def new_hash(name: bytes, key: int, value: int, most: int) -> int:
    """Make a map of keys and values of these sizes in bytes. Return its descriptor, which the caller owns.

    Raises:
        OSError: ``EPERM`` without CAP_BPF, ``ENOSYS``.
    """
    return _bpf(_MAP_CREATE, struct.pack("=IIIIIII16s", _HASH, key, value, most, _ON_DEMAND, 0, 0, name))[0]


def new_lru_hash(name: bytes, key: int, value: int, most: int) -> int:
    """Make a map that drops elements which were not used for long when it is full."""
    return _bpf(_MAP_CREATE, struct.pack("=IIIIIII16s", _LRU_HASH, key, value, most, 0, 0, 0, name))[0]


def store(where: int, key: bytes, value: bytes) -> None:
    """Add an element to a map, or replace it.

    Raises:
        OSError: ``E2BIG`` if the map is full, ``ENOMEM``.
    """
    _bpf(_MAP_UPDATE, struct.pack("=IIQQQ", where, 0, 0, 0, 0), (8, key), (16, value))


def remove(where: int, key: bytes) -> None:
    """Remove an element from a map. A missing one is not an error."""
    try:
        _bpf(_MAP_DELETE, struct.pack("=IIQ", where, 0, 0), (8, key))
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def load(kind: int, name: bytes, code: Code) -> int:
    """Load a program. Return its descriptor, which the caller owns.

    Args:
        kind: what it is for, such as :data:`TRAFFIC_CONTROL`.
        name: at most 15 bytes.
        code: the program.

    Raises:
        OSError: ``EPERM`` without CAP_BPF and what that kind needs besides, ``EINVAL`` or ``EACCES`` if the kernel's
            verifier does not accept it.
    """
    program = code.encode()
    head = struct.pack("=IIQQIIQII16s", kind, len(program) // _INSTRUCTION.size, 0, 0, 0, 0, 0, 0, 0, name)
    return _bpf(_PROG_LOAD, head, (8, program), (16, b"MIT\0"))[0]


def attach(group: int, program: int, event: int) -> None:
    """Attach a program to a control group of version 2, besides those that are attached to it already.

    Args:
        group: a descriptor of its directory.
        program: the descriptor of the program.
        event: when the kernel runs it: a number of ``enum bpf_attach_type``.

    Raises:
        OSError: the kernel refuses it.
    """
    _bpf(_PROG_ATTACH, struct.pack("=IIII", group, program, event, _ALLOW_MULTI))


def attached(group: int, event: int) -> tuple[int, ...]:
    """Return the ids of the programs that are attached to a group itself; none if the kernel does not tell."""
    head = struct.pack("=IIIIQI", group, event, 0, 0, 0, _MOST_ATTACHED)
    try:
        _, memory = _bpf(_PROG_QUERY, head, (16, bytes(4 * _MOST_ATTACHED)))
    except OSError:
        return ()
    count = min(struct.unpack_from("=I", memory, 24)[0], _MOST_ATTACHED)
    return struct.unpack_from(f"={count}I", memory, _ATTRIBUTES)


def detach(group: int, identity: int, event: int) -> None:
    """Detach a program from a group by its id. A missing one is not an error."""
    try:
        program, _ = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", identity))
    except OSError:
        return
    try:
        _bpf(_PROG_DETACH, struct.pack("=III", group, program, event))
    finally:
        os.close(program)
