"""The mounts of ``-v`` and ``--mount type=volume``: binds, and named volumes that are filled from the image."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from containerkit.cli import values
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from containerkit.image import Image
    from containerkit.spec.mount import Mount

__all__ = ["mount", "volume"]


def volume(text: str, image: Image | None) -> Mount:
    """Return the mount of ``-v SOURCE:TARGET[:OPTIONS]``. A source without a slash is the name of a volume.

    Args:
        text: the value of the option.
        image: an empty volume is filled from it.

    Raises:
        SpecError: the value is invalid.
        SetupError: the volume can't be created or filled.
    """
    source, colon, rest = text.partition(":")
    if not colon and source[:1] == "/":
        raise SpecError(
            f"-v {text!r}: anonymous volumes are not supported: give it a name (-v NAME:{text}), "
            f"use --tmpfs {text} for memory, or --bind {text} for the host's directory"
        )
    if source[:1] == "~":
        return values.bind(os.path.expanduser(text))
    if source[:1] in ("", "/", ".") or not rest.startswith("/"):
        return values.bind(_without(text, ("z", "Z")))
    target, _, words = rest.partition(":")
    given = words.split(",") if words else []
    kept = ",".join(word for word in given if word not in ("nocopy", "copy", "z", "Z"))
    # The target is checked before the volume is created.
    values.bind(f"/:{target}:{kept}" if kept else f"/:{target}")
    path = _used(source, None if "nocopy" in given else image, target)
    return values.bind(f"{path}:{target}:{kept}" if kept else f"{path}:{target}")


def _without(text: str, words: tuple[str, ...]) -> str:
    """Return a bind without the options for SELinux labels. The labels of the host's files are not changed."""
    head, _, last = text.rpartition(":")
    if not head or "/" in last or ":" not in head:
        return text
    kept = ",".join(word for word in last.split(",") if word not in words)
    return f"{head}:{kept}" if kept else head


def _used(name: str, image: Image | None, target: str) -> str:
    from containerkit.volume import used

    return used(name, image, target).path


def mount(text: str, image: Image | None) -> Mount | None:
    """Return the mount of ``type=volume,source=NAME,target=DIR``, or None for another type.

    Raises:
        SpecError: the value is invalid.
    """
    parts = [part.partition("=")[::2] for part in text.split(",")]
    fields = {
        {"src": "source", "dst": "target", "destination": "target"}.get(name, name): value for name, value in parts
    }
    if fields.get("type", "volume") != "volume":
        return None
    if not fields.get("source") or not fields.get("target"):
        raise SpecError(f"--mount {text!r}: a volume needs source=NAME and target=PATH")
    nocopy = fields.pop("volume-nocopy", "false") in ("", "true", "1")
    if strange := set(fields) - {"type", "source", "target", "readonly", "ro"}:
        raise SpecError(f"--mount {text!r}: {min(strange)!r} is not an option of a volume")
    readonly = any(fields.get(name, "false") in ("", "true", "1") for name in ("readonly", "ro"))
    words = ",".join([*(["ro"] if readonly else []), *(["nocopy"] if nocopy else [])])
    return volume(":".join(filter(None, (fields["source"], fields["target"], words))), image)
