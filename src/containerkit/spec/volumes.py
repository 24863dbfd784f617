"""Binds in the short form ``SOURCE:TARGET:ro``."""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.security.checks import text_of
from containerkit.spec.mount import Mount
from containerkit.spec.words import mapping_items, sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from containerkit.options import ListOf

__all__ = ["MOUNT_FLAGS", "MOUNT_NAMES", "OPPOSITES", "volume", "volumes"]

MOUNT_NAMES: Final = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
MOUNT_FLAGS: Final = ("readonly", "recursive", "nosuid", "nodev", "noexec", "noatime", "idmap", "create")
OPPOSITES: Final = {
    "rw": ("readonly", False),
    "norecursive": ("recursive", False),
    "suid": ("nosuid", False),
    "dev": ("nodev", False),
    "exec": ("noexec", False),
    "noidmap": ("idmap", False),
    "nocreate": ("create", False),
}


def volume(text: str, what: str) -> Mount:
    """Return the mount for ``SOURCE[:TARGET[:OPTIONS]]``. The default target is the source's own path.

    Args:
        text: the short form.
        what: the name of the argument, for errors.

    Raises:
        SpecError: the text is invalid.
    """
    source, _, rest = text_of(text, what).partition(":")
    target, _, words = rest.partition(":")
    if not source or ":" in words:
        raise SpecError(
            f"{what} {text!r}: must be SOURCE[:TARGET[:ro]]; {_FOR_COLONS.get(what, 'otherwise use Mount.bind()')}"
        )
    flags: dict[str, Any] = {}
    for word in words.split(",") if words else ():
        name = MOUNT_NAMES.get(word, word)
        if name not in MOUNT_FLAGS and name not in OPPOSITES:
            known = ", ".join(("ro", *MOUNT_FLAGS[2:], *OPPOSITES))
            raise SpecError(f"{what} {text!r}: unknown option {word!r}; there are {known}")
        flag, meaning = OPPOSITES.get(name, (name, True))
        flags[flag] = meaning
    return Mount.bind(source, target or os.path.abspath(source), **flags)


_FOR_COLONS: Final = {"--bind": "use --mount for paths with colons"}


def volumes(values: ListOf[str] | Mapping[Any, str]) -> tuple[Mount, ...]:
    """Return the mounts of a list of ``SOURCE:TARGET:ro``, or of a mapping of sources to ``TARGET[:OPTIONS]``.

    Raises:
        SpecError: an entry is invalid.
    """
    if hasattr(values, "items"):
        made: list[Mount] = []
        for source, rest in mapping_items(values, "volumes"):
            target, _, words = text_of(rest, "volumes").partition(":")
            mount = volume(f"/:{target}:{words}" if words else f"/:{target}", "volumes")
            made.append(Mount.bind(source, mount.target, **_flags(mount)))
        return tuple(made)
    return tuple(volume(each, "volumes") for each in sequence(values, "volumes"))


def _flags(mount: Mount) -> dict[str, Any]:
    return {name: getattr(mount, name) for name in MOUNT_FLAGS}
