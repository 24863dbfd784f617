"""What the descriptions ``RootFS.image(...)`` and ``RootFS.template(...)`` stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from containerkit.errors import SpecError
from containerkit.image.image import Image
from containerkit.image.store import Store

if TYPE_CHECKING:
    from containerkit.rootfs import RootFS

__all__ = ["image", "template"]

_OVERLAY = ("upper", "work", "size", "idmap")
_IMAGE = ("pull", "platform", "store", "settings", "credentials", "progress")


def image(description: RootFS) -> RootFS:
    """Return the union of an image's layers, pulling the image when it is not there.

    Arguments of the description: ``pull`` (``missing``, ``always``, ``never``), ``platform``, ``store`` (a folder),
    ``settings``, ``credentials``, ``progress``, and those of ``RootFS.overlay``: ``upper``, ``work``, ``size``,
    ``idmap``.

    Args:
        description: ``RootFS.image(...)``.

    Raises:
        SpecError: an unknown argument.
        ImageError: the image can't be had.
    """
    options = _checked(description, (*_OVERLAY, *_IMAGE))
    if "store" in options:
        options["store"] = Store(options["store"])
    overlay = {key: options.pop(key) for key in _OVERLAY if key in options}
    return Image.get(description.name, **options).rootfs(**overlay)


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
