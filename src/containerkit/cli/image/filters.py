"""Filters of ``containerkit images``, and the fields of images with Docker's names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from containerkit.cli import values
from containerkit.cli.image.verb import size_text, time_text
from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.image import Image, Store

__all__ = ["chosen", "docker_fields"]


def chosen(store: Store, repository: str | None, filters: Sequence[str]) -> list[Image]:
    """Return the images of a store that match.

    Args:
        store: the store.
        repository: the name of a repository, or with a tag; None for all.
        filters: texts of ``--filter``.

    Raises:
        SpecError: a filter that does not exist.
    """
    from containerkit.image import Image

    wanted = [pair for text in filters for pair in values.pairs("--filter", [text]).items()]
    for name, _ in wanted:
        if name not in ("reference", "dangling", "label"):
            raise SpecError(f"--filter {name!r}: choose from reference, dangling, label")
    if repository is not None:
        wanted.append(("reference", repository))
    return [image for image in Image.list(store) if all(_fits(image, *each) for each in wanted)]


def _fits(image: Image, name: str, value: str) -> bool:
    if name == "dangling":
        return (image.reference is None) == (value in ("true", "1"))
    if name == "label":
        key, equals, text = value.partition("=")
        try:
            labels = image.defaults.labels
        except ImageError:
            return False
        return key in labels and (not equals or labels[key] == text)
    if image.reference is None:
        return False
    full = image.reference.familiar_with_tag
    return any(fnmatchcase(each, value) for each in (full, full.rpartition(":")[0], str(image.reference)))


def docker_fields(image: Image) -> dict[str, Any]:
    """Return the fields of an image for templates."""
    full = image.reference.familiar_with_tag if image.reference else ""
    repository, _, tag = full.partition("@")[0].rpartition(":")
    try:
        created, labels = image.config.created, dict(image.defaults.labels)
    except ImageError:  # another artifact
        created, labels = "", {}
    return {
        "Repository": repository or "<none>",
        "Tag": tag or "<none>",
        "ID": image.id.short,
        "Digest": str(image.digest),
        "CreatedAt": time_text(created),
        "Size": size_text(image.size_bytes),
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
    }
