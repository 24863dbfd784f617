"""What goes wrong in a verb, in the words that engines look for."""

from __future__ import annotations

import os

from containerkit.errors import ContainerError, SetupError, SpecError

__all__ = ["ConfigError", "RuntimeFailure", "StepError", "refused_file", "strerror"]


class RuntimeFailure(ContainerError):  # noqa: N818 - not a mistake of the program
    """A verb failed; the text is what the user and the engine's log see."""


class ConfigError(RuntimeFailure, SpecError):
    """A value of config.json that can't be, named by its JSON path.

    Attributes:
        path: where it stands, such as ``process.user.uid``.
        why: what is wrong with it.
    """

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"config.json: {path}: {why}")
        self.path = path
        self.why = why

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.why)


class StepError(RuntimeFailure, SetupError):
    """A step of a start that the kernel refused.

    Attributes:
        operation: the system call.
        errno: the kernel's error number.
        target: what it acted on.
        hint: what would help, or an empty string.
    """

    def __str__(self) -> str:
        text = f"{self.operation} {self.target}".rstrip() + f": {strerror(self.errno or 0)}"
        return f"{text} (hint: {self.hint})" if self.hint else text


def strerror(errno: int) -> str:
    """Return the error's text as Go programs write it: engines match it in lower case."""
    text = os.strerror(errno)
    return text[:1].lower() + text[1:]


def refused_file(what: str, path: str, error: OSError, hint: str = "") -> RuntimeFailure:
    """Return the failure of something done to a file."""
    text = f"{what} {path}: {strerror(error.errno or 0)}"
    return RuntimeFailure(f"{text} (hint: {hint})" if hint else text)
