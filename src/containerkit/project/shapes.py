"""Shapes of values in compose files: each checks a value and returns it in its long form.

A shape is a function of a value and its :class:`Place`. All other modules know only the long forms.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from containerkit.errors import SpecError
from containerkit.project.yaml12 import Override, Reset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Shape = Callable[[Any, "Place"], Any]

__all__ = [
    "Place", "boolean", "by_name", "choice", "distinct", "duration", "duration_s", "duration_us", "each", "either",
    "fields", "integer", "joined_pairs", "mode", "number", "pairs", "size", "size_of", "string", "strings", "text_of",
    "unique", "words",
]  # fmt: skip

_NS: Final = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h|d)")
_SIZE: Final = re.compile(r"(-1|\d+(?:\.\d+)?) ?([kmgtp]?)i?b?\Z", re.IGNORECASE)
_TRUE: Final = frozenset({"true", "y", "yes", "on"})
_FALSE: Final = frozenset({"false", "n", "no", "off"})


class Place(NamedTuple):
    """The position of a value in a file.

    Attributes:
        path: the keys that lead to it, such as ``services.web.ports[0]``.
        file: the file.
        base: the directory of relative paths in it.
    """

    path: str
    file: str
    base: str

    def at(self, key: str | int) -> Place:
        """Return the place of a value inside this one, by key or position."""
        below = f"{self.path}[{key}]" if isinstance(key, int) else f"{self.path}.{key}".lstrip(".")
        return self._replace(path=below)

    def error(self, message: str) -> SpecError:
        """Return an error that names the place."""
        return SpecError(f"{self.file}: {self.path}: {message}")


def text_of(value: Any) -> str:
    """Return a scalar as text, as docker's loader does."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    return str(value)


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean", type(None): "nothing"}
    return names.get(type(value), "a number")


def string(value: Any, place: Place) -> str:
    """Take a string, or a number: an unquoted string of digits."""
    if not isinstance(value, str):
        raise place.error(f"must be a string, not {_kind(value)} ({value!r:.60}); quote it")
    return value


def scalar(value: Any, place: Place) -> str:
    """Take a string, number or boolean as text."""
    if isinstance(value, (dict, list)) or value is None:
        raise place.error(f"must be a string or number, not {_kind(value)}")
    return text_of(value)


def boolean(value: Any, place: Place) -> bool:
    """Take a boolean, or a text that stands for one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
        return value.lower() in _TRUE
    raise place.error(f"must be true or false, not {value!r:.60}")


def integer(value: Any, place: Place) -> int:
    """Take an integer, or a text of one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+", value.strip()):
        return int(value)
    raise place.error(f"must be a whole number, not {value!r:.60}")


def number(value: Any, place: Place) -> float:
    """Take a number, or a text of one."""
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            found = float(value)
            return int(found) if found.is_integer() else found
    except (ValueError, OverflowError):
        pass
    raise place.error(f"must be a number, not {value!r:.60}")


def size(value: Any, place: Place) -> str:
    """Take a size in bytes, or with a unit such as ``64m``. Return the number of bytes as text."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(int(value))
    found = size_of(value) if isinstance(value, str) else None
    if found is None:
        raise place.error(f"{value!r:.60} is not a size; use for example 64m or 1.5gb")
    return str(found)


def size_of(text: str) -> int | None:
    """Return the bytes of a text such as ``64m``, or None if it is not a size."""
    found = _SIZE.match(text.strip())
    return None if found is None else int(float(found[1]) * 1024 ** " kmgtp".index(found[2].lower() or " "))


def mode(value: Any, place: Place) -> str:
    """Take the mode of a file: a number, or octal digits as text. Return the octal digits."""
    if isinstance(value, str) and re.fullmatch(r"0?o?[0-7]{1,5}", value):
        return f"0{int(value.replace('o', ''), 8):o}"
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 0o7777:
        return f"0{value:o}"
    raise place.error(f"{value!r:.60} is not a mode of a file; use for example 0440")


def _nanoseconds(text: str) -> int | None:
    if text in ("0", ""):
        return 0
    at = total = 0
    for part in _DURATION.finditer(text):
        if part.start() != at:
            return None
        at = part.end()
        total += round(float(part[1]) * _NS[part[2]])
    return total if at == len(text) else None


def duration_s(text: str) -> float:
    """Return the seconds of a duration in its long form."""
    return (_nanoseconds(text) or 0) / 1e9


def duration_us(text: str) -> int:
    """Return the microseconds of a text: a number of microseconds, or a duration such as ``950ms``.

    Raises:
        SpecError: it is neither.
    """
    found = int(text) * 1000 if text.isdecimal() else _nanoseconds(text)
    if found is None:
        raise SpecError(f"{text!r:.60} is not a duration; use microseconds, or for example 950ms")
    return found // 1000


def duration(value: Any, place: Place) -> str:
    """Take a duration such as ``1m30s``. Return it with the largest units first, as Go writes it."""
    found = _nanoseconds(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise place.error(f"{value!r:.60} is not a duration; use for example 1m30s")
    seconds, rest = divmod(found, 10**9)
    if not seconds:
        for unit, count in (("ms", 10**6), ("µs", 1000), ("ns", 1)):
            if rest >= count:
                return f"{_short(rest / count)}{unit}"
        return "0s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    head = (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "")
    return f"{head}{_short(seconds + rest / 10**9)}s"


def _short(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".")


def choice(*known: str) -> Shape:
    """Return the shape of one of the given words."""

    def check(value: Any, place: Place) -> str:
        if value not in known or not isinstance(value, str):
            raise place.error(f"{value!r:.60} is not one of {', '.join(known)}")
        return value

    return check


def words(value: Any, place: Place) -> list[str] | None:
    """Take a command: a list, or a text that is split like in a shell. None stands for the image's command."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return shlex.split(value)
        except ValueError as error:
            raise place.error(f"{value!r:.60} can't be split into words: {error}") from None
    return strings(value, place)


def unique(values: Iterable[Any]) -> list[Any]:
    """Return the values without duplicates. The first of equal values stays."""
    return list(dict.fromkeys(values))


def strings(value: Any, place: Place) -> list[str]:
    """Take a list of strings or numbers."""
    if not isinstance(value, list):
        raise place.error(f"must be a list, not {_kind(value)}")
    return [scalar(item, place.at(number)) for number, item in enumerate(value)]


def either(value: Any, place: Place) -> list[str]:
    """Take a string, or a list of strings without duplicates."""
    return unique([value] if isinstance(value, str) else strings(value, place))


def each(shape: Shape) -> Shape:
    """Return the shape of a list."""

    def check(value: Any, place: Place) -> list[Any]:
        if not isinstance(value, list):
            raise place.error(f"must be a list, not {_kind(value)}")
        return [marked(shape, item, place.at(number)) for number, item in enumerate(value)]

    return check


def distinct(shape: Shape) -> Shape:
    """Return the shape of a list in which entries that are equal to an earlier one are left out."""
    listed = each(shape)

    def check(value: Any, place: Place) -> list[Any]:
        found: list[Any] = []
        for item in listed(value, place):
            if item not in found:
                found.append(item)
        return found

    return check


def marked(shape: Shape, value: Any, place: Place) -> Any:
    """Apply a shape to a value, or to the value inside a mark of merging."""
    if isinstance(value, Reset):
        return value
    if isinstance(value, Override):
        return Override(shape(value.value, place))
    return shape(value, place)


def pairs(value: Any, place: Place, *, empty: str | None = None) -> dict[str, Any]:
    """Take a mapping, or a list of ``NAME=VALUE``. Names without a value get ``empty``."""
    if isinstance(value, dict):
        return {
            key: item if isinstance(item, Reset) else empty if item is None else scalar(item, place.at(key))
            for key, item in value.items()
        }
    if not isinstance(value, list):
        raise place.error(f"must be a mapping or a list of NAME=VALUE, not {_kind(value)}")
    found: dict[str, Any] = {}
    for number, item in enumerate(value):
        name, equals, content = scalar(item, place.at(number)).partition("=")
        found[name] = content if equals else empty
    return found


def joined_pairs(value: Any, place: Place) -> dict[str, str]:
    """Take a mapping or a list of ``NAME=VALUE``. Names without a value get an empty one."""
    return {key: item if item is not None else "" for key, item in pairs(value, place, empty="").items()}


def by_name(shape: Shape, *, known: re.Pattern[str] | None = None) -> Shape:
    """Return the shape of a mapping whose keys are names."""

    def check(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise place.error(f"must be a mapping, not {_kind(value)}")
        found = {}
        for key, item in value.items():
            if known is not None and not known.fullmatch(key):
                raise place.error(f"{key!r:.60} is not a name: letters, digits, '.', '_' and '-'")
            found[key] = marked(shape, item, place.at(key))
        return found

    return check


def fields(known: Mapping[str, Shape], *, required: tuple[str, ...] = (), open_ended: bool = False) -> Shape:
    """Return the shape of a mapping with known keys. Keys that begin with ``x-`` are ignored.

    Args:
        known: the shapes of the keys.
        required: keys that must be present.
        open_ended: accept other keys too.
    """

    def check(value: Any, place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise place.error(f"must be a mapping, not {_kind(value)}")
        for key in required:
            if key not in value:
                raise place.error(f"the key {key!r} is missing")
        found = {}
        for key, item in value.items():
            if key in known:
                if item is None and known[key] is not words:
                    found[key] = _nothing(known[key], place.at(key))
                else:
                    found[key] = marked(known[key], item, place.at(key))
            elif key.startswith("x-") or open_ended:
                found[key] = item.value if isinstance(item, Override) else item
            else:
                raise place.error(_unknown(key, known))
        return {key: item for key, item in found.items() if item is not _LEFT_OUT}

    check.known = known  # type: ignore[attr-defined] # read by those who list the keys
    return check


_LEFT_OUT: Final = object()


def _nothing(shape: Shape, place: Place) -> Any:
    """Return the meaning of an empty value: a mapping without keys, or a missing key."""
    del place
    return {} if getattr(shape, "may_be_empty", False) else _LEFT_OUT


def _unknown(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(known)
    near = get_close_matches(key, names, 1)
    advice = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(sorted(names))}"
    return f"unknown key {key!r:.60}; {advice}"
