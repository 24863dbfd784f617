"""Find a container, an image, a volume or a network by name."""

from __future__ import annotations

from contextlib import suppress

from containerkit.errors import ContainerError, ImageError, SpecError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Final

__all__ = ["inspected"]


def inspected(name: str, kind: str | None) -> dict[str, Any]:
    """Return all known facts about an object.

    Args:
        name: its name or id.
        kind: ``container``, ``image``, ``volume`` or ``network``. None tries them in this order.

    Raises:
        StateError, ImageError: no such object.
    """
    if kind is not None:
        return _KINDS[kind](name)
    try:
        return _container(name)
    except (StateError, SpecError) as error:
        for look in (_image, _volume, _network):
            with suppress(ContainerError):
                return look(name)
        raise error from None


def _container(name: str) -> dict[str, Any]:
    from containerkit.detached.container import find

    return find(name).inspect()


def _image(name: str) -> dict[str, Any]:
    from argparse import Namespace

    from containerkit.cli.image.names import described
    from containerkit.cli.image.verb import find
    from containerkit.image import Image

    try:
        return described(find(Namespace(store=None, platform=None), name))
    except ImageError:
        return described(Image.get(name, pull="never"))


def _volume(name: str) -> dict[str, Any]:
    from containerkit.cli.volume import facts
    from containerkit.volume import get

    return facts(get(name))


def _network(name: str) -> dict[str, Any]:
    from containerkit.network.keeper import Kept

    return Kept(name).inspect()


_KINDS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "container": _container,
    "image": _image,
    "volume": _volume,
    "network": _network,
}
