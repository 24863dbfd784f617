"""Parsers for quantities: sizes, lists of numbers, device numbers and group names.

Each function returns the value, or raises :class:`~containerkit.errors.SpecError` that names the argument. None of them
touches the machine.
"""

from __future__ import annotations

from containerkit.errors import SpecError
from containerkit.typed import Literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

__all__ = ["MAX", "Amount", "amount", "flag", "group_name", "number_list", "numbers", "parse_size", "whole"]

MAX: Final = "max"
"""The kernel's word for "no limit"."""

Amount = int | Literal["max"]

_FACTORS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_LARGEST: Final = (1 << 63) - 1
_DIGITS: Final = frozenset("0123456789")
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:@+-")


def parse_size(value: int | str, argument: str = "size") -> int:
    """Return a size in bytes.

    Args:
        value: bytes, or a decimal number with one of the binary suffixes K, M, G, T, P (``"256M"``, ``"1.5GiB"``).
        argument: the name of the argument, for the message.

    Raises:
        SpecError: the value is not such a number, is negative, or is larger than 2**63 - 1.

    Source: cgroups(7); memory.max in Documentation/admin-guide/cgroup-v2.rst.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise SpecError(f'{argument}: must be a number of bytes or text such as "256M", not {value!r}')
    size = value if isinstance(value, int) else _scaled(value, argument)
    if not 0 <= size <= _LARGEST:
        raise SpecError(f"{argument}: {value!r} is out of range, 0 to 2**63 - 1 bytes")
    return size


def _scaled(text: str, argument: str) -> int:
    number = text.strip()
    upper = number.upper()
    for ending in ("IB", "B"):
        if upper.endswith(ending):
            upper = upper[: -len(ending)]
            break
    suffix = upper[-1:] if upper[-1:] in _FACTORS else ""
    whole_part, point, fraction = upper[: len(upper) - len(suffix)].partition(".")
    well_formed = whole_part and _DIGITS.issuperset(whole_part) and _DIGITS.issuperset(fraction) and len(upper) < 40
    if not well_formed or (point and not fraction) or (upper != number.upper() and suffix == "" and point):
        raise SpecError(f'{argument}: {text!r} is not a size; write bytes or a suffix K, M, G, T, P, such as "256M"')
    scale = 10 ** len(fraction)
    return int(int(whole_part + fraction) * _FACTORS[suffix] // scale)


def amount(value: int | str, argument: str, *, size: bool = False, least: int = 0, most: int = _LARGEST) -> Amount:
    """Return a limit: a whole number within a range, or ``"max"`` for no limit."""
    if value == MAX:
        return "max"
    return whole(parse_size(value, argument) if size else value, argument, least, most)


def flag(value: object, argument: str) -> bool:
    """Return a bool. Other values, such as 0 and 1, are refused."""
    if not isinstance(value, bool):
        raise SpecError(f"{argument}: expected True or False, not {value!r}")
    return value


def whole(value: object, argument: str, least: int, most: int) -> int:
    """Return a whole number within a range."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SpecError(f"{argument}: expected a whole number, not {value!r}")
    if not least <= value <= most:
        raise SpecError(f"{argument}: {value} is out of range, {least} to {most}")
    return value


def numbers(text: str, argument: str = "list") -> frozenset[int]:
    """Parse a list of numbers in the kernel's form, such as ``"0-3,8"``.

    Source: "List format" in cpuset(7).
    """
    found: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low.isascii() or not low.isdigit() or (dash and not (high.isascii() and high.isdigit())):
            raise SpecError(f'{argument}: {text!r} is not a list of numbers such as "0-3,8"')
        first, last = int(low[:8]), int((high or low)[:8])
        if first > last or last > 65535:
            raise SpecError(f"{argument}: the range {part.strip()!r} is empty or extends past 65535")
        found.update(range(first, last + 1))
    return frozenset(found)


def number_list(value: str | Iterable[int], argument: str) -> str:
    """Return numbers in the kernel's list form, sorted and merged into ranges."""
    if isinstance(value, str):
        chosen = numbers(value, argument)
    else:
        chosen = frozenset(whole(number, argument, 0, 65535) for number in value)
    if not chosen:
        raise SpecError(f"{argument}: at least one number is needed")
    ranges: list[str] = []
    ordered = sorted(chosen)
    first = last = ordered[0]
    for number in [*ordered[1:], -1]:
        if number == last + 1:
            last = number
            continue
        ranges.append(str(first) if first == last else f"{first}-{last}")
        first = last = number
    return ",".join(ranges)


def group_name(value: str, argument: str = "name") -> str:
    """Check the name of a group: one path component of letters, digits and ``_ . : @ + -``, at most 128 of them.

    Raises:
        SpecError: the name is empty, too long, contains another character (such as a slash), or starts with a dot or a
            minus sign.
    """
    if not isinstance(value, str) or not value or len(value) > 128:
        raise SpecError(f"{argument}: {value!r} is not a name of 1 to 128 characters")
    if not _NAME.issuperset(value) or value[0] in ".-":
        raise SpecError(
            f"{argument}: {value!r} must contain only letters, digits and _ . : @ + -, and must not start with . or -"
        )
    return value
