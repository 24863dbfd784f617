"""Checks of the values in descriptions, in addition to those of :mod:`containerkit.security.checks`."""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.security.checks import text_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

__all__ = ["checked_id", "encode", "host_path", "mapping_items", "path_inside", "sequence", "size_text"]

_MOST_DIGITS: Final = 20  # of 2**64
_ID_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def encode(words: Sequence[str | bytes | os.PathLike[str]], what: str) -> list[bytes]:
    """Return the arguments of an argv as bytes.

    Raises:
        SpecError: an argument is not a string, or contains a NUL.
    """
    encoded: list[bytes] = []
    for word in words:
        if not isinstance(word, (str, bytes, os.PathLike)):
            raise SpecError(f"{what}: {word!r} must be a string, bytes or a path, not {type(word).__name__}")
        raw = os.fsencode(word)
        if b"\0" in raw:
            raise SpecError(f"{what}: {word!r} contains a NUL byte")
        encoded.append(raw)
    return encoded


def sequence(values: Any, what: str) -> tuple[Any, ...]:
    """Return the values of a list, tuple or other iterable as a tuple.

    Raises:
        SpecError: the value is not iterable, or is a string or a mapping.
    """
    if not isinstance(values, (str, bytes, dict)):
        try:
            return tuple(values)
        except TypeError:
            pass
    raise SpecError(f"{what}: must be a list, not {values!r}")


def mapping_items(values: Any, what: str) -> tuple[tuple[Any, Any], ...]:
    """Return the pairs of a mapping.

    Raises:
        SpecError: the value is not a mapping.
    """
    try:
        pairs = tuple((name, value) for name, value in values.items())
    except (AttributeError, TypeError, ValueError):
        raise SpecError(f"{what}: must be a mapping, not {values!r}") from None
    return pairs


def host_path(value: Any, what: str) -> str:
    """Return the path of a string or path object, unchanged.

    Raises:
        SpecError: it is neither, or it is empty, or as for :func:`containerkit.security.checks.text_of`.
    """
    try:
        path: str = os.fspath(value)
    except TypeError:
        raise SpecError(f"{what}: {value!r:.100} is not a path") from None
    if not text_of(path, what):
        raise SpecError(f"{what}: the path is empty")
    return path


def path_inside(value: str, what: str) -> str:
    """Return an absolute, normalised path inside a container.

    Raises:
        SpecError: the value is not a string, is not absolute, is empty, or contains a NUL or a ``..`` component.
    """
    if not text_of(value, what).startswith("/"):
        raise SpecError(f"{what}: {value!r:.100} must be absolute")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise SpecError(f"{what}: {value!r} must not contain '..'")
    return "/" + "/".join(parts)


def size_text(value: int | str, what: str) -> str:
    """Return a size as tmpfs accepts it: bytes, or a number with k, m, g, t or %.

    Raises:
        SpecError: the value is anything else.
    """
    text = str(value).lower().removesuffix("b").removesuffix("i") if isinstance(value, (int, str)) else ""
    number = text.rstrip("kmgt%")
    digits = number.isascii() and number.isdecimal() and len(number) < _MOST_DIGITS
    if isinstance(value, bool) or not digits or len(text) - len(number) > 1 or int(number) == 0:
        raise SpecError(f"{what}: {value!r:.100} is not a size (bytes, or such as '64M')")
    return text


def checked_id(value: str) -> str:
    """Return a valid name of a container.

    Raises:
        SpecError: the name is invalid.
    """
    good = isinstance(value, str) and 0 < len(value) <= 64 and set(value) <= _ID_CHARACTERS
    if not good or value[0] in ".-":
        raise SpecError(
            f"id: {value!r} must be 1 to 64 of letters, digits, '_', '.', '-', not beginning with '.' or '-'"
        )
    return value
