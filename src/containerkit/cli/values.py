"""The values of options, from their text.

Each function takes what was written after an option and raises :class:`containerkit.errors.SpecError`, which names the
option and the text, when it can't mean anything.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from containerkit.errors import SpecError
from containerkit.idmap import IdMapping
from containerkit.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["bind", "environment", "id_mapping", "mount", "namespaces", "pairs", "rlimits", "tmpfs"]

_MOUNT_NAMES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_MOUNT_FLAGS: Final = ("readonly", "recursive", "nosuid", "nodev", "noexec", "noatime", "idmap", "create")
_MOUNT_FIELDS: Final = ("type", "source", "target", "propagation")
_OPPOSITES: Final = {
    "rw": ("readonly", False),
    "norecursive": ("recursive", False),
    "suid": ("nosuid", False),
    "dev": ("nodev", False),
    "exec": ("noexec", False),
    "noidmap": ("idmap", False),
    "nocreate": ("create", False),
}
_TRUTHS: Final = {"": True, "true": True, "1": True, "false": False, "0": False}


def mount(text: str) -> Mount:
    """Return the mount of ``type=bind,source=/a,target=/b,readonly``.

    Words that are neither fields nor flags of :class:`containerkit.Mount` are options of the filesystem. A part with a
    comma in it goes in double quotes, as in CSV.
    """
    fields, options = _mount_fields(text)
    if "target" not in fields:
        raise SpecError(f"--mount {text!r}: needs target=PATH")
    kind = fields.setdefault("type", "bind")
    if kind == "bind":
        if options:
            raise SpecError(f"--mount {text!r}: {options[0][0]!r} is no option of a bind")
        if fields.get("source"):
            fields["source"] = os.path.abspath(str(fields["source"]))
    else:
        fields.setdefault("source", kind)
    return Mount.from_mapping({**fields, "options": tuple(options)})


def _mount_fields(text: str) -> tuple[dict[str, object], list[tuple[str, str | None]]]:
    fields: dict[str, object] = {}
    options: list[tuple[str, str | None]] = []
    for part in _parts(text):
        name, equals, value = part.partition("=")
        name = _MOUNT_NAMES.get(name, name)
        if name in _OPPOSITES and not equals:
            flag, meaning = _OPPOSITES[name]
            fields[flag] = meaning
        elif name in _MOUNT_FLAGS:
            if value not in _TRUTHS:
                raise SpecError(f"--mount {text!r}: {name} is true or false, not {value!r}")
            fields[name] = _TRUTHS[value]
        elif name in _MOUNT_FIELDS:
            fields[name] = value
        elif name:
            options.append((name, value if equals else None))
    return fields, options


def _parts(text: str) -> list[str]:
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise SpecError(f"--mount {text!r}: {error}") from None


def bind(text: str) -> Mount:
    """Return the mount of ``SOURCE[:TARGET[:OPTIONS]]``; the target is the source's own path unless it is given."""
    source, _, rest = text.partition(":")
    target, _, words = rest.partition(":")
    if not source or ":" in words:
        raise SpecError(f"--bind {text!r}: must be SOURCE[:TARGET[:ro]]; for paths with colons there is --mount")
    flags: dict[str, bool] = {}
    for word in words.split(",") if words else ():
        name = _MOUNT_NAMES.get(word, word)
        if name not in _MOUNT_FLAGS and name not in _OPPOSITES:
            known = ", ".join(("ro", *_MOUNT_FLAGS[2:], *_OPPOSITES))
            raise SpecError(f"--bind {text!r}: unknown option {word!r}; there are {known}")
        flag, meaning = _OPPOSITES.get(name, (name, True))
        flags[flag] = meaning
    return Mount.bind(source, target or os.path.abspath(source), **flags)


def tmpfs(text: str) -> Mount:
    """Return the mount of ``TARGET[:SIZE]``."""
    target, colon, size = text.partition(":")
    if colon and not size:
        raise SpecError(f"--tmpfs {text!r}: the size is empty")
    return Mount.tmpfs(target, size=size or None)


def environment(texts: Iterable[str], base: dict[str, str]) -> dict[str, str]:
    """Return ``base`` with the variables of ``NAME=VALUE``, or of ``NAME`` as the caller has it, put over it."""
    result = dict(base)
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise SpecError(f"--env {text!r}: must be NAME=VALUE, or NAME to pass one on")
        if equals:
            result[name] = value
        elif name in os.environ:
            result[name] = os.environ[name]
    return result


def id_mapping(option: str, text: str) -> IdMapping:
    """Return the mapping of ``INSIDE:OUTSIDE[:COUNT]``."""
    numbers = text.split(":")
    if len(numbers) not in (2, 3) or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise SpecError(f"{option} {text!r}: must be INSIDE:OUTSIDE[:COUNT], all numbers")
    return IdMapping(*map(int, numbers))


def namespaces(texts: Iterable[str]) -> dict[str, str | int]:
    """Return the choices of ``KIND=new``, ``KIND=host``, ``KIND=PID`` and ``KIND=PATH``."""
    choices: dict[str, str | int] = {}
    for kind, value in pairs("--namespace", texts).items():
        choices[kind] = int(value) if value.isascii() and value.isdecimal() else value
    return choices


def rlimits(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Return the limits of ``NAME=SOFT[:HARD]``; ``unlimited`` is a number, too."""
    limits: dict[str, tuple[int, int]] = {}
    for name, value in pairs("--rlimit", texts).items():
        soft, colon, hard = value.partition(":")
        limits[name] = _number(name, soft), _number(name, hard if colon else soft)
    return limits


def _number(name: str, text: str) -> int:
    if text == "unlimited":
        return -1
    if not text.isascii() or not text.isdecimal():
        raise SpecError(f"--rlimit {name}: {text!r} is no number; say NAME=SOFT[:HARD] or 'unlimited'")
    return int(text)


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Return the pairs of ``NAME=VALUE``; the last of a name counts."""
    result: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise SpecError(f"{option} {text!r}: must be NAME=VALUE")
        result[name] = value
    return result
