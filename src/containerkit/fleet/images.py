"""Images of a fleet: a name is resolved once on the driver, and pulled once for each node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError
from containerkit.spec.rootfs import RootFS

if TYPE_CHECKING:
    from containerkit.image.reference import Reference

__all__ = ["pulled", "resolved"]

_LOCK: Final = "fleet.lock"


def resolved(name: str) -> str:
    """Return a reference with the image's present digest, from its registry or otherwise from the driver's store.

    Args:
        name: the reference. A reference with a digest is returned unchanged, without a request.

    Raises:
        SpecError: it is not a reference.
        ImageError: neither has the image.
    """
    from containerkit.image.reference import Reference

    reference = Reference.parse(name)
    if reference.digest is not None:
        return name
    try:
        digest = _asked(reference)
    except ImageError as error:
        kept = _kept(reference)
        if kept is None:
            raise ImageError(f"image {name}: its digest can't be determined: {error}") from error
        digest = kept
    return reference.with_digest(digest).familiar


def _asked(reference: Reference) -> str:
    from containerkit.image.registry import Registry, RegistrySettings

    settings = RegistrySettings.load()
    failures: list[str] = []
    for host in (*settings.mirrors.get(reference.registry, ()), ""):
        try:
            with Registry(reference.registry, settings=settings, host=host) as source:
                digest = source.manifest_digest(reference.repository, reference.target)
                found = digest or source.manifest(reference.repository, reference.target).digest
                return str(found)
        except ImageError as error:
            failures.append(f"{host or reference.registry}: {error}")
    raise ImageError("; ".join(failures))


def _kept(reference: Reference) -> str | None:
    from containerkit.image.store import Store

    entry = Store().find(reference)
    return None if entry is None else str(entry.digest)


def pulled(reference: str) -> RootFS:
    """Return the root filesystem of an image. The first caller pulls it if the node's store does not have it.

    Raises:
        ImageError: it is not available.
        SpecError: it is no reference.
    """
    from containerkit.image import Image, Store
    from containerkit.image.store.locks import locked

    if reference not in _there:
        try:
            Image.open(reference)
        except ImageError:
            with locked(Store().root / _LOCK, exclusive=True):
                Image.get(reference)
        _there.add(reference)
    return RootFS.image(reference)


_there: set[str] = set()
"""The images that this process has found in the store. An image that was removed is pulled again at its next use."""
