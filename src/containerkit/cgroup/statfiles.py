"""Parsers for the files of control groups: pure functions over text.

Malformed content is left out, never guessed, because new kernels add keys and lines.

Source: "Conventions" in Documentation/admin-guide/cgroup-v2.rst; Documentation/accounting/psi.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["device", "flat", "freezer_frozen", "integer", "integers", "nested", "operations", "pressure_lines"]


def _number(word: str) -> int | None:
    """Return an unsigned decimal number. ``int`` would also accept ``"1_0"``, ``" 1"`` and digits of other scripts."""
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else None


def integer(text: str | None) -> int | None:
    """Return the number in a file with one number, or None for ``max``, ``-1``, an empty file or other content."""
    return None if text is None else _number(text.strip())


def integers(text: str | None) -> tuple[int, ...]:
    """Return the numbers in a file, separated by spaces or newlines. Return none of them if one is malformed."""
    found = [_number(word) for word in (text or "").split()]
    numbers = tuple(number for number in found if number is not None)
    return numbers if len(numbers) == len(found) else ()


def flat(text: str | None) -> dict[str, int]:
    """Parse a flat keyed file: one ``KEY VALUE`` a line."""
    found: dict[str, int] = {}
    for line in (text or "").splitlines():
        key, _, value = line.partition(" ")
        number = _number(value.strip())
        if key and number is not None:
            found[key] = number
    return found


def nested(text: str | None) -> dict[str, dict[str, int | None]]:
    """Parse a nested keyed file: ``KEY SUBKEY=VALUE SUBKEY=VALUE ...`` a line; ``max`` becomes None."""
    found: dict[str, dict[str, int | None]] = {}
    for line in (text or "").splitlines():
        words = line.split()
        inner: dict[str, int | None] = {}
        for word in words[1:]:
            key, equals, value = word.partition("=")
            number = _number(value)
            if key and equals and (number is not None or value == "max"):
                inner[key] = number
        if inner:
            found.setdefault(words[0], {}).update(inner)
    return found


def operations(text: str | None) -> dict[str, dict[str, int]]:
    """Parse version 1's blkio reports: ``MAJOR:MINOR OPERATION VALUE`` a line. Lines without a device are left out."""
    found: dict[str, dict[str, int]] = {}
    for line in (text or "").splitlines():
        words = line.split()
        if len(words) == 3 and (number := _number(words[2])) is not None and device(words[0]) is not None:
            found.setdefault(words[0], {})[words[1]] = number
    return found


def device(text: str) -> tuple[int, int] | None:
    """Return the two numbers of ``MAJOR:MINOR``."""
    major, colon, minor = text.partition(":")
    numbers = _number(major), _number(minor)
    return (numbers[0], numbers[1]) if colon and numbers[0] is not None and numbers[1] is not None else None


def freezer_frozen(text: str | None) -> bool:
    """Return whether version 1's freezer.state says that every task is frozen."""
    return (text or "").strip() == "FROZEN"


def pressure_lines(text: str | None) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield ``some`` and ``full`` with their values from a pressure file."""
    for line in (text or "").splitlines():
        words = line.split()
        values: dict[str, float] = {}
        for word in words[1:]:
            key, _, value = word.partition("=")
            head, _, tail = value.partition(".")
            if _number(head) is not None and (not tail or _number(tail) is not None):
                values[key] = float(value)
        if words and words[0] in {"some", "full"} and {"avg10", "avg60", "avg300", "total"} <= values.keys():
            yield words[0], values
