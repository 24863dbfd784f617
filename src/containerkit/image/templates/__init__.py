"""Templates: roots made from local files or packages, once for the same arguments.

A template is a function that fills an empty directory and returns the defaults of containers made from it. More
templates come from the entry points of the group ``containerkit.templates``. Each one names a :class:`Template`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.image.config import Defaults
from containerkit.image.image import Image
from containerkit.image.reference import Reference
from containerkit.image.store import Store
from containerkit.image.store.locks import locked, workspace
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["BUILTIN", "GROUP", "Template", "make_template", "template_names"]

GROUP: Final = "containerkit.templates"
BUILTIN: Final = {
    "alpine": "containerkit.image.templates.distributions:ALPINE",
    "busybox": "containerkit.image.templates.local:BUSYBOX",
    "debian": "containerkit.image.templates.distributions:DEBIAN",
    "host": "containerkit.image.templates.local:HOST",
    "ubuntu": "containerkit.image.templates.distributions:UBUNTU",
}


def _no_fingerprint(**_: Any) -> str:
    return ""


@attrs.frozen(kw_only=True)
class Template:
    """A recipe for a root.

    Args:
        make: called with an empty directory and the arguments. It fills the directory, and returns the defaults of
            containers.
        fingerprint: called with the arguments. It returns what else the result depends on, so that the root is made
            again if that changes. Default: nothing else.
    """

    make: Callable[..., Defaults | None]
    fingerprint: Callable[..., str] = _no_fingerprint


def template_names() -> list[str]:
    """Return the names of all templates, including those of other packages."""
    from importlib.metadata import entry_points

    return sorted({*BUILTIN, "image", *(entry.name for entry in entry_points(group=GROUP))})


def find_template(name: str) -> Template:
    """Return a template by its name.

    Raises:
        SpecError: the name is unknown, or the entry point of another package is not a template.
    """
    from importlib import import_module
    from importlib.metadata import entry_points

    if name in BUILTIN:
        module, _, attribute = BUILTIN[name].partition(":")
        found: object = getattr(import_module(module), attribute)
    else:
        entries = list(entry_points(group=GROUP, name=name))
        if not entries:
            raise SpecError(f"there is no template {name!r}; there are {', '.join(template_names())}")
        found = entries[0].load()
    if not isinstance(found, Template):
        raise SpecError(f"the template {name!r} of another package is not a containerkit.image.templates.Template")
    return found


def make_template(name: str, *, store: Store | None = None, again: bool = False, **arguments: Any) -> Image:
    """Return the image of a template. It is made if it is not in the store.

    Args:
        name: the template. ``image`` stands for an image (``reference=...``).
        store: the store. Default: the user's.
        again: whether to make it again even if it exists. Default False.
        arguments: the arguments of the template.

    Raises:
        SpecError: a template or argument is unknown.
        ImageError: it can't be made.
        UnsupportedError: a program that it needs is not installed.
    """
    store = store or Store()
    if name == "image":
        if "reference" not in arguments:
            raise SpecError("template image: pass reference=...")
        return Image.get(arguments.pop("reference"), store=store, **arguments)
    template = find_template(name)
    _check_arguments(name, template, arguments)
    facts = repr((name, sorted(arguments.items()), template.fingerprint(**arguments)))
    tag = hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    reference = Reference(registry="localhost", repository=f"template/{name.lower()}", tag=tag)
    lock = store.root / "build" / f"template-{tag}.lock"
    with locked(lock, exclusive=True):
        if not again and store.find(reference) is not None:
            return Image.open(reference, store=store)
        with workspace(store.root / "build") as parent:
            root: Path = parent / "root"
            root.mkdir()
            root.chmod(0o755)
            defaults = template.make(root, **arguments) or Defaults()
            made: Image = userns_helper.call(_image_of, root, reference, defaults, store, name)
            return made


def _image_of(root: Path, reference: Reference, defaults: Defaults, store: Store, name: str) -> Image:
    """Make the image of a root, which may contain files of all ids granted to the user."""
    return Image.from_directory(
        root, reference, defaults=defaults, store=store, created_by=f"template {name}", compression="none"
    )


def _check_arguments(name: str, template: Template, arguments: dict[str, Any]) -> None:
    from inspect import signature
    from pathlib import Path as AnyPath

    try:
        signature(template.make).bind(AnyPath(), **arguments)
    except TypeError as error:
        known = list(signature(template.make).parameters)[1:]
        raise SpecError(f"template {name}: {error}; its arguments are {', '.join(known) or 'none'}") from error
