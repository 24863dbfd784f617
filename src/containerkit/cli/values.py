"""Parse the values of options.

Each function receives the text of an option and raises :class:`containerkit.errors.SpecError`, which names the option
and the text, if it is invalid.
"""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.spec.idmap import IdMapping
from containerkit.spec.mount import Mount
from containerkit.spec.volumes import MOUNT_FLAGS, MOUNT_NAMES, OPPOSITES, volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

__all__ = ["bind", "environment", "id_mapping", "mount", "namespaces", "pairs", "rlimits", "tmpfs"]

_MOUNT_FIELDS: Final = ("type", "source", "target", "propagation")
_OF_TMPFS: Final = {"tmpfs-size": "size", "tmpfs-mode": "mode"}
"""Docker's names of options, and what the filesystem calls them."""
_TRUTHS: Final = {"": True, "true": True, "1": True, "false": False, "0": False}


def mount(text: str) -> Mount:
    """Parse the mount of ``type=bind,source=/a,target=/b,readonly``.

    Names that are neither fields nor flags of :class:`containerkit.Mount` are options of the filesystem. Write a part
    that contains a comma in double quotes, as in CSV.
    """
    fields, options = _mount_fields(text)
    if "target" not in fields:
        raise SpecError(f"--mount {text!r}: needs target=PATH")
    kind = fields.setdefault("type", "bind")
    if kind == "bind":
        if options:
            raise SpecError(f"--mount {text!r}: {options[0][0]!r} is not an option of a bind")
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
        name = MOUNT_NAMES.get(name, _OF_TMPFS.get(name, name))
        if name in OPPOSITES and not equals:
            flag, meaning = OPPOSITES[name]
            fields[flag] = meaning
        elif name in MOUNT_FLAGS:
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
    """Parse the mount of ``SOURCE[:TARGET[:OPTIONS]]``. The default target is the path of the source."""
    return volume(text, "--bind")


def tmpfs(text: str) -> Mount:
    """Parse the mount of ``TARGET[:SIZE]``, or as in Docker of ``TARGET:OPTION,...`` such as ``size=64m,mode=1777``."""
    target, colon, size = text.partition(":")
    if "=" in size or "," in size or size in ("rw", "ro"):
        return mount(f"type=tmpfs,target={target},{size}")
    if colon and not size:
        raise SpecError(f"--tmpfs {text!r}: the size is empty")
    return Mount.tmpfs(target, size=size or None)


def environment(texts: Iterable[str], base: dict[str, str]) -> dict[str, str]:
    """Return ``base`` updated with the variables of ``NAME=VALUE``, and of ``NAME`` with the caller's value."""
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
    """Parse the mapping of ``INSIDE:OUTSIDE[:COUNT]``."""
    numbers = text.split(":")
    if len(numbers) not in (2, 3) or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise SpecError(f"{option} {text!r}: must be INSIDE:OUTSIDE[:COUNT], all numbers")
    return IdMapping(*map(int, numbers))


def namespaces(texts: Iterable[str]) -> dict[str, str | int]:
    """Parse the choices of ``KIND=new``, ``KIND=host``, ``KIND=PID`` and ``KIND=PATH``."""
    choices: dict[str, str | int] = {}
    for kind, value in pairs("--namespace", texts).items():
        choices[kind] = int(value) if value.isascii() and value.isdecimal() else value
    return choices


def rlimits(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Parse the limits of ``NAME=SOFT[:HARD]``. A number can also be ``unlimited``."""
    limits: dict[str, tuple[int, int]] = {}
    for name, value in pairs("--rlimit", texts).items():
        soft, colon, hard = value.partition(":")
        limits[name] = _number(name, soft), _number(name, hard if colon else soft)
    return limits


def _number(name: str, text: str) -> int:
    if text == "unlimited":
        return -1
    if not text.isascii() or not text.isdecimal():
        raise SpecError(f"--rlimit {name}: {text!r} is not a number; use NAME=SOFT[:HARD] or 'unlimited'")
    return int(text)


def pairs(option: str, texts: Iterable[str]) -> dict[str, str]:
    """Parse the pairs of ``NAME=VALUE``. If a name is repeated, the last value counts."""
    result: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise SpecError(f"{option} {text!r:.100}: must be NAME=VALUE")
        result[name] = value
    return result
