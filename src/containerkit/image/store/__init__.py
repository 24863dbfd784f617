"""The store: an OCI image layout on disk that processes share, with the unpacked layers next to it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from containerkit._linux.places import data_directory
from containerkit.archive.limits import DEFAULT_LIMITS, UnpackLimits
from containerkit.errors import ImageError, SpecError, telling_of_descriptors
from containerkit.image import media
from containerkit.image.config import ImageConfig
from containerkit.image.manifest import Index, Manifest, parse_manifest
from containerkit.image.platform import Platform
from containerkit.image.reference import Reference
from containerkit.image.store.blobs import Blobs, Ingest
from containerkit.image.store.catalog import Catalog
from containerkit.image.store.leases import Lease
from containerkit.image.store.locks import IDS, refused, replace_file
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.store.collect import Collected, Problem

__all__ = ["Blobs", "Catalog", "Ingest", "Lease", "Store", "default_root"]

_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_PRIVATE: Final = 0o700  # layers contain set-user-ID programs that nobody else may reach


def default_root() -> Path:
    """Return the store of this user: ``/var/lib/containerkit/images`` for root, else below ``$XDG_DATA_HOME``.

    ``CONTAINERKIT_IMAGES`` in the environment overrides both.

    Source: XDG base directory specification.
    """
    return Path(os.environ.get("CONTAINERKIT_IMAGES") or data_directory("images"))


class Store:
    """A directory of images.

    ``oci-layout``, ``index.json`` and ``blobs`` are an OCI image layout that other tools can read. Next to them are
    ``layers`` (unpacked, one directory for each diff id; in ``ids-...`` those whose files belong to id ranges of a
    user), ``incoming`` (unfinished blobs), ``leases`` and ``lock``.

    Args:
        root: the directory, created if it does not exist. Default: :func:`default_root`.
        limits: bounds on what a layer or archive may unpack to, whether it is pulled, loaded, imported or added in a
            build. Default: 64 GiB, 4,000,000 entries, 250 times its size.

    Raises:
        SetupError: the directory can't be created.
        ImageError: the directory contains something else, or a layout of another version.

    Source: OCI image specification, image-layout.md.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None, *, limits: UnpackLimits = DEFAULT_LIMITS) -> None:
        if not isinstance(limits, UnpackLimits):
            raise SpecError(f"limits: {limits!r} is not a containerkit.image.UnpackLimits")
        self.limits = limits
        self.root = Path(root).absolute() if root is not None else default_root()
        self.gate = self.root / "lock"
        self.blobs = Blobs(self.root / "blobs", self.root / "incoming")
        self.catalog = Catalog(self.root / "index.json", self.gate)
        self._make()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def _make(self) -> None:
        marker = self.root / "oci-layout"
        try:
            if not marker.exists():
                self.root.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
                replace_file(marker, _LAYOUT)
            for name in ("blobs/sha256", "incoming", "layers", "leases", "trash", "build"):
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
            if not (self.root / "index.json").exists():
                self.catalog.remove_unnamed()
            layout = marker.read_bytes()
        except OSError as error:
            raise refused("mkdir", self.root, error) from error
        if b'"1.0.0"' not in layout:
            raise ImageError(f"{self.root}: an image layout of a version that is not understood: {layout[:80]!r}")

    @telling_of_descriptors("lease")
    def lease(self, shared: int | None = None) -> Lease:
        """Return a new claim on blobs and layers. Close it when they are no longer needed.

        Args:
            shared: descriptor of a claim to extend, which stays when this one is closed. Default: a new claim.
        """
        return Lease(self.root / "leases", self.gate, shared)

    @telling_of_descriptors("find")
    def find(self, reference: Reference | str) -> Descriptor | None:
        """Return the descriptor of a manifest or index by its name or digest, or None."""
        if isinstance(reference, str):
            reference = Reference.parse(reference)
        return self.catalog.find(reference)

    @telling_of_descriptors("document")
    def document(self, descriptor: Descriptor) -> Manifest | Index:
        """Read a manifest or index from the store.

        Raises:
            ImageError: it does not exist or is malformed.
        """
        raw = self.blobs.read(descriptor.digest)
        return parse_manifest(raw, descriptor.media_type, f"manifest {descriptor.digest}")

    @telling_of_descriptors("manifest")
    def manifest(self, descriptor: Descriptor, platform: Platform | None = None) -> Manifest:
        """Read a manifest. If the descriptor is that of an index, choose by platform.

        Args:
            descriptor: of a manifest or index.
            platform: the platform. Default: this machine's.

        Raises:
            ImageError: it does not exist, is malformed, or none fits the platform.
        """
        for _ in range(4):  # indexes may contain indexes, but not endlessly
            document = self.document(descriptor)
            if isinstance(document, Manifest):
                return document
            descriptor = document.select(platform or Platform.host(), f"image {descriptor.digest}")
        raise ImageError(f"image {descriptor.digest}: indexes are nested too deeply")

    @telling_of_descriptors("config")
    def config(self, manifest: Manifest) -> ImageConfig:
        """Read the config of an image.

        Raises:
            ImageError: it does not exist, is malformed, or has another number of layers than the manifest.
        """
        if not manifest.is_image:
            raise ImageError(
                f"{manifest.digest} is an artifact of type {manifest.artifact_type or manifest.config.media_type}, "
                "not an image"
            )
        config = ImageConfig.parse(self.blobs.read(manifest.config.digest), f"config {manifest.config.digest}")
        if len(config.diff_ids) != len(manifest.layers):
            raise ImageError(
                f"image {manifest.digest}: its config names {len(config.diff_ids)} layers, "
                f"its manifest {len(manifest.layers)}"
            )
        return config

    @telling_of_descriptors("add_image")
    def add_image(
        self, config: ImageConfig, layers: tuple[Descriptor, ...], reference: Reference | None, lease: Lease
    ) -> Manifest:
        """Store the config and manifest of a new image whose layers are in the store, and name it.

        Args:
            config: its config.
            layers: descriptors of its layers, lowest first.
            reference: its name, or None to store it without one.
            lease: the caller's claim, which covers the layers already.

        Returns:
            The manifest.
        """
        described = self._claimed(config.raw, media.OCI_CONFIG, lease)
        manifest = Manifest(config=described, layers=layers)
        self._claimed(manifest.raw, manifest.media_type, lease)
        self.catalog.put(manifest.descriptor, reference)
        return manifest

    def _claimed(self, content: bytes, media_type: str, lease: Lease) -> Descriptor:
        from containerkit.image.manifest import Descriptor

        lease.claim([Descriptor.of(content, media_type).digest])
        return self.blobs.add(content, media_type)

    @telling_of_descriptors("collect")
    def collect(self, *, unnamed: bool = False, cache: bool = False) -> Collected:
        """Delete what no name, no lease, no unnamed image and no build step uses.

        This concerns blobs, unpacked layers, and what crashes have left behind.

        Args:
            unnamed: whether to delete the images without a name too.
            cache: whether to delete the build cache too.

        Returns:
            What was deleted.

        Source: OCI image specification, image-layout.md.
        """
        from containerkit.image.store.cache import forget_builds
        from containerkit.image.store.collect import collect

        if unnamed:
            self.catalog.remove_unnamed()
        if cache:
            forget_builds(self)
        return collect(self)

    @telling_of_descriptors("verify")
    def verify(self, *, repair: bool = False) -> tuple[Problem, ...]:
        """Read everything and compare it with its digest.

        Args:
            repair: whether to delete damaged blobs and layers, so that the next pull replaces them.

        Returns:
            The problems; empty if there are none.
        """
        from containerkit.image.store.collect import verify

        return verify(self, repair=repair)

    def layer_directory(self, diff_id: Digest) -> Path:
        """Return the directory of an unpacked layer for the ids of this user's containers. It need not exist.

        For root the ids on disk are those inside, and all containers share one directory. For a user with ranges in
        /etc/subuid the files have ids from these ranges, so they can't be used with other ranges. For a user with a
        single id all files belong to that user.

        Source: user_namespaces(7).
        """
        return self.layers / diff_id.algorithm / diff_id.encoded

    @property
    def layers(self) -> Path:
        """The directory of the unpacked layers for the ids of this user's containers."""
        key = userns_helper.key()
        return self.root / "layers" / f"{IDS}{key}" if key else self.root / "layers"
