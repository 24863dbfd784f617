"""What the descriptions ``RootFS.image(...)`` and ``RootFS.template(...)`` stand for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.image.image import Image
from containerkit.image.store import Store, default_root

if TYPE_CHECKING:
    from containerkit.rootfs import RootFS

__all__ = ["image", "template"]

_OVERLAY: Final = ("upper", "work", "size", "idmap", "union", "volumes")
_IMAGE: Final = ("pull", "platform", "store", "settings", "credentials", "progress")


def image(description: RootFS) -> RootFS:
    """Return the union of an image's layers, pulling the image when it is not there.

    Arguments of the description: ``pull`` (``missing``, ``always``, ``never``), ``platform``, ``store`` (a folder),
    ``settings``, ``credentials``, ``progress``, and those of ``RootFS.overlay``: ``upper``, ``work``, ``size``,
    ``idmap``, ``union``; and ``volumes`` of :meth:`containerkit.image.Image.rootfs`.

    Args:
        description: ``RootFS.image(...)``.

    Raises:
        SpecError: an unknown argument.
        ImageError: the image can't be had.
    """
    options = _checked(description, (*_OVERLAY, *_IMAGE))
    index = os.path.join(options.get("store") or default_root(), "index.json")
    known = _known.get(_key(description))
    if known is not None and known[0] == _state_of(index) and os.path.isdir(known[1].lowers[0]):
        return known[1]
    options["store"] = Store(options.get("store"))
    overlay = {key: options.pop(key) for key in _OVERLAY if key in options}
    found = Image.get(description.name, **options).rootfs(**overlay)
    if options.get("pull") != "always" and (key := _key(description)) is not None:
        _known[key] = (_state_of(index), found)
    return found


_known: dict[object, tuple[object, RootFS]] = {}
"""What descriptions stood for, and the state of the names in the store at that time."""


def _key(description: RootFS) -> object | None:
    """Return what a description may be remembered by, in this process; None when it can't be."""
    try:
        hash(description)
    except TypeError:
        return None
    return os.getpid(), default_root(), description


def _state_of(index: str) -> object:
    try:
        status = os.stat(index)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def template(description: RootFS) -> RootFS:
    """Return the union of what a template makes and a writable layer; it is made once for the same arguments.

    Args:
        description: ``RootFS.template(...)``; its arguments are the template's, and those of ``RootFS.overlay``.

    Raises:
        SpecError: an unknown template or argument.
        ImageError: it can't be made.
        UnsupportedError: a program that it needs is not installed.
    """
    from containerkit.image.templates import make_template

    options = dict(description.arguments)
    overlay = {key: options.pop(key) for key in _OVERLAY if key in options}
    store = Store(options.pop("store")) if "store" in options else Store()
    return make_template(description.name, store=store, **options).rootfs(**overlay)


def _checked(description: RootFS, known: tuple[str, ...]) -> dict[str, Any]:
    options = dict(description.arguments)
    if unknown := sorted(set(options) - set(known)):
        raise SpecError(f"RootFS.{description.kind}: unknown argument {unknown[0]!r}; there are {', '.join(known)}")
    return options
