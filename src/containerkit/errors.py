"""The errors of containerkit.

::

    ContainerError
    ├── SpecError (ValueError)          a description that can't mean anything
    ├── StateError                      the right call at the wrong time
    ├── SetupError (OSError)            an operation of the start that the kernel refused
    │   └── UnsupportedError            ... because this host lacks what it needs
    ├── ExitError (CalledProcessError)  check=True, and the command failed
    │   └── OutOfMemory                 ... because the kernel killed it for its memory
    ├── ContainerTimeout (TimeoutExpired, TimeoutError)
    ├── ImageError                      an image or registry that can't be trusted or read
    └── CleanupError                    something was left behind, and what it is

Each survives :mod:`pickle`, since test runners carry errors between processes.
"""

from __future__ import annotations

import os
from subprocess import CalledProcessError, TimeoutExpired

__all__ = [
    "CleanupError",
    "ContainerError",
    "ContainerTimeout",
    "ExitError",
    "ImageError",
    "OutOfMemory",
    "SetupError",
    "SpecError",
    "StateError",
    "UnsupportedError",
]


class ContainerError(Exception):
    """Whatever containerkit itself raises is one of these."""


class SpecError(ContainerError, ValueError):
    """A description that is wrong in itself; nothing was made.

    Raised before any system call is tried: wrong types, unknown names, values out of range.
    """


class StateError(ContainerError):
    """The call does not fit the state that the object is in (exec in a stopped container, say)."""


class SetupError(ContainerError, OSError):
    """An operation of the start failed; what had been made by then is gone again.

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
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.operation} {self.target}".rstrip()
        cause = os.strerror(self.errno or 0)
        return f"{where}: {cause} (hint: {self.hint})" if self.hint else f"{where}: {cause}"

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.operation, self.errno, self.target, self.hint)


class UnsupportedError(SetupError):
    """The host can't grant the wish; ``hint`` says which argument relaxes it or what would provide it."""


class ExitError(ContainerError, CalledProcessError):
    """A command ended with a status other than zero and ``check=True`` was given.

    Attributes:
        returncode, cmd, stdout, stderr: as in :class:`subprocess.CalledProcessError`.
        cause: ``"exit"``, ``"signal"``, ``"timeout"``, ``"oom"`` or ``"seccomp"``.
    """

    def __init__(
        self,
        returncode: int,
        cmd: object,
        output: object = None,
        stderr: object = None,
        cause: str = "exit",
    ) -> None:
        CalledProcessError.__init__(self, returncode, cmd, output, stderr)  # type: ignore[arg-type]
        self.cause = cause

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.returncode, self.cmd, self.output, self.stderr, self.cause)


class OutOfMemory(ExitError):  # noqa: N818 - the field's word, as in MemoryError's own family
    """The kernel killed the command because its group went over the memory limit."""


class ContainerTimeout(ContainerError, TimeoutExpired, TimeoutError):  # noqa: N818
    """The time was up: the whole process tree was killed, ``stdout`` and ``stderr`` hold what came by then."""

    def __init__(
        self,
        cmd: object,
        timeout: float,
        output: object = None,
        stderr: object = None,
    ) -> None:
        TimeoutExpired.__init__(self, cmd, timeout, output, stderr)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr)


class ImageError(ContainerError):
    """An image, layer or registry answer that is malformed, untrusted or not there."""


class CleanupError(ContainerError):
    """Something could not be taken away again.

    Attributes:
        left: what is left behind, one description each.
    """

    def __init__(self, left: tuple[str, ...]) -> None:
        super().__init__("left behind: " + "; ".join(left))
        self.left = left

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.left,)
