"""Bounds on the unpacked size of a layer."""

from __future__ import annotations

from typing import Final

import attrs

from containerkit.errors import ImageError, SpecError

__all__ = ["DEFAULT_LIMITS", "STANDARD_DEVICES", "UnpackLimits"]

_MIB: Final = 1 << 20


def _positive(_: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not isinstance(value, int) or value <= 0:
        raise SpecError(f"{attribute.name} must be a positive integer, not {value!r}")


@attrs.frozen(kw_only=True)
class UnpackLimits:
    """Bounds on what one layer or archive may unpack to. The bounds of a store apply to everything that it imports.

    Args:
        bytes: uncompressed bytes. Default 64 GiB.
        entries: files, directories, links and markers. Default 4,000,000.
        ratio: uncompressed bytes for each compressed byte, beyond ``ratio_from``. Default 250. Ordinary files stay
            below 20, while a bomb reaches 1,030 with gzip and 20,000 with zstd.
        ratio_from: uncompressed bytes up to which the ratio is not checked. Default 256 MiB.
        header_bytes: size of the headers of one entry. Default 4 MiB.

    Raises:
        SpecError: a value is not a positive integer.
    """

    bytes: int = attrs.field(default=64 << 30, validator=_positive)
    entries: int = attrs.field(default=4_000_000, validator=_positive)
    ratio: int = attrs.field(default=250, validator=_positive)
    ratio_from: int = attrs.field(default=256 * _MIB, validator=_positive)
    header_bytes: int = attrs.field(default=4 * _MIB, validator=_positive)

    def check_bytes(self, unpacked: int, compressed: int, what: str = "layer") -> None:
        """Check that the unpacked size so far is within the bounds.

        Raises:
            ImageError: it is not.
        """
        if unpacked > self.bytes:
            raise ImageError(
                f"{what}: unpacks to more than {self.bytes} bytes "
                "(hint: Store(limits=UnpackLimits(bytes=...)) raises this)"
            )
        if unpacked > self.ratio_from and compressed and unpacked > compressed * self.ratio:
            raise ImageError(
                f"{what}: unpacks to more than {self.ratio} times its size, like a decompression bomb "
                "(hint: Store(limits=UnpackLimits(ratio=...)) raises this)"
            )

    def check_entries(self, count: int) -> None:
        """Check that the number of entries so far is within the bounds.

        Raises:
            ImageError: it is not.
        """
        if count > self.entries:
            raise ImageError(
                f"layer: more than {self.entries} entries (hint: Store(limits=UnpackLimits(entries=...)) raises this)"
            )


DEFAULT_LIMITS: Final = UnpackLimits()

STANDARD_DEVICES: Final = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 229)})
"""The character devices that every system has in ``/dev`` and that give no access to hardware: null, zero, full,
random, urandom, tty, console, ptmx and fuse."""
