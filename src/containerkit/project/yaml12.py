"""Reads YAML 1.2, the language of compose files: PyYAML's parser with separate resolvers and constructors.

PyYAML's own resolvers follow YAML 1.1: ``22:22`` is 1342, ``no`` is False, and duplicate keys are accepted.

Source: YAML 1.2.2, "Core Schema"; the compose specification, "Fragments", "Merge".
"""

from __future__ import annotations

import re
from errno import ENOENT
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Override", "Reset", "dump_yaml", "parse_yaml"]

_QUOTED: Final = ("'", '"', "|", ">")
_NODES_AT_MOST: Final = 1_000_000  # aliases of aliases multiply
_INTEGER: Final = re.compile(r"[-+]?(0o?[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+|0|[1-9][0-9_]*)\Z")
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL: Final[dict[str, object]] = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False,
    ".nan": float("nan"), ".NaN": float("nan"), ".NAN": float("nan"),
    **{sign + word: float(f"{sign}inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
}  # fmt: skip
_BASES: Final = {"0x": 16, "0b": 2, "0o": 8}


class Reset:
    """The tag ``!reset``: the values of earlier files for this key are removed."""

    def __repr__(self) -> str:
        return "!reset"


class Override:
    """The tag ``!override``: the value replaces those of earlier files, and is not merged with them.

    Args:
        value: the value.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"!override {self.value!r}"


def parse_yaml(text: str, place: str) -> list[Any]:
    """Return the documents of a text.

    Args:
        text: YAML.
        place: the path for errors.

    Raises:
        SpecError: not YAML, a duplicate key, an unknown tag, or a value that contains itself.
        UnsupportedError: PyYAML is not installed.
    """
    yaml = _library()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return list(_documents(loader, place))
    except yaml.YAMLError as error:
        raise SpecError(f"{place}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{place}: nested too deeply") from None
    finally:
        loader.dispose()


def dump_yaml(value: Any) -> str:
    """Return a value as YAML, keys in their order."""
    yaml = _library()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined] # PyYAML is imported late
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    def text(dumper: Any, content: str) -> Any:
        style = "'" if _scalar(content) is not content else "|" if "\n" in content else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", content, style=style)

    Dumper.add_representer(str, text)
    made: str = yaml.dump(value, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True)
    return made


def _documents(loader: Any, place: str) -> Iterator[Any]:
    while loader.check_node():
        yield _Builder(place).build(loader.get_node())


def _library() -> Any:
    try:
        import yaml
    except ImportError as error:
        raise UnsupportedError("import", ENOENT, "yaml", "pip install 'containerkit[compose]'") from error
    return yaml


def _scalar(text: str) -> Any:
    """Return the value of a plain scalar."""
    if text in _SPECIAL:
        return _SPECIAL[text]
    first = text[0]
    if not (first.isdigit() or first in "+-."):
        return text
    if _INTEGER.match(text):
        sign, digits = (-1 if first == "-" else 1), text.lstrip("+-").replace("_", "")
        # A leading zero means octal, as in file modes and in docker's own loader.
        base = _BASES.get(digits[:2].lower(), 8 if len(digits) > 1 and digits[0] == "0" else 10)
        return sign * int(digits.removeprefix("0o"), base)
    return float(text) if _FLOAT.match(text) else text


class _Builder:
    """Builds values from nodes."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._open: set[int] = set()
        self._count = 0

    def build(self, node: Any) -> Any:
        self._count += 1
        if self._count > _NODES_AT_MOST:
            raise SpecError(f"{self._place}: more than {_NODES_AT_MOST} values; aliases count each time they are used")
        if id(node) in self._open:
            raise SpecError(f"{self._where(node)}: a value contains itself")
        self._open.add(id(node))
        try:
            return self._tagged(node)
        finally:
            self._open.discard(id(node))

    def _where(self, node: Any) -> str:
        return f"{self._place}:{node.start_mark.line + 1}"

    def _tagged(self, node: Any) -> Any:
        tag = node.tag
        if tag == "!reset":
            return Reset()
        if tag == "!override":
            return Override(self._plain(node, None))
        if tag.startswith("tag:yaml.org,2002:"):
            return self._plain(node, tag[len("tag:yaml.org,2002:") :])
        raise SpecError(f"{self._where(node)}: unknown tag {tag!r:.100}; choose from !reset and !override")

    def _plain(self, node: Any, kind: str | None) -> Any:
        if node.id == "mapping":
            return dict(self._pairs(node))
        if node.id == "sequence":
            return [self.build(item) for item in node.value]
        if node.style in _QUOTED or (kind == "str" and _scalar(node.value) is node.value):
            return node.value
        return _scalar(node.value)

    def _pairs(self, node: Any) -> Iterator[tuple[str, Any]]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.value == "<<" and key_node.style not in _QUOTED:
                for name, value in self._merged(value_node):
                    merged.setdefault(name, value)
                continue
            key = self._key(key_node)
            if key in own:
                raise SpecError(f"{self._where(key_node)}: the key {key!r:.100} is a duplicate")
            own[key] = self.build(value_node)
        yield from {**merged, **own}.items()

    def _key(self, node: Any) -> str:
        if node.id != "scalar":
            raise SpecError(f"{self._where(node)}: a key must be a string")
        text: str = node.value
        return text

    def _merged(self, node: Any) -> Iterator[tuple[str, Any]]:
        for source in node.value if node.id == "sequence" else [node]:
            found = self.build(source)
            if isinstance(found, Override):
                found = found.value
            if not isinstance(found, dict):
                raise SpecError(f"{self._where(source)}: '<<' needs a mapping, or a list of them")
            yield from found.items()
