"""Replaces variables in compose files by their values.

Source: the compose specification, "Interpolation".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["interpolated", "substitute"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATORS: Final = (":-", ":+", ":?", "-", "+", "?")
_DEPTH: Final = 50


def substitute(
    text: str, variables: Mapping[str, str], *, place: str = "", unset: Callable[[str], object] | None = None
) -> str:
    """Return a text with its variables replaced: ``$NAME``, ``${NAME}``, ``${NAME:-default}`` and the like.

    Args:
        text: the text; ``$$`` is a dollar sign.
        variables: the values.
        place: its position, for errors.
        unset: called with the name of each variable that has no value and no default.

    Raises:
        SpecError: a variable is malformed, or one that ``:?`` or ``?`` requires is missing.
    """
    if "$" not in text:
        return text
    return _Substitution(variables, place, unset).whole(text, 0)


class _Substitution:
    def __init__(self, variables: Mapping[str, str], place: str, unset: Callable[[str], object] | None) -> None:
        self._variables, self._place, self._unset = variables, place, unset

    def whole(self, text: str, depth: int) -> str:
        if depth > _DEPTH:
            raise SpecError(f"{self._place}: variables nested more than {_DEPTH} deep")
        made: list[str] = []
        at = 0
        while (dollar := text.find("$", at)) >= 0:
            made.append(text[at:dollar])
            value, at = self._one(text, dollar + 1, depth)
            made.append(value)
        return "".join((*made, text[at:]))

    def _one(self, text: str, at: int, depth: int) -> tuple[str, int]:
        """Return the value of the variable after a dollar sign, and the position after it."""
        if text.startswith("$", at):
            return "$", at + 1
        if text.startswith("{", at):
            end = self._closing(text, at)
            return self._braced(text, text[at + 1 : end], depth), end + 1
        name = _NAME.match(text, at)
        return ("$", at) if name is None else (self._value(name[0]), name.end())

    def _closing(self, text: str, at: int) -> int:
        level, position = 1, at + 1
        while position < len(text):
            char = text[position]
            if char == "$" and text.startswith("${", position):
                level, position = level + 1, position + 1
            elif char == "}":
                level -= 1
                if not level:
                    return position
            position += 1
        raise self._malformed(text)

    def _malformed(self, text: str) -> SpecError:
        return SpecError(f"{self._place}: {text!r:.200}: a malformed variable; write '$$' for a dollar sign")

    def _value(self, name: str) -> str:
        value = self._variables.get(name)
        if value is None:
            if self._unset is not None:
                self._unset(name)
            return ""
        return value

    def _braced(self, text: str, inner: str, depth: int) -> str:
        found = _NAME.match(inner)
        if found is None:
            raise self._malformed(text)
        name, rest = found[0], inner[found.end() :]
        if not rest:
            return self._value(name)
        operator = next((each for each in _OPERATORS if rest.startswith(each)), None)
        if operator is None:
            raise self._malformed(text)
        word = rest[len(operator) :]
        value = self._variables.get(name)
        there = bool(value) if operator[0] == ":" else value is not None
        if operator[-1] == "-":
            return (value or "") if there else self.whole(word, depth + 1)
        if operator[-1] == "+":
            return self.whole(word, depth + 1) if there else ""
        if there:
            return value or ""
        reason = self.whole(word, depth + 1)
        raise SpecError(
            f"{self._place}: the variable {name} is required{': ' + reason if reason else ' and is not set'}"
        )


def interpolated(
    value: Any, variables: Mapping[str, str], *, place: str, unset: Callable[[str], object] | None = None
) -> Any:
    """Return a value of a file with the variables in all its texts replaced. Keys are not changed.

    Args:
        value: mappings, lists and scalars.
        variables, unset: see :func:`substitute`.
        place: the path of the value, for errors.

    Raises:
        SpecError: see :func:`substitute`.
    """
    if isinstance(value, str):
        return substitute(value, variables, place=place, unset=unset)
    if isinstance(value, dict):
        return {key: interpolated(each, variables, place=f"{place}.{key}", unset=unset) for key, each in value.items()}
    if isinstance(value, list):
        return [
            interpolated(each, variables, place=f"{place}[{number}]", unset=unset) for number, each in enumerate(value)
        ]
    if hasattr(value, "value"):  # an override
        return type(value)(interpolated(value.value, variables, place=place, unset=unset))
    return value
