"""The one CRIU image that a restore replaces: the id maps of the user namespace.

All other images contain the ids inside. So a restored container can have its own range of ids, and any number of
containers can be restored from the same images.

Source: CRIU's images/userns.proto and https://criu.org/Images; the protocol buffers' encoding of "varint" and "LEN".
"""

from __future__ import annotations

import os
from errno import ENOENT
from struct import pack
from typing import TYPE_CHECKING, Final

from containerkit.errors import SetupError

if TYPE_CHECKING:
    from containerkit.spec.idmap import IdMapping
    from containerkit.start.staging import Mappings

__all__ = ["id_maps", "id_maps_name"]

_MAGIC: Final = (0x54564319, 0x55474906)
"""The magic numbers of all images and of this kind."""

_VARINT, _LEN = 0, 2


def id_maps_name(images: str) -> str:
    """Return the name of that image in a directory of images.

    Raises:
        SetupError: it does not exist.
    """
    found = [name for name in os.listdir(images) if name.startswith("userns-")]
    if len(found) != 1:
        raise SetupError("restore", ENOENT, f"{images}/userns-*.img", "the checkpoint is not complete")
    return found[0]


def id_maps(mappings: Mappings) -> bytes:
    """Return such an image.

    Args:
        mappings: the maps of user ids and of group ids.
    """
    content = b"".join(_bytes(number, _extent(m)) for number, each in enumerate(mappings, 1) for m in each)
    return pack("=III", *_MAGIC, len(content)) + content


def _extent(mapping: IdMapping) -> bytes:
    numbers = (mapping.inside, mapping.outside, mapping.count)
    return b"".join(_varint(number << 3 | _VARINT) + _varint(value) for number, value in enumerate(numbers, 1))


def _bytes(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _LEN) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])
