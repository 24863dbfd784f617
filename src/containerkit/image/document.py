"""Read untrusted JSON documents. The type of each field is checked, and errors name its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import ImageError, SpecError
from containerkit.image.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LARGEST_BYTES", "Document", "encode"]

LARGEST_BYTES: Final = 4 << 20
"""The maximum size of a manifest, index or config. Registries refuse larger ones too."""


class Document:
    """A JSON object and its place in the document.

    Args:
        content: the object.
        place: its path in the document, for errors.

    Raises:
        ImageError: raised by each method if a field does not have the requested type.
    """

    __slots__ = ("content", "place")

    def __init__(self, content: object, place: str) -> None:
        if not isinstance(content, dict):
            raise ImageError(f"{place}: expected a JSON object, got {type(content).__name__}")
        self.content: dict[str, Any] = content
        self.place = place

    @classmethod
    def read(cls, raw: bytes, place: str) -> Document:
        """Parse bytes. Duplicate keys are refused, because readers could interpret them differently."""
        if len(raw) > LARGEST_BYTES:
            raise ImageError(f"{place}: {len(raw)} bytes; a document may have at most {LARGEST_BYTES}")
        try:
            return cls(json.loads(raw, object_pairs_hook=_unique), place)
        except (ValueError, RecursionError) as error:
            raise ImageError(f"{place}: not a JSON document ({error})") from error

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string. It must exist if there is no default."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise ImageError(f"{self.place}.{key}: expected a string, got {_kind(value)}")
        return value

    def integer(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """Return an integer of at least ``least``."""
        value = self.content.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 63:
            raise ImageError(f"{self.place}.{key}: expected an integer of at least {least}, got {value!r:.40}")
        return value

    def digest(self, key: str) -> Digest:
        """Return a digest."""
        return self.as_digest(self.text(key), key)

    def digests(self, key: str) -> tuple[Digest, ...]:
        """Return a list of digests, empty if it is missing."""
        return tuple(self.as_digest(text, key) for text in self.texts(key))

    def as_digest(self, text: str, key: str) -> Digest:
        """Convert a string to a digest."""
        try:
            return Digest(text)
        except SpecError as error:
            raise ImageError(f"{self.place}.{key}: {error}") from error

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of strings, empty if it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ImageError(f"{self.place}.{key}: expected a list of strings, got {_kind(value)}")
        return tuple(value)

    def table(self, key: str) -> dict[str, str]:
        """Return a table of strings, empty if it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise ImageError(f"{self.place}.{key}: expected a table of strings, got {_kind(value)}")
        return value

    def keys(self, key: str) -> tuple[str, ...]:
        """Return the keys of a table that represents a set (``{"80/tcp": {}}``). Some writers use a list."""
        value = self.content.get(key)
        if value is None:
            return ()
        if isinstance(value, list):
            return self.texts(key)
        return tuple(Document(value, f"{self.place}.{key}").content)

    def child(self, key: str) -> Document | None:
        """Return an object, or None if it is missing or null."""
        value = self.content.get(key)
        return None if value is None else Document(value, f"{self.place}.{key}")

    def required(self, key: str) -> Document:
        """Return an object that must exist."""
        return Document(self.content.get(key), f"{self.place}.{key}")

    def children(self, key: str) -> Iterator[Document]:
        """Return a list of objects, empty if it is missing or null."""
        value = self.content.get(key)
        if value is None:
            return
        if not isinstance(value, list):
            raise ImageError(f"{self.place}.{key}: expected a list, got {_kind(value)}")
        for number, item in enumerate(value):
            yield Document(item, f"{self.place}.{key}[{number}]")


def encode(content: object) -> bytes:
    """Return the canonical encoding of a document: no spaces, keys in the given order."""
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return found
