"""The errors that the OCI command raises too. This module imports almost nothing, because the command must start fast.

:mod:`containerkit.errors` documents all errors. Import them from there; pickles name that module as well.
"""

from __future__ import annotations

import os
from errno import EMFILE, ENFILE

__all__ = ["DESCRIPTORS_HINT", "ContainerError", "SetupError", "SpecError", "StateError"]

DESCRIPTORS_HINT = "no file descriptor is free: close some, or raise RLIMIT_NOFILE (ulimit -n)"


class ContainerError(Exception):
    """The base class of all errors that containerkit itself raises."""


class SpecError(ContainerError, ValueError):
    """A description is invalid. Nothing was created.

    It is raised before any system call, for wrong types, unknown names and values out of range.
    """


class StateError(ContainerError):
    """The call is not possible in the present state of the object, such as exec in a stopped container."""


class SetupError(ContainerError, OSError):
    """An operation of the start failed. What had been created is removed again.

    Attributes:
        operation: the system call or step that failed, such as ``"move_mount"``.
        errno: the kernel's error number.
        target: what the operation acted on.
        hint: what would help, or an empty string.
    """

    operation: str
    target: str
    hint: str

    def __init__(self, operation: str, errno: int, target: str = "", hint: str = "") -> None:
        super().__init__(errno, os.strerror(errno))
        self.operation = operation
        self.target = target
        self.hint = DESCRIPTORS_HINT if errno in (EMFILE, ENFILE) and "ulimit" not in hint else hint

    def __str__(self) -> str:
        where = f"{self.operation} {self.target}".rstrip()
        cause = os.strerror(self.errno or 0)
        return f"{where}: {cause} (hint: {self.hint})" if self.hint else f"{where}: {cause}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.operation, self.errno, self.target, self.hint)


for _each in (ContainerError, SpecError, StateError, SetupError):
    _each.__module__ = "containerkit.errors"
