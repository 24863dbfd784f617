"""Checks of argument types. Descriptions use them to refuse wrong values early."""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.typed import TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from containerkit.options import ListOf

__all__ = ["check_bool", "check_instance", "check_number", "instances", "names", "path", "text_of"]

Kind = TypeVar("Kind")


def _values(values: Iterable[object], what: str) -> tuple[object, ...]:
    if isinstance(values, (str, bytes)):
        raise SpecError(f"{what}: pass several values in a list: [{values!r}]")
    if isinstance(values, dict):
        raise SpecError(f"{what}: {values!r} is not a list")
    try:
        return tuple(values)
    except TypeError:
        raise SpecError(f"{what}: {values!r} is not a list") from None


def names(values: ListOf[str], what: str) -> tuple[str, ...]:
    """Return the strings of a list, tuple, set or other iterable.

    Raises:
        SpecError: the value is not iterable, is a string, or contains anything but strings.
    """
    return instances(values, str, what)


def instances(values: Iterable[Kind], kind: type[Kind], what: str) -> tuple[Kind, ...]:
    """Return the values of an iterable after checking that all are instances of a class.

    Raises:
        SpecError: the value is not iterable, or contains something else.
    """
    found: list[Kind] = []
    for value in _values(values, what):
        if not isinstance(value, kind):
            raise SpecError(f"{what}: {value!r} is not a {kind.__name__}")
        found.append(value)
    return tuple(found)


def check_instance(value: object, kind: type, what: str) -> None:
    """Refuse a value that is not an instance of a class.

    Raises:
        SpecError: the value is something else.
    """
    if not isinstance(value, kind):
        raise SpecError(f"{what}: {value!r} is not a {kind.__name__}")


def text_of(value: Any, what: str) -> str:
    """Return a string that can be passed to the kernel.

    Raises:
        SpecError: it is not a string, or contains a NUL or a surrogate that does not represent a byte.

    Source: PEP 383: U+DC80 to U+DCFF stand for bytes that are not UTF-8. Other surrogates are invalid.
    """
    if not isinstance(value, str):
        raise SpecError(f"{what}: must be a string, not {type(value).__name__}")
    if "\0" in value:
        raise SpecError(f"{what}: {value!r:.100} has a NUL byte")
    try:
        os.fsencode(value)
    except UnicodeEncodeError as error:
        raise SpecError(f"{what}: {value!r:.100} has a lone surrogate: {error.reason}") from None
    return value


def path(value: object, what: str) -> str:
    """Return a path as a string.

    Raises:
        SpecError: the value is not a path.
    """
    if not isinstance(value, (str, os.PathLike)):
        raise SpecError(f"{what}: {value!r} is not a path")
    return text_of(os.fspath(value), what)


def check_number(value: object, what: str, least: int, most: int) -> None:
    """Refuse a value that is not a whole number within bounds. True and False are refused.

    Raises:
        SpecError: the value is not such a number.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SpecError(f"{what}: {value!r} is not a number from {least} to {most}")


def check_bool(value: object, what: str) -> None:
    """Refuse any value but True and False.

    Raises:
        SpecError: the value is not a bool.
    """
    if not isinstance(value, bool):
        raise SpecError(f"{what}: must be True or False, not {value!r:.100}")
