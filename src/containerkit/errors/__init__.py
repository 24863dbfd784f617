"""The errors of containerkit.

::

    ContainerError
    ├── SpecError (ValueError)          the description is invalid
    ├── StateError                      the call is not possible in the present state
    ├── SetupError (OSError)            the kernel refused an operation of the start
    │   ├── UnsupportedError            ... because this host does not support it
    │   └── ProgramNotFoundError (FileNotFoundError)  ... because the program does not exist inside
    ├── ExitError (CalledProcessError)  check=True, and the command failed
    │   └── OutOfMemory                 ... because the kernel killed it when out of memory
    ├── ContainerTimeout (TimeoutExpired, TimeoutError)
    ├── ImageError                      an image or registry is malformed, untrusted or missing
    └── CleanupError                    something could not be removed; the error names it

All of them can be pickled, because test runners pass errors between processes.

All of them can be imported from here. Those that are also errors of :mod:`subprocess` are in ``commands.py``,
which is imported on first use: :mod:`subprocess` takes long to load, and the OCI command must start fast.
"""

from __future__ import annotations

import os
from errno import EMFILE, ENFILE

TYPE_CHECKING = False  # typing takes long to import
if TYPE_CHECKING:
    from containerkit.errors.commands import ContainerTimeout, ExitError, OutOfMemory
    from containerkit.errors.descriptors import of_descriptors as of_descriptors
    from containerkit.errors.descriptors import telling_of_descriptors as telling_of_descriptors

__all__ = [
    "CleanupError",
    "ContainerError",
    "ContainerTimeout",
    "ExitError",
    "ImageError",
    "OutOfMemory",
    "ProgramNotFoundError",
    "SetupError",
    "SpecError",
    "StateError",
    "UnsupportedError",
]

_LATE = {
    "ContainerTimeout": "commands",
    "ExitError": "commands",
    "OutOfMemory": "commands",
    "of_descriptors": "descriptors",
    "telling_of_descriptors": "descriptors",
}

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
        hint: the remedy, or an empty string.
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


class UnsupportedError(SetupError):
    """The host can't do what was requested. ``hint`` names the argument to change, or what would provide it."""


class ProgramNotFoundError(SetupError, FileNotFoundError):
    """The program does not exist inside the container, or the interpreter in its first line or ELF header does not.

    Attributes:
        filename: the program, as in :class:`FileNotFoundError`.
    """

    filename: str

    def __init__(self, operation: str, errno: int, target: str = "", hint: str = "") -> None:
        super().__init__(operation, errno, target, hint)
        self.filename = target


class ImageError(ContainerError):
    """An image, layer or registry answer is malformed, untrusted or missing."""


class CleanupError(ContainerError):
    """Something could not be removed.

    Attributes:
        left: a description of each thing that is left behind.
    """

    def __init__(self, left: tuple[str, ...]) -> None:
        super().__init__("left behind: " + "; ".join(left))
        self.left = left

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.left,)


def __getattr__(name: str) -> object:
    """Import names from other modules on first use. Source: PEP 562."""
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"{__name__}.{_LATE[name]}"), name)
    return found
