"""The functions of templates, and how values are shown in them.

Source: Go's package text/template, "Functions", and package fmt; Docker's documentation, "Format command and log
output".
"""

from __future__ import annotations

import json
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final

__all__ = ["FUNCTIONS", "is_true", "shown"]

_VERB: Final = re.compile(r"%([-+# 0]*)(\d*)(?:\.(\d+))?([a-zA-Z%])")


def is_true(value: Any) -> bool:
    """Return whether ``if`` takes a value for true: it is not empty, zero, false or nil."""
    return bool(value)


def shown(value: Any) -> str:
    """Return a value as Go prints it: ``[a b]``, ``map[a:b]``. Nothing is shown for None."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{' '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{shown(key)}:{shown(value[key])}' for key in sorted(value))}]"
    return "" if value is None else str(value)


def _json(value: Any) -> str:
    plain = {name: each for name, each in value.items() if not callable(each)} if isinstance(value, dict) else value
    return json.dumps(plain, ensure_ascii=False, separators=(",", ":"))


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict):
            value = value.get(key, "")
        elif isinstance(key, int) and not isinstance(key, bool) and 0 <= key < len(value):
            value = value[key]
        else:
            raise IndexError(f"there is no item {key!r} among {len(value)}")
    return value


def _printf(text: str, *given: Any) -> str:
    values = list(given)

    def fill(found: re.Match[str]) -> str:
        flags, width, precision, verb = found.groups()
        if verb == "%":
            return "%"
        if not values:
            raise ValueError(f"%{verb} without a value")
        value = values.pop(0)
        if verb in "sv":
            text = shown(value) if precision is None else shown(value)[: int(precision)]
        elif verb == "q":
            text = json.dumps(shown(value), ensure_ascii=False)
        elif verb == "t":
            text = shown(bool(value))
        elif verb in "dxXofeg":
            return str(f"%{flags}{width}{'.' + precision if precision else ''}{verb}" % value)
        else:
            raise ValueError(f"the verb %{verb} is not supported")
        return text.ljust(int(width or 0)) if "-" in flags else text.rjust(int(width or 0))

    return _VERB.sub(fill, text)


def _slice(value: Any, *bounds: int) -> Any:
    return value[slice(*bounds)] if len(bounds) > 1 else value[bounds[0] :] if bounds else value


def _and(*values: Any) -> Any:
    return next((value for value in values if not is_true(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if is_true(value)), values[-1])


FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "and": _and, "or": _or, "not": lambda value: not is_true(value),
    "eq": lambda value, *others: value in others, "ne": lambda value, other: value != other,
    "lt": lambda value, other: value < other, "le": lambda value, other: value <= other,
    "gt": lambda value, other: value > other, "ge": lambda value, other: value >= other,
    "len": len, "index": _index, "slice": _slice,
    "print": lambda *values: " ".join(map(shown, values)), "printf": _printf,
    "println": lambda *values: " ".join(map(shown, values)) + "\n",
    "json": _json, "join": lambda values, mark: mark.join(map(shown, values)),
    "split": lambda text, mark: text.split(mark), "title": lambda text: text[:1].upper() + text[1:],
    "lower": str.lower, "upper": str.upper,
    "pad": lambda text, before, after: " " * before + text + " " * after if text else "",
    "truncate": lambda text, length: text[:length],
}  # fmt: skip
"""The functions by their names: Go's, then Docker's."""
