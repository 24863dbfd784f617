"""Perform operations in the calling process, without a plan, a child or a namespace.

This is for restrictions of the calling process, such as a Landlock ruleset or a seccomp filter. Their effects can't be
undone.
"""

from __future__ import annotations

import os
from struct import pack_into
from typing import TYPE_CHECKING, Any

from containerkit._native import constants as k
from containerkit._native.calls_seam import backend
from containerkit.errors import SetupError, SpecError
from containerkit.plan.operation import Block, Operation, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["perform"]


def perform(operations: Iterable[Operation], slots: dict[str, int] | None = None) -> dict[str, int]:
    """Make the system calls of some operations in the calling thread.

    Args:
        operations: system calls and closes. Steps that clone or wait are not possible.
        slots: descriptors by the names of their slots. They still belong to the caller.

    Returns:
        The slots, including those that the operations filled and did not close. The caller owns those descriptors.

    Raises:
        SpecError: an operation is not a system call, or a slot has not been filled.
        SetupError: the kernel refused an operation. Descriptors opened until then are closed, other effects remain.
    """
    given = dict(slots or {})
    known = dict(given)
    try:
        left_out = 0
        for operation in operations:
            if left_out:
                left_out -= 1
            else:
                left_out = _perform(operation, known)
    except BaseException:
        for name, descriptor in known.items():
            if name not in given:
                os.close(descriptor)
        raise
    return known


def _perform(operation: Operation, slots: dict[str, int]) -> int:
    """Make one call. Return how many of the following operations to skip."""
    if operation.step == k.STEP_CLOSE and isinstance(operation.args[0], Slot):
        os.close(_filled(operation.args[0], operation, slots))
        del slots[operation.args[0].name]
        return operation.leap
    if operation.step != k.STEP_CALL:
        raise SpecError(f"{operation.describe()}: this is not a system call and needs a child process")
    keep: list[Any] = []
    arguments = [_argument(argument, operation, slots, keep) for argument in operation.args]
    result = backend.syscall(operation.call, *arguments)
    if result < 0 and -result not in operation.tolerate:
        raise SetupError(operation.name, -result, operation.target, operation.hint)
    if operation.result is not None and result >= 0:
        slots[operation.result.name] = result
    return operation.skip if result < 0 else operation.leap


def _argument(
    argument: object, operation: Operation, slots: dict[str, int], keep: list[Any]
) -> int | bytes | bytearray:
    if isinstance(argument, (int, bytes)):
        return argument
    if isinstance(argument, Slot):
        return _filled(argument, operation, slots)
    if isinstance(argument, Block):
        return _block(argument, operation, slots, keep)
    raise SpecError(f"{operation.describe()}: this argument is known only in a child process")


def _filled(slot: Slot, operation: Operation, slots: dict[str, int]) -> int:
    if slot.name not in slots:
        raise SpecError(f"{operation.describe()}: the slot {slot.name!r} has not been filled")
    return slots[slot.name]


def _block(block: Block, operation: Operation, slots: dict[str, int], keep: list[Any]) -> bytearray:
    content = bytearray(block.content)
    for at, source in block.patches:
        if isinstance(source, Slot):
            pack_into("=i", content, at, _filled(source, operation, slots))
        else:
            import ctypes

            pointed = bytes(_block(source, operation, slots, keep)) if isinstance(source, Block) else source
            memory = ctypes.create_string_buffer(pointed, len(pointed))
            keep.append(memory)  # kept alive until the call is made
            pack_into("=Q", content, at, ctypes.addressof(memory))
    return content
