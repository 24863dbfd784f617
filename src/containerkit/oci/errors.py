"""The errors of verbs, with the texts that engines expect."""

from __future__ import annotations

import os

from containerkit.errors import ContainerError, SetupError, SpecError

__all__ = ["ConfigError", "RuntimeFailure", "StepError", "refused_file", "strerror"]


class RuntimeFailure(ContainerError):  # noqa: N818 - not a mistake of the program
    """A verb failed. The text is for the user and the engine's log."""


class ConfigError(RuntimeFailure, SpecError):
    """A value in config.json is invalid. The error has its JSON path.

    Attributes:
        path: the JSON path, such as ``process.user.uid``.
        why: what is wrong with it.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"config.json: {path}: {why}")
        self.path = path
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.why)


class StepError(RuntimeFailure, SetupError):
    """The kernel refused a step of a start.

    Attributes:
        operation: the system call.
        errno: the kernel's error number.
        target: what it acted on.
        hint: the remedy, or an empty string.
    """

    def __str__(self) -> str:
        text = f"{self.operation} {self.target}".rstrip() + f": {strerror(self.errno or 0)}"
        return f"{text} (hint: {self.hint})" if self.hint else text


def strerror(errno: int) -> str:
    """Return the error's text in lower case as in Go programs, because engines match it."""
    text = os.strerror(errno)
    return text[:1].lower() + text[1:]


def refused_file(what: str, path: str, error: OSError, hint: str = "") -> RuntimeFailure:
    """Return the error of an operation on a file."""
    text = f"{what} {path}: {strerror(error.errno or 0)}"
    return RuntimeFailure(f"{text} (hint: {hint})" if hint else text)
