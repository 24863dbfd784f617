"""Sources of images: registries, the store, archives, directories, layers and builds."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, overload

import attrs

from containerkit.archive.compression import Plain
from containerkit.archive.stream import copy_archive
from containerkit.archive.tarwrite import Writing, source_date_epoch
from containerkit.errors import ImageError, SpecError, telling_of_descriptors
from containerkit.image.config import Defaults, History, ImageConfig, timestamp
from containerkit.image.diff import layer_from_directory
from containerkit.image.layers.blob import LayerWriter
from containerkit.image.manifest import Descriptor, Index, Manifest
from containerkit.image.platform import Platform
from containerkit.image.progress import silent
from containerkit.image.reference import Reference
from containerkit.image.store import Store
from containerkit.meanings import explained

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Unpack

    from containerkit.image.build import Build
    from containerkit.image.digest import Digest
    from containerkit.image.options import (
        AnyBuildOptions,
        BuildOptions,
        Compression,
        DockerfileOptions,
        Pull,
        PullOptions,
    )
    from containerkit.image.progress import Progress
    from containerkit.image.registry import Credentials, RegistrySettings
    from containerkit.image.store import Lease

__all__ = ["Sources", "as_reference", "opened"]


@attrs.frozen(kw_only=True, repr=False)
class Sources:
    """An image in a store, and the methods that make one. :class:`containerkit.Image` adds the operations on it.

    Attributes:
        store: the store that contains it.
        manifest: its manifest.
        reference: the name by which it was requested, or None.
    """

    store: Store
    manifest: Manifest
    reference: Reference | None = None

    @classmethod
    @telling_of_descriptors("pull")
    def pull(
        cls,
        reference: str | Reference,
        *,
        platform: str | Platform | None = None,
        all_platforms: bool = False,
        store: Store | None = None,
        unpack: bool = True,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Pull an image from its registry, or from a mirror of it, in its present state.

        Args:
            reference: the image, such as ``alpine:3.20``.
            platform: the platform, such as ``linux/arm64``. Default: this machine's.
            all_platforms: whether to pull the images of all platforms, for a later push.
            store: the destination. Default: the user's store.
            unpack: whether to unpack its layers as well. Default True.
            settings: how to reach registries. Default: those of the machine and user.
            credentials: the credentials. Default: those that other container tools have stored.
            progress: called with each step.

        Raises:
            SpecError: the reference or platform is invalid.
            ImageError: the image does not exist, is not permitted, is malformed, or does not match its digests.
            SetupError: the disk is full.
            UnsupportedError: urllib3 is not installed.

        Source: OCI distribution specification, "Pull".
        """
        from containerkit.image.registry import pull

        reference, store = as_reference(reference), store or Store()
        manifest = pull(
            reference, store, platform=_platform(platform), all_platforms=all_platforms, unpack=unpack,
            settings=settings, credentials=credentials, progress=progress,
        )  # fmt: skip
        return cls(store=store, manifest=manifest, reference=reference)

    @classmethod
    @telling_of_descriptors("open")
    def open(
        cls, reference: str | Reference, *, platform: str | Platform | None = None, store: Store | None = None
    ) -> Self:
        """Return an image from the store.

        Args:
            reference: its name, or name and digest.
            platform: the platform within an index. Default: this machine's.
            store: the store. Default: the user's.

        Raises:
            ImageError: it is not in the store.
        """
        reference, store = as_reference(reference), store or Store()
        entry = store.find(reference)
        if entry is None:
            raise ImageError(f"image {reference.familiar} is not in the store (hint: pull it)")
        manifest = store.manifest(entry, _platform(platform))
        wanted = _platform(platform)
        if wanted is not None and wanted.rank(store.config(manifest).platform) is None:
            there = store.config(manifest).platform
            raise ImageError(f"image {reference.familiar} in the store is for {there}, not {wanted} (hint: pull it)")
        return cls(store=store, manifest=manifest, reference=reference)

    @classmethod
    @explained
    def get(cls, reference: str | Reference, *, pull: Pull = "missing", **options: Unpack[PullOptions]) -> Self:
        """Return an image from the store. Pull it if necessary.

        Args:
            reference: the image.
            pull: ``missing`` (only if it is not in the store), ``always`` or ``never``.
            options: see :class:`containerkit.image.options.PullOptions`.

        Raises:
            SpecError: ``pull`` is invalid.
            ImageError: as for :meth:`pull` and :meth:`open`.
        """
        if pull not in ("missing", "always", "never"):
            raise SpecError(f"pull must be 'missing', 'always' or 'never', not {pull!r}")
        if pull != "always":
            try:
                return cls.open(reference, platform=options.get("platform"), store=options.get("store"))
            except ImageError:
                if pull == "never":
                    raise
        return cls.pull(reference, **options)

    @classmethod
    @telling_of_descriptors("list")
    def list(cls, store: Store | None = None) -> list[Self]:
        """Return the images of a store, sorted by name. Images for other platforms are left out."""
        store = store or Store()
        found: list[Self] = []
        for entry in sorted(store.catalog.entries(), key=lambda entry: entry.ref_name):
            document = store.document(entry)
            if isinstance(document, Index):
                try:
                    document = store.manifest(entry)
                except ImageError:
                    continue
            reference = Reference.parse(entry.ref_name) if entry.ref_name else None
            found.append(cls(store=store, manifest=document, reference=reference))
        return found

    @classmethod
    @telling_of_descriptors("load")
    def load(cls, path: str | os.PathLike[str], *, store: Store | None = None) -> Sequence[Self]:
        """Read the images of a docker-archive, an oci-archive or an image layout, and keep their names.

        Args:
            path: the file or directory.
            store: the destination. Default: the user's store.

        Raises:
            ImageError: the format is unknown, or the file is malformed.

        Source: OCI image specification, image-layout.md; Docker image specification 1.2.
        """
        from containerkit.image.archive import load

        store = store or Store()
        found: list[Self] = []
        with store.lease() as lease:
            for document, name in load(store, path, lease):
                reference = _archived_name(name)
                store.catalog.put(document.descriptor, reference)
                manifest = document if isinstance(document, Manifest) else store.manifest(document.descriptor)
                found.append(cls(store=store, manifest=manifest, reference=reference))
        return found

    @classmethod
    @telling_of_descriptors("import_tar")
    def import_tar(
        cls,
        path: str | os.PathLike[str],
        reference: str | Reference | None = None,
        *,
        defaults: Defaults | None = None,
        platform: str | Platform | None = None,
        store: Store | None = None,
        comment: str = "",
    ) -> Self:
        """Make an image with one layer from a tar archive of a root.

        Args:
            path: the archive, compressed or not.
            reference: the image's name, or None.
            defaults: the defaults of containers made from it.
            platform: the platform on which it runs. Default: this machine's.
            store: the destination. Default: the user's store.
            comment: a comment for the history.

        Raises:
            ImageError: the file does not exist, is not an archive, is damaged or cut off, or exceeds the limits of the
                store when unpacked.

        Source: OCI image specification, layer.md.
        """
        store = store or Store()
        try:
            with Path(path).open("rb") as file, store.lease() as lease, LayerWriter(store, lease) as writer:
                with Plain(file, f"{path}", limits=store.limits) as stream:
                    copy_archive(stream, writer, store.limits)
                layer = writer.commit()
                history = History(created_by="import", comment=comment or f"Imported from {Path(path).name}")
                return cls.from_layers(
                    [layer], store, lease, reference, [history], defaults or Defaults(), _platform(platform)
                )
        except FileNotFoundError as error:
            raise ImageError(f"{path}: it does not exist") from error

    @classmethod
    @telling_of_descriptors("from_directory")
    def from_directory(
        cls,
        directory: str | os.PathLike[str] | int,
        reference: str | Reference | None = None,
        *,
        defaults: Defaults | None = None,
        store: Store | None = None,
        writing: Writing | None = None,
        compression: Compression = "gzip",
        created_by: str = "from directory",
    ) -> Self:
        """Make an image with one layer from a directory.

        Args:
            directory: its path or a descriptor.
            reference: the image's name, or None.
            defaults: the defaults of containers made from it.
            store: the destination. Default: the user's store.
            writing: how the layer is written. Default: no times later than ``SOURCE_DATE_EPOCH``.
            compression: ``gzip``, ``zstd`` or ``none``.
            created_by: the command for the history.
        """
        store = store or Store()
        how = writing or Writing(epoch=source_date_epoch())
        with store.lease() as lease, opened(directory) as descriptor:
            layer = layer_from_directory(store, descriptor, lease, how, compression=compression, root=True)
            layers = [] if layer is None else [layer]
            history = [History(created_by=created_by)]
            return cls.from_layers(layers, store, lease, reference, history, defaults or Defaults(), None, how.epoch)

    @classmethod
    def from_layers(
        cls,
        layers: Sequence[tuple[Descriptor, Digest]],
        store: Store,
        lease: Lease,
        reference: str | Reference | None,
        history: Sequence[History],
        defaults: Defaults,
        platform: Platform | None,
        epoch: int | None = None,
    ) -> Self:
        """Make an image from layers in the store.

        Args:
            layers: their blobs and diff ids, lowest first.
            store: the store that contains them.
            lease: a claim that covers them.
            reference: the image's name, or None.
            history: its history.
            defaults: the defaults of containers made from it.
            platform: the platform on which it runs. Default: this machine's.
            epoch: the latest time of the image, in seconds. Default: ``SOURCE_DATE_EPOCH``.
        """
        created = timestamp(epoch if epoch is not None else source_date_epoch())
        config = ImageConfig(
            platform=platform or Platform.host(),
            defaults=defaults,
            diff_ids=tuple(diff_id for _, diff_id in layers),
            history=tuple(attrs.evolve(entry, created=created) for entry in history),
            created=created,
        )
        name = None if reference is None else as_reference(reference)
        manifest = store.add_image(config, tuple(blob for blob, _ in layers), name, lease)
        return cls(store=store, manifest=manifest, reference=name)

    @overload
    @classmethod
    def build(
        cls, what: Build, /, *, context: str | os.PathLike[str] | None = None, **options: Unpack[BuildOptions]
    ) -> Self: ...

    @overload
    @classmethod
    def build(cls, what: str | os.PathLike[str] = ".", /, **options: Unpack[DockerfileOptions]) -> Self: ...

    @classmethod
    @explained
    @telling_of_descriptors("build")
    def build(cls, what: str | os.PathLike[str] | Build = ".", /, **options: Unpack[AnyBuildOptions]) -> Self:
        """Build an image from a Dockerfile or a :class:`containerkit.image.build.Build`.

        Args:
            what: the directory that contains the Dockerfile and is the context, or a build made in Python.
            options: see :class:`containerkit.image.options.AnyBuildOptions`.

        ``dockerfile`` and ``text`` can only be used with Dockerfiles.

        Raises:
            SpecError: the Dockerfile is malformed.
            ExitError: a command failed.
            ImageError: a base image is not available.
        """
        from containerkit.image.build import Build, build_dockerfile

        given: dict[str, Any] = {**options}
        made = what.build(**given) if isinstance(what, Build) else build_dockerfile(what, **given)
        return cls(store=made.store, manifest=made.manifest, reference=made.reference)


@contextmanager
def opened(directory: str | os.PathLike[str] | int) -> Iterator[int]:
    """Yield a descriptor of a directory, which is given as a path or as a descriptor."""
    if isinstance(directory, int):
        yield directory
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def as_reference(reference: str | Reference) -> Reference:
    """Return a reference, which can be given as text.

    Raises:
        SpecError: the text is not a reference.
    """
    return reference if isinstance(reference, Reference) else Reference.parse(reference)


def _platform(platform: str | Platform | None) -> Platform | None:
    return Platform.parse(platform) if isinstance(platform, str) else platform


def _archived_name(name: str) -> Reference | None:
    """Parse a name from an archive. A bare tag, as some tools write it, is not usable as a name."""
    if not name:
        return None
    try:
        return Reference.parse(name).without_digest()
    except SpecError:
        return None
