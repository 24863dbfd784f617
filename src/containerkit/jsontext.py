"""Read and write JSON with the interpreter's own scanner, because the ``json`` package takes long to import."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

try:
    from _json import encode_basestring_ascii as _quoted
    from _json import make_encoder as _make_encoder
    from _json import make_scanner as _make_scanner
except ImportError:  # an interpreter without the accelerator
    from json.encoder import py_encode_basestring_ascii as _quoted

    _make_scanner = _make_encoder = None  # type: ignore[assignment,misc] # no accelerator is a value, too

__all__ = ["dumps", "loads"]

_SPACE = " \t\n\r"


class _Settings:
    """The attributes that the scanner reads from its context."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None  # since Python 3.15
    parse_float = float
    parse_int = int
    memo: dict[str, str] = {}  # noqa: RUF012 - the scanner's own

    @staticmethod
    def parse_constant(name: str) -> float:
        raise ValueError(f"{name} is not JSON")


def _scanner() -> Any:
    """Return the scanner. Return None if there is none, or if it needs settings that are not known here."""
    if _make_scanner is None:
        return None
    try:
        return _make_scanner(_Settings)  # type: ignore[arg-type] # it only reads attributes, of any object
    except (AttributeError, TypeError):  # it is private, so each version of Python may need other attributes
        return None


_scan = _scanner()


def _refuse(value: object) -> NoReturn:
    raise TypeError(f"{type(value).__name__} is not JSON")


def _encoder() -> Any:
    """Return what writes a value on one line. Return None if there is none, or if it needs other arguments."""
    if _make_encoder is None:
        return None
    try:
        return _make_encoder(None, _refuse, _quoted, None, ":", ",", False, False, True)
    except TypeError:  # it is private, too
        return None


_encode = _encoder()


def loads(text: bytes | str) -> Any:
    """Read a JSON document.

    Raises:
        ValueError: it is not valid JSON. The text has the position.

    Source: RFC 8259.
    """
    try:
        words = text if isinstance(text, str) else text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    words = words.removeprefix("\ufeff")
    if _scan is None:
        return _read_slowly(words)
    start = len(words) - len(words.lstrip(_SPACE))
    try:
        value, end = _scan(words, start)
    except StopIteration as stop:
        raise ValueError(f"no value {_where(words, stop.value)}") from None
    except SystemError:  # the scanner has no exception to raise if json.decoder is not loaded
        return _read_slowly(words)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if words[end:].strip(_SPACE):
        raise ValueError(f"more after the end of the value {_where(words, end)}")
    return value


def _read_slowly(text: str) -> Any:
    """Read with the package itself, which also reports errors in detail."""
    import json

    return json.loads(text)


def _where(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"at line {line} column {at - text.rfind(chr(10), 0, at)}"


def dumps(value: object, indent: int = 0, *, _level: int = 0) -> str:
    """Return a value as JSON, with members in their order.

    Args:
        value: of None, booleans, numbers, strings, lists, tuples and dicts with strings as keys.
        indent: spaces for each level; 0 (the default) writes one line.

    Raises:
        TypeError: another type.
    """
    if _encode is not None and not indent:
        return "".join(_encode(value, 0))
    if isinstance(value, str):
        return _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict):
        colon = ": " if indent else ":"
        parts = [f"{_quoted(key)}{colon}{dumps(each, indent, _level=_level + 1)}" for key, each in value.items()]
        return _joined("{}", parts, indent, _level)
    if isinstance(value, (list, tuple)):
        return _joined("[]", [dumps(each, indent, _level=_level + 1) for each in value], indent, _level)
    _refuse(value)


def _joined(brackets: str, parts: list[str], indent: int, level: int) -> str:
    if not indent or not parts:
        return brackets[0] + ",".join(parts) + brackets[1]
    inner = "\n" + " " * (indent * (level + 1))
    return brackets[0] + inner + ("," + inner).join(parts) + "\n" + " " * (indent * level) + brackets[1]
