"""Device rules of version 2: compiled to a BPF program and attached to a group.

The program gets ``struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor;}``. The low half of the first word
is the kind of device, its high half is the requested access. The program returns 1 to allow and 0 to deny.

Source: bpf(2); Documentation/bpf/standardization/instruction-set.rst; include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

from containerkit.cgroup.kernel import address, call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.cgroup.device_rules import DeviceRule

__all__ = ["attach_device_program", "device_program"]

_PROG_LOAD: Final = 5
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_PROG_QUERY: Final = 16
_PROG_GET_FD_BY_ID: Final = 13
_TYPE_CGROUP_DEVICE: Final = 15
_ATTACH_CGROUP_DEVICE: Final = 6
_ALLOW_MULTI: Final = 2

# Operation codes: class, source and operation in one byte.
_LOAD_WORD: Final = 0x61  # LDX | MEM | W
_COPY: Final = 0xBC  # ALU | MOV | X, 32 bits
_SET: Final = 0xB7  # ALU64 | MOV | K
_AND: Final = 0x54  # ALU | AND | K, 32 bits
_SHIFT_RIGHT: Final = 0x74  # ALU | RSH | K, 32 bits
_JUMP_DIFFERENT: Final = 0x56  # JMP32 | JNE | K
_JUMP_EQUAL: Final = 0x16  # JMP32 | JEQ | K
_EXIT: Final = 0x95

_KINDS: Final = {"b": 1, "c": 2}
_ACCESS: Final = {"m": 1, "r": 2, "w": 4}
_INSTRUCTION: Final = struct.Struct("=BBhi")


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, source << 4 | target, offset, value)


def _rule(rule: DeviceRule) -> bytes:
    """Return the instructions of one rule: they end the program if the rule decides, and fall through if not."""
    tests: list[tuple[int, int]] = []
    if rule.kind != "a":
        tests.append((2, _KINDS[rule.kind]))
    if rule.major is not None:
        tests.append((4, rule.major))
    if rule.minor is not None:
        tests.append((5, rule.minor))
    mask = sum(_ACCESS[letter] for letter in rule.access)
    body: list[bytes] = []
    if mask != 7:
        # A rule that allows must cover all of the requested access. A rule that denies needs to cover any of it.
        body.append(_instruction(_COPY, 1, 3))
        body.append(_instruction(_AND, 1, value=(~mask & 7) if rule.allow else mask))
        # r1 == 0 means: nothing outside the rule is requested (allow), or nothing inside the rule is requested (deny).
        body.append(_instruction(_JUMP_DIFFERENT if rule.allow else _JUMP_EQUAL, 1, offset=2, value=0))
    body += [_instruction(_SET, 0, value=int(rule.allow)), _instruction(_EXIT)]
    length = len(tests) + len(body)
    head = [
        _instruction(_JUMP_DIFFERENT, register, offset=length - index - 1, value=value)
        for index, (register, value) in enumerate(tests)
    ]
    return b"".join(head + body)


def _decides_all(rule: DeviceRule) -> bool:
    return (rule.kind, rule.major, rule.minor, len(rule.access)) == ("a", None, None, 3)


def device_program(rules: Sequence[DeviceRule]) -> bytes:
    """Return a program that denies every device which the rules do not allow. The last rule that matches decides.

    Args:
        rules: in order.
    """
    head = [
        _instruction(_LOAD_WORD, 2, 1, 0),
        _instruction(_COPY, 3, 2),
        _instruction(_AND, 2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, value=16),
        _instruction(_LOAD_WORD, 4, 1, 4),
        _instruction(_LOAD_WORD, 5, 1, 8),
    ]
    tests: list[bytes] = []
    for rule in reversed(rules):
        tests.append(_rule(rule))
        if _decides_all(rule):  # the kernel refuses a program with unreachable instructions
            break
    else:
        tests += [_instruction(_SET, 0, value=0), _instruction(_EXIT)]
    return b"".join([*head, *tests])


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    """Call bpf(2) and return its result and the attributes as the kernel left them."""
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return call("bpf", command, buffer, 128), buffer.raw


def _load(program: bytes) -> int:
    instructions = ctypes.create_string_buffer(program, len(program))
    licence = ctypes.create_string_buffer(b"MIT")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        _TYPE_CGROUP_DEVICE,
        len(program) // _INSTRUCTION.size,
        address(instructions),
        address(licence),
        0,
        0,
        0,
        0,
        0,
        b"ck_devices",
    )
    return _bpf(_PROG_LOAD, attributes)[0]


def attach_device_program(group_fd: int, rules: Sequence[DeviceRule]) -> None:
    """Load the program of these rules and attach it to a group. It replaces the program attached by an earlier call.

    Programs of the groups above stay in force: a device must be allowed by all of them.

    Args:
        group_fd: a descriptor of the version 2 directory.
        rules: in order.

    Raises:
        OSError: the kernel refuses it.

    Source: bpf(2), BPF_PROG_ATTACH.
    """
    former = _attached(group_fd)
    program = _load(device_program(rules))
    try:
        _bpf(_PROG_ATTACH, struct.pack("=IIII", group_fd, program, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI))
        for identity in former:
            _detach(group_fd, identity)
    finally:
        os.close(program)


def _attached(group_fd: int) -> tuple[int, ...]:
    """Return the ids of the programs that are attached to the group itself."""
    ids = ctypes.create_string_buffer(64 * 4)
    try:
        _, answer = _bpf(_PROG_QUERY, struct.pack("=IIIIQI", group_fd, _ATTACH_CGROUP_DEVICE, 0, 0, address(ids), 64))
    except OSError:
        return ()
    count = int(struct.unpack_from("=I", answer, 24)[0])
    return struct.unpack_from(f"={min(count, 64)}I", ids.raw)


def _detach(group_fd: int, identity: int) -> None:
    try:
        former = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=I", identity))[0]
    except OSError:  # the program has been detached in the meantime
        return
    try:
        _bpf(_PROG_DETACH, struct.pack("=III", group_fd, former, _ATTACH_CGROUP_DEVICE))
    finally:
        os.close(former)
