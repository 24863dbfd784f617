"""Content digests, which are the names of blobs."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, BinaryIO, Final

from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    from hashlib import _Hash
    from typing import Self

__all__ = ["Digest"]

_LENGTHS: Final = {"sha256": 64, "sha384": 96, "sha512": 128}
_GRAMMAR: Final = re.compile(r"(sha256|sha384|sha512):([0-9a-f]+)")
_PIECE: Final = 1 << 20


class Digest(str):
    """A digest such as ``sha256:e3b0...``: a string that is known to be well-formed, so it can be used as a file name.

    Args:
        text: ``ALGORITHM:HEX`` with sha256, sha384 or sha512 and lower-case hexadecimal digits of the right number.

    Raises:
        SpecError: the text is not a digest.

    Source: OCI image specification, descriptor.md, "Digests".
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check the text and store it."""
        found = _GRAMMAR.fullmatch(text)
        if found is None or len(found[2]) != _LENGTHS[found[1]]:
            raise SpecError(f"digest {text!r} is not of the form sha256:<64 hexadecimal digits> (or sha384, sha512)")
        return super().__new__(cls, text)

    @classmethod
    def of(cls, content: bytes, algorithm: str = "sha256") -> Self:
        """Return the digest of some bytes.

        Source: OCI image specification, descriptor.md.
        """
        return cls(f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()}")

    @classmethod
    def of_file(cls, file: BinaryIO, algorithm: str = "sha256") -> Self:
        """Return the digest of the rest of an open file.

        Source: OCI image specification, descriptor.md.
        """
        state = hashlib.new(algorithm)
        while piece := file.read(_PIECE):
            state.update(piece)
        return cls(f"{algorithm}:{state.hexdigest()}")

    @property
    def algorithm(self) -> str:
        """The name of the hash function."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The hexadecimal digits."""
        return self.partition(":")[2]

    @property
    def short(self) -> str:
        """The first twelve digits, for messages."""
        return self.encoded[:12]

    def hasher(self) -> _Hash:
        """Return a fresh hash object of this algorithm."""
        return hashlib.new(self.algorithm)

    def check(self, state: _Hash, subject: str) -> None:
        """Compare it with a finished hash.

        Raises:
            ImageError: they differ.
        """
        if state.hexdigest() != self.encoded:
            raise ImageError(f"{subject}: expected digest {self}, got {self.algorithm}:{state.hexdigest()}")
