"""Reads files of variables: ``.env``, and those that ``env_file`` and ``label_file`` name.

Source: the compose specification, "env_file"; docker's documentation, "Syntax for .env files".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from containerkit.errors import SpecError
from containerkit.project.interpolation import substitute

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["parse_dotenv", "read_dotenv"]

_SPACE: Final = " \t\v\f\r\x85\xa0"
_NAME: Final = re.compile(r"(?:export[ \t]+)?([\w.\-\[\]]*)[ \t]*([=:]|\r?\n|\r?\Z)")
_ESCAPE: Final = re.compile(r"\\(0[0-7]{0,3}|[abcfnrtv$\"\\])")
_ESCAPED: Final = {
    "a": "\a", "b": "\b", "c": "\\c", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v",
    "$": "$$", '"': '"', "\\": "\\",
}  # fmt: skip


def read_dotenv(path: str, variables: Mapping[str, str], *, raw: bool = False) -> dict[str, str]:
    """Return the variables of a file.

    Args:
        path: the file.
        variables: for names without a value, and for variables in values. They take precedence over the file's own.
        raw: read the format of ``docker run --env-file``: quotes and variables have no meaning (default False).

    Raises:
        SpecError: the file can't be read, or is malformed.
    """
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            text = file.read()
    except OSError as error:
        raise SpecError(f"env file {path}: {error.strerror}") from error
    return _raw(text, variables, path) if raw else parse_dotenv(text, variables, path)


def _raw(text: str, variables: Mapping[str, str], place: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.lstrip().partition("=")
        if not name or " " in name.strip():
            raise SpecError(f"{place}:{number}: {line!r:.100} is not NAME=VALUE")
        if equals:
            found[name] = value
        elif name in variables:
            found[name] = variables[name]
    return found


def parse_dotenv(text: str, variables: Mapping[str, str], place: str) -> dict[str, str]:
    """Return the variables of a text, see :func:`read_dotenv`."""
    found: dict[str, str] = {}
    text = text.replace("\r\n", "\n")
    at = 0
    while True:
        while at < len(text) and (text[at].isspace() or text[at] == "#"):
            at = _line_end(text, at) if text[at] == "#" else at + 1
        if at >= len(text):
            return found
        line = f"{place}:{text.count(chr(10), 0, at) + 1}"
        key = _NAME.match(text, at)
        if key is None or not key[1]:
            raise SpecError(f"{line}: {text[at : _line_end(text, at)]!r:.100} is not NAME=VALUE")
        at = key.end()
        if key[2] not in ("=", ":"):
            if key[1] in variables:
                found[key[1]] = variables[key[1]]
            continue
        value, at = _value(text, at, {**found, **variables}, line)
        found[key[1]] = value


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _value(text: str, at: int, variables: Mapping[str, str], line: str) -> tuple[str, int]:
    while at < len(text) and text[at] in _SPACE:
        at += 1
    quote = text[at : at + 1]
    if quote not in ('"', "'") or not quote:
        end = _line_end(text, at)
        plain = text[at:end]
        plain = "" if plain.startswith("#") and at and text[at - 1] in _SPACE else plain.partition(" #")[0]
        return substitute(plain.rstrip(), variables, place=line), end
    end = at + 1
    while end < len(text) and text[end] != quote:
        end += 2 if text[end] == "\\" else 1
    if end >= len(text):
        raise SpecError(f"{line}: the quote {quote} is not closed")
    inner = text[at + 1 : end].replace(f"\\{quote}", quote)
    if quote == '"':
        inner = substitute(_ESCAPE.sub(_unescape, inner), variables, place=line)
    return inner, end + 1


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code, 8)) if code[0] == "0" else _ESCAPED[code]
