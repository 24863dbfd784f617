"""Images: the object that people hold."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from containerkit import deputy
from containerkit.errors import ImageError, SpecError
from containerkit.image.config import Defaults, History, ImageConfig, timestamp
from containerkit.image.diff import compare_images, layer_from_folder
from containerkit.image.layers.blob import LayerWriter
from containerkit.image.layers.compression import decompress
from containerkit.image.layers.extract import Extraction
from containerkit.image.layers.merge import merge_layers
from containerkit.image.layers.tarwrite import TreeWriter, Writing, source_date_epoch
from containerkit.image.layers.unpack import extract_blob, layer_paths, unpack_layers
from containerkit.image.manifest import Descriptor, Index, Manifest
from containerkit.image.platform import Platform
from containerkit.image.progress import silent
from containerkit.image.reference import Reference
from containerkit.image.standing import process_lease, ready
from containerkit.image.store import Store
from containerkit.image.store.locks import workspace

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from containerkit.changes import Change
    from containerkit.container import Container
    from containerkit.image.build import Build
    from containerkit.image.digest import Digest
    from containerkit.image.health import Health
    from containerkit.image.progress import Progress
    from containerkit.image.registry import Credentials, RegistrySettings
    from containerkit.image.store import Lease
    from containerkit.result import CompletedProcess
    from containerkit.rootfs import RootFS

__all__ = ["Image"]


@attrs.frozen(kw_only=True, repr=False)
class Image:
    """An image in a store. Made by :meth:`pull`, :meth:`open`, :meth:`load` and their like.

    Attributes:
        store: where it is.
        manifest: what it is made of.
        reference: the name that it was asked for by, or None.
    """

    store: Store
    manifest: Manifest
    reference: Reference | None = None

    def __repr__(self) -> str:
        return f"<Image {self.reference.familiar if self.reference else 'without a name'} {self.digest.short}>"

    # --- Where images come from

    @classmethod
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
    ) -> Image:
        """Fetch an image from its registry, or from a mirror of it, as it is there now.

        Args:
            reference: which image, such as ``alpine:3.20``.
            platform: what it shall run on, such as ``linux/arm64``. Default: this machine.
            all_platforms: fetch the images of all platforms, to push them on.
            store: where to. Default: the user's store.
            unpack: unpack its layers as well.
            settings: how to reach registries. Default: those of the machine and user.
            credentials: who asks. Default: what other container tools know.
            progress: called with each step.

        Raises:
            SpecError: no reference or platform.
            ImageError: it is not there, not permitted, malformed, or not what its digests say.
            SetupError: the disk is full.
            UnsupportedError: urllib3 is not installed.

        Source: OCI distribution specification, "Pull".
        """
        from containerkit.image.registry import pull

        reference, store = _reference(reference), store or Store()
        manifest = pull(
            reference, store, platform=_platform(platform), all_platforms=all_platforms, unpack=unpack,
            settings=settings, credentials=credentials, progress=progress,
        )  # fmt: skip
        return cls(store=store, manifest=manifest, reference=reference)

    @classmethod
    def open(
        cls, reference: str | Reference, *, platform: str | Platform | None = None, store: Store | None = None
    ) -> Image:
        """Return an image that is in the store.

        Args:
            reference: its name, or name and digest.
            platform: which image of an index. Default: this machine's.
            store: where. Default: the user's store.

        Raises:
            ImageError: it is not there.
        """
        reference, store = _reference(reference), store or Store()
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
    def get(cls, reference: str | Reference, *, pull: str = "missing", **options: Any) -> Image:
        """Return an image from the store, pulling it when that is called for.

        Args:
            reference: which image.
            pull: ``missing`` (only when it is not in the store), ``always`` or ``never``.
            options: as for :meth:`pull`.

        Raises:
            SpecError: another word for ``pull``.
            ImageError: as for :meth:`pull` and :meth:`open`.
        """
        if pull not in ("missing", "always", "never"):
            raise SpecError(f"pull must be 'missing', 'always' or 'never', not {pull!r}")
        local = {key: value for key, value in options.items() if key in ("platform", "store")}
        if pull != "always":
            try:
                return cls.open(reference, **local)
            except ImageError:
                if pull == "never":
                    raise
        return cls.pull(reference, **options)

    @classmethod
    def list(cls, store: Store | None = None) -> list[Image]:
        """Return the images of a store, in the order of their names; what is not for this machine is left out."""
        store = store or Store()
        found: list[Image] = []
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
    def load(cls, path: str | os.PathLike[str], *, store: Store | None = None) -> Sequence[Image]:
        """Read the images of a docker-archive, an oci-archive or an image layout, under the names they have there.

        Args:
            path: the file or folder.
            store: where to. Default: the user's store.

        Raises:
            ImageError: it is none of these, or malformed.

        Source: OCI image specification, image-layout.md; Docker image specification 1.2.
        """
        from containerkit.image.archive import load

        store = store or Store()
        found: list[Image] = []
        with store.lease() as lease:
            for document, name in load(store, path, lease):
                reference = _archived_name(name)
                store.catalog.put(document.descriptor, reference)
                manifest = document if isinstance(document, Manifest) else store.manifest(document.descriptor)
                found.append(cls(store=store, manifest=manifest, reference=reference))
        return found

    @classmethod
    def import_tar(
        cls,
        path: str | os.PathLike[str],
        reference: str | Reference | None = None,
        *,
        defaults: Defaults | None = None,
        platform: str | Platform | None = None,
        store: Store | None = None,
        comment: str = "",
    ) -> Image:
        """Make an image of one layer out of a tar archive of a root.

        Args:
            path: the archive, compressed or not.
            reference: the image's name, or None.
            defaults: what a container made from it has.
            platform: what it runs on. Default: this machine.
            store: where to. Default: the user's store.
            comment: goes into the history.

        Raises:
            ImageError: the file is not there.

        Source: OCI image specification, layer.md.
        """
        store = store or Store()
        from contextlib import closing

        try:
            with Path(path).open("rb") as file, store.lease() as lease, LayerWriter(store, lease) as writer:
                with closing(decompress(file)) as stream:
                    while piece := stream.read(1 << 20):
                        writer.write(piece)
                layer = writer.commit()
                history = History(created_by="import", comment=comment or f"Imported from {Path(path).name}")
                return cls.from_layers(
                    [layer], store, lease, reference, [history], defaults or Defaults(), _platform(platform)
                )
        except FileNotFoundError as error:
            raise ImageError(f"{path}: it is not there") from error

    @classmethod
    def from_folder(
        cls,
        folder: str | os.PathLike[str] | int,
        reference: str | Reference | None = None,
        *,
        defaults: Defaults | None = None,
        store: Store | None = None,
        writing: Writing | None = None,
        compression: str = "gzip",
        created_by: str = "from folder",
    ) -> Image:
        """Make an image of one layer out of a folder.

        Args:
            folder: its path or a descriptor.
            reference: the image's name, or None.
            defaults: what a container made from it has.
            store: where to. Default: the user's store.
            writing: how the layer is written. Default: times no younger than ``SOURCE_DATE_EPOCH``.
            compression: ``gzip``, ``zstd`` or ``none``.
            created_by: goes into the history.
        """
        store = store or Store()
        how = writing or Writing(epoch=source_date_epoch())
        with store.lease() as lease, _folder(folder) as descriptor:
            layer = layer_from_folder(store, descriptor, lease, how, compression=compression, root=True)
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
    ) -> Image:
        """Make an image of layers that are in the store.

        Args:
            layers: their blobs and diff ids, lowest first.
            store: where they are.
            lease: a claim that covers them.
            reference: the image's name, or None.
            history: how it came about.
            defaults: what a container made from it has.
            platform: what it runs on. Default: this machine.
            epoch: seconds that its time may not be younger than. Default: ``SOURCE_DATE_EPOCH``.
        """
        created = timestamp(epoch if epoch is not None else source_date_epoch())
        config = ImageConfig(
            platform=platform or Platform.host(),
            defaults=defaults,
            diff_ids=tuple(diff_id for _, diff_id in layers),
            history=tuple(attrs.evolve(entry, created=created) for entry in history),
            created=created,
        )
        name = None if reference is None else _reference(reference)
        manifest = store.add_image(config, tuple(blob for blob, _ in layers), name, lease)
        return cls(store=store, manifest=manifest, reference=name)

    @classmethod
    def build(cls, what: str | os.PathLike[str] | Build = ".", /, **options: Any) -> Image:
        """Build an image from a Dockerfile or a :class:`containerkit.image.build.Build`.

        Args:
            what: the folder that the Dockerfile lies in and copies from, or a build made in Python.
            options: as for :func:`containerkit.image.build.build_dockerfile` or :meth:`Build.build`.

        Raises:
            SpecError: the Dockerfile is malformed.
            ExitError: a command of it fails.
            ImageError: a base image can't be had.
        """
        from containerkit.image.build import Build, build_dockerfile

        return what.build(**options) if isinstance(what, Build) else build_dockerfile(what, **options)

    # --- What it is

    @property
    def digest(self) -> Digest:
        """The digest of its manifest."""
        return self.manifest.digest

    @property
    def id(self) -> Digest:
        """The digest of its config, which other tools show as the image's id."""
        return self.manifest.config.digest

    @property
    def config(self) -> ImageConfig:
        """Its config.

        Raises:
            ImageError: it is malformed, or not that of an image.
        """
        return self.store.config(self.manifest)

    @property
    def defaults(self) -> Defaults:
        """What a container made from it has unless its maker says otherwise."""
        return self.config.defaults

    @property
    def size_bytes(self) -> int:
        """The size of its blobs."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)

    def history(self) -> tuple[History, ...]:
        """Return how it came about, oldest first."""
        return self.config.history

    def diff(self, other: Image) -> Sequence[Change]:
        """Return what ``other`` adds, changes and deletes, in the order of the paths.

        Raises:
            SpecError: the images are in different stores.
        """
        if other.store.root != self.store.root:
            raise SpecError("two images are compared in one store")
        return compare_images(self.store, self.manifest, other.manifest)

    # --- Names

    def tag(self, reference: str | Reference) -> Image:
        """Give it another name, taking it from what had it.

        Returns:
            The same image under that name.

        Raises:
            SpecError: no reference, or one with a digest.
        """
        name = _reference(reference)
        if name.digest is not None:
            raise SpecError(f"{name}: a name to give can't have a digest")
        self.store.catalog.put(self.manifest.descriptor, name)
        return attrs.evolve(self, reference=name)

    def remove(self) -> None:
        """Take its name away (without one: forget it). Its blobs go with the next :meth:`Store.collect`.

        Raises:
            ImageError: it is gone already.
        """
        name = self.reference or Reference(registry="localhost", repository="none", digest=self.digest)
        self.store.catalog.remove(name)

    def push(
        self,
        reference: str | Reference | None = None,
        *,
        all_platforms: bool = False,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        progress: Progress = silent,
    ) -> Digest:
        """Send it to a registry.

        Args:
            reference: where to. Default: its own name.
            all_platforms: send the index that it is part of, when the store has all of that.
            settings: how to reach registries. Default: those of the machine and user.
            credentials: who asks. Default: what other container tools know.
            progress: called with each step.

        Returns:
            The digest that was pushed.

        Raises:
            SpecError: there is no name.
            ImageError: no permission, no answer, or something is missing in the store.

        Source: OCI distribution specification, "Push".
        """
        from containerkit.image.registry import push

        target = reference if reference is not None else self.reference
        if target is None:
            raise SpecError("push: the image has no name; say where to")
        descriptor = self.manifest.descriptor
        if all_platforms and self.reference is not None:
            descriptor = self.store.find(self.reference) or descriptor
        return push(
            descriptor, _reference(target), self.store, settings=settings, credentials=credentials, progress=progress
        )

    # --- What can be made of it

    def save(self, path: str | os.PathLike[str], *, form: str = "oci-archive") -> None:
        """Write it into a file.

        Args:
            path: the file.
            form: ``oci-archive`` or ``docker-archive``.

        Raises:
            SpecError: another form.
            ImageError: it is not whole in the store.

        Source: OCI image specification, image-layout.md; Docker image specification 1.2.
        """
        from containerkit.image.archive import save

        save(self.store, [(self.manifest.descriptor, str(self.reference or ""))], path, form=form)

    def unpack(self, lease: Lease | None = None) -> tuple[str, ...]:
        """Unpack its layers, those that are not unpacked yet.

        Args:
            lease: a claim that will cover them. Default: one that holds as long as this process.

        Returns:
            Their folders, topmost first, as overlayfs wants them. They are shared: nothing may write to them.

        Raises:
            ImageError: a layer is missing or malformed.
            SetupError: the disk is full.
        """
        config = self.config
        lease = lease or process_lease(self.store)
        lease.claim([self.digest, self.manifest.config.digest, *(layer.digest for layer in self.manifest.layers)])
        layers = list(zip(self.manifest.layers, config.diff_ids, strict=True))
        return layer_paths(unpack_layers(self.store, layers, lease))

    def rootfs(self, *, volumes: bool = True, **options: Any) -> RootFS:
        """Return a root for containers: its layers below a writable one.

        Commands in them have the environment, working directory and user that its config says, unless they are given
        others. Several layers are merged into one folder when this is first asked for, so that each later start costs
        the same however many there are.

        Args:
            volumes: give each container its own of what the config says are volumes: in memory, beginning with what
                the image has there, gone with the container, and no part of its changes (default True). Where
                something is mounted on or above one, there is none.
            options: as for :meth:`containerkit.RootFS.overlay`: ``upper``, ``work``, ``size``, ``idmap``, ``union``.

        Raises:
            ImageError: a layer is missing or malformed.
            SpecError: the config names a stop signal that is none.
        """
        from containerkit.image.volumes import find_volumes
        from containerkit.rootfs import RootFS

        def prepare(lease: Lease) -> tuple[str, ...]:
            return merge_layers(self.store, self.unpack(lease), self.config.chain_ids[-1], lease)

        folders, defaults = ready(self.store, self.digest, prepare), self.defaults
        return attrs.evolve(
            RootFS.overlay(*folders, **options),
            defaults=defaults.pairs,
            volumes=find_volumes(folders, defaults.volumes) if volumes else (),
            stop_signal=defaults.stop_number,
        )

    def healthcheck(self, container: Container) -> Health:
        """Return what finds out whether a container that was made from it works, as its config says how.

        Args:
            container: a running one.

        Raises:
            SpecError: the config says nothing about that.
        """
        from containerkit.image.health import Health

        return Health(container, self.defaults)

    def run(
        self,
        command: Sequence[str] | None = None,
        *,
        container: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        **more: Any,
    ) -> CompletedProcess:
        """Run the image's program in a container of its own, with its environment, user and working directory.

        Args:
            command: what follows the entrypoint. Default: the image's own command.
            container: arguments of :class:`containerkit.Container`, such as ``limits``.
            env: what is added to the image's environment.
            more: arguments of :meth:`containerkit.Container.run`; they win over what the image says.

        Raises:
            SpecError: the image has neither an entrypoint nor a command.
            ImageError: a layer is missing or malformed.
            ExitError, ContainerTimeout: as for :meth:`containerkit.Container.run`.

        Source: OCI image specification, config.md.
        """
        from containerkit.container import Container

        defaults = self.defaults
        argv = defaults.argv(command)
        if not argv:
            raise SpecError(f"{self!r} says nothing about what to run; pass a command")
        fields = {"rootfs": self.rootfs(), **(container or {})}
        fields["rootfs"] = attrs.evolve(fields["rootfs"], defaults=defaults.pairs)
        if env:
            more["env"] = {**defaults.options()["env"], **env}
        with Container(**fields) as running:
            return running.run(argv, **more)

    def unpack_into(self, folder: str | os.PathLike[str] | int) -> None:
        """Write its whole root into one folder, one layer over the other.

        For an ordinary user the files are the user's own, and their owners are noted in an attribute.

        Args:
            folder: an empty folder, by path or descriptor.

        Raises:
            SpecError: the folder is not empty.
            ImageError: a layer is missing or malformed; what was written by then stays.

        Source: OCI image specification, layer.md, "Applying Changesets".
        """
        how = Extraction.for_user(whiteouts="apply")
        with _folder(folder) as root:
            if os.listdir(root):
                raise SpecError(f"{folder}: an image is unpacked into an empty folder only")
            for layer, diff_id in zip(self.manifest.layers, self.config.diff_ids, strict=True):
                with self.store.blobs.open(layer.digest) as file:
                    extract_blob(file, root, diff_id, how)

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write its whole root into one tar archive.

        Args:
            path: the file.

        Raises:
            ImageError: a layer is missing or malformed.
        """
        deputy.call(_export, self, Path(path).absolute())

    def squash(self, reference: str | Reference | None = None, *, compression: str = "gzip") -> Image:
        """Return an image with the same root and defaults, in one layer.

        Args:
            reference: its name, or None.
            compression: ``gzip``, ``zstd`` or ``none``.
        """
        squashed: Image = deputy.call(_squash, self, reference, compression)
        return squashed

    def flatten(self, path: str | os.PathLike[str], *, form: str = "erofs") -> None:
        """Write its root as one read-only filesystem image, to mount or to ship.

        Args:
            path: the file.
            form: ``erofs`` or ``squashfs``.

        Raises:
            SpecError: another form.
            UnsupportedError: the program that makes it is not installed.
        """
        deputy.call(_flatten, self, Path(path).absolute(), form)


@contextmanager
def _whole(image: Image) -> Iterator[int]:
    """Lend the whole root of an image as a folder of its own, which is gone afterwards."""
    with workspace(image.store.root / "build") as parent:
        (parent / "root").mkdir()
        with _folder(parent / "root") as root:
            os.fchmod(root, 0o755)
            image.unpack_into(root)
            yield root


def _export(image: Image, path: Path) -> None:
    with _whole(image) as root, path.open("wb") as file:
        writer = TreeWriter(file, Writing(epoch=source_date_epoch()))
        writer.add_tree(root)
        writer.close()


def _squash(image: Image, reference: str | Reference | None, compression: str) -> Image:
    config, writing = image.config, Writing(epoch=source_date_epoch())
    with _whole(image) as root, image.store.lease() as lease:
        layer = layer_from_folder(image.store, root, lease, writing, compression=compression, root=True)
        history = [History(created_by=f"squash {image.digest}")]
        return Image.from_layers(
            [] if layer is None else [layer], image.store, lease, reference, history, config.defaults, config.platform
        )


def _flatten(image: Image, path: Path, form: str) -> None:
    from containerkit.image.flatten import make_filesystem

    with _whole(image) as root:
        make_filesystem(root, path, form, source_date_epoch())


@contextmanager
def _folder(folder: str | os.PathLike[str] | int) -> Iterator[int]:
    if isinstance(folder, int):
        yield folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reference(reference: str | Reference) -> Reference:
    return reference if isinstance(reference, Reference) else Reference.parse(reference)


def _platform(platform: str | Platform | None) -> Platform | None:
    return Platform.parse(platform) if isinstance(platform, str) else platform


def _archived_name(name: str) -> Reference | None:
    """Read a name of an archive; a bare tag, as some tools write it, is no name that could be asked for."""
    if not name:
        return None
    try:
        return Reference.parse(name).without_digest()
    except SpecError:
        return None
