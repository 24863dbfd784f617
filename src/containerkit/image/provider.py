"""The providers for ``RootFS.image(...)`` and ``RootFS.template(...)``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.image.image import Image
from containerkit.image.store import Store, default_root

if TYPE_CHECKING:
    from containerkit.spec.rootfs import RootFS

__all__ = ["image", "template"]

_OVERLAY: Final = ("upper", "work", "size", "idmap", "union", "volumes")
_IMAGE: Final = ("pull", "platform", "store", "settings", "credentials", "progress")


def image(description: RootFS) -> RootFS:
    """Return the overlay of an image's layers. The image is pulled if it is not in the store.

    Arguments of the description: ``pull`` (``missing``, ``always``, ``never``), ``platform``, ``store`` (a directory),
    ``settings``, ``credentials``, ``progress``, and those of ``RootFS.overlay``: ``upper``, ``work``, ``size``,
    ``idmap``, ``union``; and ``volumes`` of :meth:`containerkit.image.Image.rootfs`.

    Args:
        description: ``RootFS.image(...)``.

    Raises:
        SpecError: an argument is unknown.
        ImageError: the image is not available.
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
"""Cached results by description, with the state of the store's names at that time."""


def _key(description: RootFS) -> object | None:
    """Return the key for caching a description in this process, or None if it can't be cached."""
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
    """Return the overlay of a template's result and a writable layer. It is made once for the same arguments.

    Args:
        description: ``RootFS.template(...)``; its arguments are the template's, and those of ``RootFS.overlay``.

    Raises:
        SpecError: a template or argument is unknown.
        ImageError: it can't be made.
        UnsupportedError: a program that it needs is not installed.
    """
    from containerkit.image.templates import make_template

    options: dict[str, Any] = dict(description.arguments)
    overlay = {key: options.pop(key) for key in _OVERLAY if key in options}
    store = Store(options.pop("store")) if "store" in options else Store()
    return make_template(description.name, store=store, **options).rootfs(**overlay)


def _checked(description: RootFS, known: tuple[str, ...]) -> dict[str, Any]:
    options: dict[str, Any] = dict(description.arguments)
    if unknown := sorted(set(options) - set(known)):
        raise SpecError(f"RootFS.{description.kind}: unknown argument {unknown[0]!r}; there are {', '.join(known)}")
    return options
