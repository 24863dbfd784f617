"""The names of images, in ``index.json`` of the layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import ImageError
from containerkit.image.document import Document, encode
from containerkit.image.manifest import REF_NAME, Descriptor, Index
from containerkit.image.store.locks import locked, replace_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from containerkit.image.digest import Digest
    from containerkit.image.reference import Reference

__all__ = ["INDEX", "Catalog"]

INDEX: Final = "io.containerkit.image.index"
"""The annotation for the index from which an image was chosen."""


class Catalog:
    """The manifest or index for each name, and those that are stored without a name.

    Args:
        path: ``index.json``.
        gate: the store's lock.

    Source: OCI image specification, image-layout.md, "index.json file".
    """

    def __init__(self, path: Path, gate: Path) -> None:
        self._path = path
        self._gate = gate

    def entries(self) -> tuple[Descriptor, ...]:
        """Return all entries, in the order in which they were added.

        Raises:
            ImageError: the file is malformed.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        place = str(self._path)
        return Index.from_document(Document.read(raw, place), "", raw).manifests

    def names(self) -> dict[str, Descriptor]:
        """Return the entries that have names."""
        return {entry.ref_name: entry for entry in self.entries() if entry.ref_name}

    def find(self, reference: Reference) -> Descriptor | None:
        """Return the entry for a reference, by its digest if it has one, otherwise by its name."""
        if reference.digest is None:
            return self.names().get(str(reference))
        for entry in self.entries():
            if reference.digest in (entry.digest, entry.annotations.get(INDEX)):
                return entry
        return None

    def put(self, descriptor: Descriptor, reference: Reference | None, *, index: Digest | None = None) -> None:
        """Give a manifest or index a name, which is removed from its former entry; or store it without a name.

        Args:
            descriptor: the manifest or index.
            reference: its name, or None.
            index: the index from which it was chosen. It is kept, and can be found by its digest.
        """
        name = str(reference) if reference is not None else ""
        annotations = {REF_NAME: name} if name else {}
        if index is not None and index != descriptor.digest:
            annotations[INDEX] = str(index)
        plain = attrs.evolve(descriptor, annotations=annotations)

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            kept = [
                entry
                for entry in entries
                if (entry.ref_name != name if name else entry.ref_name or entry.digest != descriptor.digest)
                and not (name and not entry.ref_name and entry.digest == descriptor.digest)
            ]
            return [*kept, plain]

        self._update(change)

    def remove(self, reference: Reference) -> Descriptor:
        """Remove a name and return its descriptor. With a digest, remove all names of it.

        Raises:
            ImageError: the name does not exist.
        """
        removed: list[Descriptor] = []

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            for entry in entries:
                same = reference.digest in (entry.digest, entry.annotations.get(INDEX))
                hit = same if reference.digest else entry.ref_name == str(reference)
                if hit:
                    removed.append(entry)
            if not removed:
                raise ImageError(f"image {reference.familiar} is not in the store")
            return [entry for entry in entries if entry not in removed]

        self._update(change)
        return removed[0]

    def remove_unnamed(self) -> tuple[Digest, ...]:
        """Remove the entries without a name, and return their digests."""
        removed: list[Digest] = []

        def change(entries: list[Descriptor]) -> list[Descriptor]:
            removed.extend(entry.digest for entry in entries if not entry.ref_name)
            return [entry for entry in entries if entry.ref_name]

        self._update(change)
        return tuple(removed)

    def _update(self, change: Callable[[list[Descriptor]], list[Descriptor]]) -> None:
        with locked(self._gate, exclusive=True):
            before = list(self.entries())
            after = change(before)
            if after != before or not self._path.exists():
                content = {"schemaVersion": 2, "manifests": [entry.to_json() for entry in after]}
                replace_file(self._path, encode(content))
