"""Insert the meanings of shared arguments into the docstrings of calls.

The meanings are written once, below the fields in :mod:`containerkit.options` and, for images, fleets and projects, in
the modules of the same name in these packages. There editors and documentation generators find them. Python drops such
strings when it compiles a module, so they are read from the source files. This happens at each import, so the text is
split instead of parsed, which is faster.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes long
if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.abc import ResourceLoader
    from typing import TypeVar

    Call = TypeVar("Call")
    Meaning = tuple[str, str, str]
    """An argument: its name, its type as in the source, and its meaning with the line breaks of the source."""

    __loader__: ResourceLoader

__all__ = ["explained", "meanings", "omit"]

_PLACES = ("options.py", "image/options.py", "fleet/options.py", "project/options.py")
"""The files, in the order in which a class is looked for. A base is in the same file or in an earlier one."""

_MARK = "options: see :class:`"

_known: set[str] = set()
"""The files that have been read."""

_bases: dict[str, list[str]] = {}
_fields: dict[str, list[tuple[str, str, str]]] = {}


_omitted: list[bool] = []


def omit() -> None:
    """Stop expanding docstrings: a program that only runs commands never shows them."""
    _omitted.append(True)


def explained(call: Call) -> Call:
    """Replace the line that names a class of arguments by those arguments with their types and meanings.

    That line of a docstring is, for example, ``options: see :class:`containerkit.options.RunOptions`.``. It stays if
    the source file is not available. If the interpreter drops docstrings there is no such line.
    """
    if _omitted:
        return call
    before, mark, rest = (call.__doc__ or "").partition(_MARK)
    if mark:
        place, _, after = rest.partition("`.")
        name = place[place.rindex(".") + 1 :]
        margin = before[before.rindex("\n") :]
        told = [_entry(*each, margin) for each in meanings(name)]
        if told:
            call.__doc__ = before + margin.join(told) + after
    return call


def _entry(name: str, kind: str, text: str, margin: str) -> str:
    return f"{name} ({kind}): {text[0].lower()}{text[1:]}".replace("\n    ", f"{margin}    ")


def meanings(name: str) -> Iterator[Meaning]:
    """Yield the arguments of a class in these modules. Those of its bases come first."""
    for place in _PLACES:
        if name in _fields:
            break
        if place not in _known:
            _read(place)
            _known.add(place)
    yield from _of(name)


def _of(name: str) -> Iterator[Meaning]:
    for base in _bases.get(name, ()):
        yield from _of(base)
    yield from _fields.get(name, ())


def _read(place: str) -> None:
    """Split the source: every other piece between triple quotes is a docstring, and the line before it has the name."""
    of = ""
    bases_of: dict[str, list[str]] = {}
    fields_of: dict[str, list[tuple[str, str, str]]] = {}
    pieces = _source(place).split('"""')
    for code, text in zip(pieces[::2], pieces[1::2], strict=False):
        line = code.rstrip()
        line = line[line.rfind("\n") + 1 :]
        if line.endswith(":"):
            _, found, header = code.rpartition("\nclass ")
            if found:  # otherwise it belongs to a function
                of, _, bases = header.partition("(")
                bases_of[of] = [base.strip() for base in bases.partition(")")[0].split(",")]
                fields_of[of] = []
        elif line.startswith("    "):
            field, _, kind = line.strip().partition(": ")
            fields_of[of].append((field, kind, text))
    _bases.update(bases_of)  # only now, because another thread may import at the same time
    _fields.update(fields_of)


def _source(place: str) -> str:
    try:
        return __loader__.get_data(os.path.join(os.path.dirname(__file__), place)).decode()
    except (AttributeError, OSError):  # the source is missing, for example in an archive of compiled modules
        return ""
