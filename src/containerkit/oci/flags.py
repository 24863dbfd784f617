"""Read the flags of a command line: ``--name VALUE``, ``--name=VALUE``, ``-n VALUE``, ``-nVALUE``, one dash or two.

It does not use argparse, whose import takes longer than most verbs do.
"""

from __future__ import annotations

from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Flags", "read"]

_TRUE = ("true", "1", "t", "T", "TRUE", "True")
_FALSE = ("false", "0", "f", "F", "FALSE", "False")


class Flags:
    """The flags given and the arguments after them."""

    __slots__ = ("_values", "arguments")

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}
        self.arguments: list[str] = []

    def add(self, name: str, value: str) -> None:
        """Record a flag that was given."""
        self._values.setdefault(name, []).append(value)

    def text(self, name: str, otherwise: str = "") -> str:
        """Return the last value of a flag."""
        found = self._values.get(name)
        return found[-1] if found else otherwise

    def every(self, name: str) -> list[str]:
        """Return all values of a flag that may be repeated."""
        return self._values.get(name, [])

    def has(self, name: str) -> bool:
        """Return whether a switch is on."""
        found = self._values.get(name)
        if not found:
            return False
        if found[-1] in _TRUE:
            return True
        if found[-1] in _FALSE:
            return False
        raise RuntimeFailure(f"--{name}: {found[-1]!r} is neither true nor false")

    def given(self, name: str) -> bool:
        """Return whether a flag was given at all."""
        return name in self._values

    def number(self, name: str, otherwise: int = 0) -> int:
        """Return a flag's value as a number."""
        found = self._values.get(name)
        if not found:
            return otherwise
        try:
            return int(found[-1])
        except ValueError:
            raise RuntimeFailure(f"--{name}: {found[-1]!r} is not a number") from None


def read(
    words: Sequence[str],
    known: Mapping[str, str],
    *,
    anywhere: bool = False,
) -> Flags:
    """Read flags and arguments.

    Args:
        words: the command line after the verb.
        known: each flag's kind: ``"switch"``, ``"value"``, or the name of the flag that it is short for.
        anywhere: whether flags may come after arguments too. Otherwise the first argument ends them.

    Raises:
        RuntimeFailure: a flag is unknown, or has no value.
    """
    flags = Flags()
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            flags.arguments += words[position:]
            break
        if not word.startswith("-") or word == "-":
            if not anywhere:
                flags.arguments += words[position - 1 :]
                break
            flags.arguments.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        kind = known.get(name)
        if kind is None and not word.startswith("--") and known.get(word[1:2]) not in (None, "switch"):
            name, equals, value = word[1], "=", word[2:].removeprefix("=")
            kind = known[name]
        if kind is not None and kind not in ("switch", "value"):
            name, kind = kind, known[kind]
        if kind is None:
            raise RuntimeFailure(f"flag provided but not defined: {word}")
        if kind == "switch":
            flags.add(name, value if equals else "true")
            continue
        if not equals:
            if position >= len(words):
                raise RuntimeFailure(f"flag needs an argument: {word}")
            value = words[position]
            position += 1
        flags.add(name, value)
    return flags
