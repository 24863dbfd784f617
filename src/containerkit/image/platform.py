"""Platforms: which image of an index fits this machine."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

__all__ = ["Platform"]

_PART: Final = re.compile(r"[A-Za-z0-9_.-]+")

# Names of architectures in kernels and elsewhere, mapped to the name and variant in images (GOARCH, GOARM).
_ALIASES: Final = {
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "i386": ("386", ""),
    "i486": ("386", ""),
    "i586": ("386", ""),
    "i686": ("386", ""),
    "aarch64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "armv5tel": ("arm", "v5"),
    "ppc64el": ("ppc64le", ""),
    "loongarch64": ("loong64", ""),
}
# The default variant of an architecture.
_PLAIN_VARIANT: Final = {"arm": "v7", "arm64": "v8", "amd64": "v1"}
# Other architectures that a machine can run, best first.
_ALSO_RUNS: Final = {"amd64": ("386",), "arm64": ("arm",)}


@attrs.frozen(kw_only=True)
class Platform:
    """An operating system, an architecture and its variant, with the names of Go (``linux/arm64/v8``).

    Args:
        os: operating system. Default ``linux``.
        architecture: such as ``amd64``. Other spellings (``x86_64``) are converted to Go's.
        variant: such as ``v7``, or an empty string.
        os_version: such as ``10.0.14393.1066``, or an empty string.
        os_features: required features of the operating system.

    Source: OCI image specification, image-index.md, "platform".
    """

    os: str = "linux"
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``linux/arm64/v8``, ``linux/amd64`` or just ``arm64``.

        Raises:
            SpecError: the text is not a platform.

        Source: OCI image specification, image-index.md.
        """
        parts = text.split("/")
        if not 1 <= len(parts) <= 3 or not all(_PART.fullmatch(part) for part in parts):
            raise SpecError(f"platform {text!r} is not of the form [os/]architecture[/variant]")
        if len(parts) == 1:
            parts.insert(0, "linux")
        architecture, variant = _ALIASES.get(parts[1].lower(), (parts[1].lower(), ""))
        return cls(os=parts[0].lower(), architecture=architecture, variant=parts[2] if len(parts) == 3 else variant)

    @classmethod
    def host(cls) -> Self:
        """Return the platform of this machine.

        Source: uname(2).
        """
        return cls.parse(f"linux/{os.uname().machine}")

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def rank(self, offered: Platform) -> tuple[int, int] | None:
        """Return how well an image for ``offered`` runs here: smaller is better, None means that it does not run.

        An exact variant is best, then the nearest lower one, then another architecture that this one can run.

        Source: OCI image specification, image-index.md; GOARM and GOAMD64 of the Go project.
        """
        if offered.os != self.os:
            return None
        architectures = (self.architecture, *_ALSO_RUNS.get(self.architecture, ()))
        if offered.architecture not in architectures:
            return None
        place = architectures.index(offered.architecture)
        has = _level(offered.architecture, offered.variant)
        can = _level(self.architecture, self.variant)
        if self.architecture == "arm64" and offered.architecture == "arm":
            can = 8  # any 64-bit machine runs 32-bit code of every level
        elif place:
            can = 1
        if has > can:
            return None
        return place, can - has

    def best(self, offered: Iterable[Platform]) -> int | None:
        """Return the index of the best platform in ``offered`` (the first of equals), or None if none fits."""
        ranked = [(rank, at) for at, one in enumerate(offered) if (rank := self.rank(one)) is not None]
        return min(ranked)[1] if ranked else None


def _level(architecture: str, variant: str) -> int:
    text = variant or _PLAIN_VARIANT.get(architecture, "v1")
    found = re.match(r"v?([0-9]+)", text)
    return int(found[1]) if found else 1
