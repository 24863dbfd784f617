"""Words of a Dockerfile: quotes, escapes, and replacement of variables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LONGEST", "expand", "name_values", "split_words"]

_GLOB: Final = re.compile(r"(\*+)|(\?)|(\[[!^]?[^\]]+\])|(\\.)|(.)", re.DOTALL)
LONGEST: Final = 1 << 20
"""The maximum number of characters to which the variables of one line may expand."""
_DEEPEST: Final = 50  # braces within braces
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]|[@*#]")


def expand(text: str, variables: Mapping[str, str], escape: str = "\\", *, quotes: bool = True) -> str:
    """Replace variables and remove quotes.

    ``$name``, ``${name}``, ``${name:-word}``, ``${name:+word}``, ``${name:?word}`` (each also without the colon),
    ``${name#pattern}``, ``##``, ``%``, ``%%``, ``${name/pattern/word}`` and ``//`` are understood. Nothing is replaced
    within single quotes.

    Args:
        text: the text.
        variables: their values; an unknown one is empty.
        escape: the escape character.
        quotes: whether quotes have a meaning. They have none in a heredoc.

    Raises:
        SpecError: a quote or brace is not closed, a modifier is unknown, a required variable is not set, braces are
            nested more than 50 levels deep, or the result has more than 1 MiB of characters.

    Source: Dockerfile reference, "Environment replacement".
    """
    return "".join(_Scanner(text, variables, escape, quotes=quotes).words(split=False))


def split_words(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """Split a text at unquoted blanks, and expand each word; see :func:`expand`.

    Source: Dockerfile reference, "Environment replacement".
    """
    return _Scanner(text, variables, escape, quotes=True).words(split=True)


def name_values(text: str, variables: Mapping[str, str], escape: str = "\\") -> list[tuple[str, str]]:
    """Parse ``name=value name2="value 2"``, or the older ``name value with blanks``.

    Raises:
        SpecError: a name is empty, or a word has no equals sign.

    Source: Dockerfile reference, "ENV" and "LABEL".
    """
    first = text.split(None, 1)
    if not first:
        raise SpecError("expected NAME=VALUE")
    if "=" not in first[0]:
        if len(first) == 1:
            raise SpecError(f"{first[0]!r} has no value; write {first[0]}=VALUE")
        return [(expand(first[0], variables, escape), expand(first[1], variables, escape))]
    found: list[tuple[str, str]] = []
    for word in _Scanner(text, variables, escape, quotes=True).words(split=True):
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise SpecError(f"{word!r} is not of the form NAME=VALUE")
        found.append((name, value))
    return found


class _Scanner:
    def __init__(
        self, text: str, variables: Mapping[str, str], escape: str, *, quotes: bool, depth: int = 0, length: int = 0
    ) -> None:
        if depth > _DEEPEST:
            raise SpecError(f"variables are nested more than {_DEEPEST} deep in {text[:60]!r}")
        self.text = text
        self.variables = variables
        self.escape = escape
        self.quotes = quotes
        self.at = 0
        self.depth = depth
        self.length = length  # of the result so far

    def _value(self, value: str) -> str:
        """Count the result. A few lines of ``ARG B=$A$A`` double a value each time."""
        self.length += len(value)
        if self.length > LONGEST:
            raise SpecError(f"its variables expand to more than {LONGEST} characters")
        return value

    def _expanded(self, text: str, *, quotes: bool = True) -> str:
        """Expand the text within braces."""
        inner = _Scanner(
            text, self.variables, self.escape, quotes=quotes, depth=self.depth + 1, length=self.length
        )  # fmt: skip
        return "".join(inner.words(split=False))

    def words(self, *, split: bool) -> list[str]:
        found: list[str] = []
        word, begun = [""], False
        while self.at < len(self.text):
            char = self.text[self.at]
            if split and char.isspace():
                self.at += 1
                if begun:
                    found.append("".join(word))
                word, begun = [""], False
                continue
            begun = True
            word.append(self._piece(char))
        if begun or not split:
            found.append("".join(word))
        return found

    def _piece(self, char: str) -> str:
        if self.quotes and char == "'":
            return self._single()
        if self.quotes and char == '"':
            return self._double()
        if char == "$":
            return self._variable()
        self.at += 1
        if char == self.escape and self.at < len(self.text):
            following = self.text[self.at]
            self.at += 1
            if not self.quotes and following not in ("$", self.escape):
                return char + following
            return following
        return char

    def _single(self) -> str:
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise SpecError(f"a single quote is not closed in {self.text[:60]!r}")
        content, self.at = self.text[self.at + 1 : end], end + 1
        return content

    def _double(self) -> str:
        self.at += 1
        found: list[str] = []
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == '"':
                self.at += 1
                return "".join(found)
            if char == "$":
                found.append(self._variable())
                continue
            self.at += 1
            if char == self.escape and self.at < len(self.text):
                following = self.text[self.at]
                self.at += 1
                found.append(following if following in ('"', "$", self.escape) else char + following)
            else:
                found.append(char)
        raise SpecError(f"a double quote is not closed in {self.text[:60]!r}")

    def _variable(self) -> str:
        self.at += 1
        if self.text[self.at : self.at + 1] == "{":
            return self._braces()
        found = _NAME.match(self.text, self.at)
        if found is None:
            return "$"
        self.at = found.end()
        return self._value(self.variables.get(found[0], ""))

    def _braces(self) -> str:
        found = _NAME.match(self.text, self.at + 1)
        if found is None:
            raise SpecError(f"a variable without a name in {self.text[:60]!r}")
        self.at = found.end()
        return self._value(self._modified(found[0], self._until_brace()))

    def _modified(self, name: str, rest: str) -> str:
        value = self.variables.get(name)
        if not rest:
            return value or ""
        colon, operator, word = re.match(r"(:?)([-+?]|##?|%%?|//?|)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr] # an empty text also matches
        if operator in ("-", "+", "?"):
            there = value is not None and (value != "" or not colon)
            inner = self._expanded(word, quotes=self.quotes)
            if operator == "?":
                if not there:
                    raise SpecError(f"the variable {name} must be set{f': {inner}' if inner else ''}")
                return value or ""
            return (inner if there else "") if operator == "+" else (value or "" if there else inner)
        if colon or not operator:
            raise SpecError(f"unknown modifier {rest[:20]!r} of the variable {name}")
        return self._edited(value or "", operator, word)

    def _until_brace(self) -> str:
        start, depth = self.at, 1
        while self.at < len(self.text):
            char = self.text[self.at]
            if char == self.escape:
                self.at += 2
                continue
            depth += (char == "{") - (char == "}")
            self.at += 1
            if depth == 0:
                return self.text[start : self.at - 1]
        raise SpecError(f"a brace is not closed in {self.text[:60]!r}")

    def _edited(self, value: str, operator: str, word: str) -> str:
        word = self._expanded(word) if operator[0] != "/" else word
        if operator[0] == "/":
            pattern, _, new = word.partition("/")
            plain = re.compile(_pattern(self._expanded(pattern), greedy=True))
            replacement = self._expanded(new)
            return plain.sub(lambda _: self._value(replacement), value, count=0 if operator == "//" else 1)
        body = _pattern(word, greedy=len(operator) == 2)
        if operator[0] == "#":
            return re.sub(rf"\A(?:{body})", "", value, count=1)
        cuts = range(len(value) + 1) if len(operator) == 2 else range(len(value), -1, -1)
        for cut in cuts:
            if re.fullmatch(body, value[cut:]):
                return value[:cut]
        return value


def _pattern(pattern: str, *, greedy: bool) -> str:
    """Convert a shell pattern to a regular expression that matches as much, or as little, as possible."""
    found: list[str] = []
    for star, query, bracket, escaped, plain in _GLOB.findall(pattern):
        if star:
            found.append(".*" if greedy else ".*?")
        elif query:
            found.append(".")
        elif bracket:
            inner = bracket[1:-1].replace("\\", "\\\\")
            found.append(f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]")
        else:
            found.append(re.escape(escaped[1:] or plain))
    return "(?s:" + "".join(found) + ")"
