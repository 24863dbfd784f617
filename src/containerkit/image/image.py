"""The class Image, with all operations on an image."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import attrs

from containerkit.archive.extract import Extraction
from containerkit.archive.tarwrite import TreeWriter, Writing, source_date_epoch
from containerkit.errors import SpecError, telling_of_descriptors
from containerkit.image.claimed import process_lease, ready
from containerkit.image.config import Defaults, History, ImageConfig
from containerkit.image.diff import compare_images, layer_from_directory
from containerkit.image.layers.stack import Stack, stack_layers
from containerkit.image.layers.unpack import extract_blob, layer_paths, unpack_layers
from containerkit.image.progress import silent
from containerkit.image.reference import Reference
from containerkit.image.sources import Sources, as_reference, opened
from containerkit.image.store.locks import workspace
from containerkit.meanings import explained
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Unpack

    from containerkit.container.changes import Change
    from containerkit.container.lifecycle import Container
    from containerkit.image.digest import Digest
    from containerkit.image.health import Health
    from containerkit.image.options import (
        AnyImageRunOptions,
        Archive,
        Compression,
        ImageRunOptions,
    )
    from containerkit.image.progress import Progress
    from containerkit.image.registry import Credentials, RegistrySettings
    from containerkit.image.store import Lease
    from containerkit.options import ListOf, OverlayOptions, TemplateOptions
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.rootfs import RootFS

__all__ = ["Image"]


class Image(Sources):
    """An image in a store. Use :meth:`pull`, :meth:`open`, :meth:`load` and similar methods to get one.

    Attributes:
        store: the store that contains it.
        manifest: its manifest.
        reference: the name by which it was requested, or None.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<Image {self.reference.familiar if self.reference else 'without a name'} {self.digest.short}>"

    # --- Properties

    @property
    def digest(self) -> Digest:
        """The digest of its manifest."""
        return self.manifest.digest

    @property
    def id(self) -> Digest:
        """The digest of its config, which other tools show as the image id."""
        return self.manifest.config.digest

    @property
    def config(self) -> ImageConfig:
        """Its config.

        Raises:
            ImageError: it is malformed, or is not the config of an image.
        """
        return self.store.config(self.manifest)

    @property
    def defaults(self) -> Defaults:
        """The defaults of containers made from it."""
        return self.config.defaults

    @property
    def size_bytes(self) -> int:
        """The total size of its blobs."""
        return self.manifest.config.size + sum(layer.size for layer in self.manifest.layers)

    def history(self) -> tuple[History, ...]:
        """Return its history, oldest first."""
        return self.config.history

    @telling_of_descriptors("diff")
    def diff(self, other: Image) -> Sequence[Change]:
        """Return what ``other`` adds, changes and deletes, sorted by path.

        Raises:
            SpecError: the images are in different stores.
        """
        if other.store.root != self.store.root:
            raise SpecError("both images must be in the same store to be compared")
        return compare_images(self.store, self.manifest, other.manifest)

    # --- Names

    @telling_of_descriptors("tag")
    def tag(self, reference: str | Reference) -> Image:
        """Give it an additional name. If another image has that name, it loses it.

        Returns:
            The same image under that name.

        Raises:
            SpecError: the text is not a reference, or has a digest.
        """
        name = as_reference(reference)
        if name.digest is not None:
            raise SpecError(f"{name}: an image is named by a tag, without a digest")
        self.store.catalog.put(self.manifest.descriptor, name)
        return attrs.evolve(self, reference=name)

    @telling_of_descriptors("remove")
    def remove(self) -> None:
        """Remove its name, or the image itself if it has none. :meth:`Store.collect` then deletes its blobs.

        Raises:
            ImageError: it has been removed already.
        """
        name = self.reference or Reference(registry="localhost", repository="none", digest=self.digest)
        self.store.catalog.remove(name)

    @telling_of_descriptors("push")
    def push(
        self,
        reference: str | Reference | None = None,
        *,
        all_platforms: bool = False,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        progress: Progress = silent,
    ) -> Digest:
        """Push it to a registry.

        Args:
            reference: the destination. Default: its own name.
            all_platforms: whether to push the index that contains it. The store must have all of it.
            settings: how to reach registries. Default: those of the machine and user.
            credentials: the credentials. Default: those that other container tools have stored.
            progress: called with each step.

        Returns:
            The digest that was pushed.

        Raises:
            SpecError: there is no name.
            ImageError: permission is denied, there is no answer, or something is missing in the store.

        Source: OCI distribution specification, "Push".
        """
        from containerkit.image.registry import push

        target = reference if reference is not None else self.reference
        if target is None:
            raise SpecError("push: the image has no name; pass a reference")
        descriptor = self.manifest.descriptor
        if all_platforms and self.reference is not None:
            descriptor = self.store.find(self.reference) or descriptor
        return push(
            descriptor, as_reference(target), self.store, settings=settings, credentials=credentials, progress=progress
        )

    # --- Conversions

    @telling_of_descriptors("save")
    def save(self, path: str | os.PathLike[str], *, form: Archive = "oci-archive") -> None:
        """Write it to a file.

        Args:
            path: the file.
            form: ``oci-archive`` or ``docker-archive``.

        Raises:
            SpecError: the form is unknown.
            ImageError: the image is incomplete in the store.

        Source: OCI image specification, image-layout.md; Docker image specification 1.2.
        """
        from containerkit.image.archive import save

        save(self.store, [(self.manifest.descriptor, str(self.reference or ""))], path, form=form)

    @telling_of_descriptors("unpack")
    def unpack(self, lease: Lease | None = None) -> tuple[str, ...]:
        """Unpack those of its layers that are not unpacked yet.

        Args:
            lease: a claim that will cover them. Default: one that lasts as long as this process.

        Returns:
            Their directories, topmost first, as overlayfs expects them. They are shared: never write to them.

        Raises:
            ImageError: a layer is missing or malformed.
            SetupError: the disk is full.
        """
        config = self.config
        lease = lease or process_lease(self.store)
        lease.claim([self.digest, self.manifest.config.digest, *(layer.digest for layer in self.manifest.layers)])
        layers = list(zip(self.manifest.layers, config.diff_ids, strict=True))
        return layer_paths(unpack_layers(self.store, layers, lease))

    @explained
    @telling_of_descriptors("rootfs")
    def rootfs(self, *, volumes: bool = True, **options: Unpack[OverlayOptions]) -> RootFS:
        """Return a root for containers: the image's layers below a writable layer.

        Commands in it have the environment, working directory and user from the image's config by default. If there are
        more than eight layers, the first call merges small neighbours, unless the pull has done so. So the cost of
        starts hardly depends on their number.

        Args:
            volumes: whether each container gets its own copy of the volumes in the config. They are kept in memory,
                start with the image's content, and are gone with the container; they do not belong to its changes. A
                path gets no volume if something is mounted on or above it. Default True.
            options: see :class:`containerkit.options.OverlayOptions`.

        Raises:
            ImageError: a layer is missing or malformed.
            SpecError: the config names an unknown stop signal.
        """
        from containerkit.image.volumes import find_volumes
        from containerkit.spec.rootfs import RootFS

        def prepare(lease: Lease) -> Stack:
            return stack_layers(self.store, self.unpack(lease), self.config.chain_ids[-1], lease)

        stack, defaults = ready(self.store, self.digest, prepare), self.defaults
        return attrs.evolve(
            RootFS.overlay(*stack.directories, **options),
            base=stack.base,
            defaults=defaults.pairs,
            volumes=find_volumes(stack.directories, defaults.volumes) if volumes else (),
            stop_signal=defaults.stop_number,
        )

    def healthcheck(self, container: Container) -> Health:
        """Return the health check of a container made from this image, as its config defines it.

        Args:
            container: a running container.

        Raises:
            SpecError: the config defines no check.
        """
        from containerkit.image.health import Health

        return Health(container, self.defaults)

    @overload
    def run(
        self,
        command: ListOf[str] | None = None,
        *,
        container: TemplateOptions | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ImageRunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        command: ListOf[str] | None = None,
        *,
        container: TemplateOptions | None = None,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[ImageRunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        command: ListOf[str] | None = None,
        *,
        container: TemplateOptions | None = None,
        env: Mapping[str, str] | None = None,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[ImageRunOptions],
    ) -> CompletedProcess[bytes]: ...

    @overload
    def run(
        self,
        command: ListOf[str] | None = None,
        *,
        container: TemplateOptions | None = None,
        env: Mapping[str, str] | None = None,
        input: None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[ImageRunOptions],
    ) -> CompletedProcess[str] | CompletedProcess[bytes]: ...

    @explained
    def run(
        self,
        command: ListOf[str] | None = None,
        *,
        container: TemplateOptions | None = None,
        env: Mapping[str, str] | None = None,
        **more: Unpack[AnyImageRunOptions],
    ) -> CompletedProcess[Any]:
        """Run the image's program in a new container, with the image's environment, user and working directory.

        Args:
            command: the arguments after the entrypoint. Default: the image's own command.
            container: arguments of :class:`containerkit.Container`, such as ``limits``.
            env: variables to add to the image's environment.
            options: see :class:`containerkit.image.options.AnyImageRunOptions`.

        Arguments take precedence over the image's config.

        Raises:
            SpecError: the image has neither an entrypoint nor a command.
            ImageError: a layer is missing or malformed.
            ExitError, ContainerTimeout: as for :meth:`containerkit.Container.run`.

        Source: OCI image specification, config.md.
        """
        from containerkit.container.lifecycle import Container

        defaults = self.defaults
        argv = defaults.argv(command)
        if not argv:
            raise SpecError(f"{self!r} has no default command; pass a command")
        fields: TemplateOptions = {"rootfs": self.rootfs(), **(container or {})}
        if env:
            defaults = attrs.evolve(defaults, env={**defaults.env, **env})
        fields["rootfs"] = attrs.evolve(fields["rootfs"], defaults=defaults.pairs)
        given: dict[str, Any] = {**more}
        with Container(**fields) as running:
            done: CompletedProcess[Any] = running.run(argv, **given)
            return done

    @telling_of_descriptors("unpack_into")
    def unpack_into(self, directory: str | os.PathLike[str] | int) -> None:
        """Write its complete root to one directory.

        For an unprivileged user the files belong to the user, and their owners are recorded in an attribute.

        Args:
            directory: an empty directory, by path or descriptor.

        Raises:
            SpecError: the directory is not empty.
            ImageError: a layer is missing or malformed. What was written until then stays.

        Source: OCI image specification, layer.md, "Applying Changesets".
        """
        how = Extraction.for_user(whiteouts="apply", limits=self.store.limits)
        with opened(directory) as root:
            if os.listdir(root):
                raise SpecError(f"{directory}: an image can only be unpacked into an empty directory")
            for layer, diff_id in zip(self.manifest.layers, self.config.diff_ids, strict=True):
                with self.store.blobs.open(layer.digest) as file:
                    extract_blob(file, root, diff_id, how)

    @telling_of_descriptors("export")
    def export(self, path: str | os.PathLike[str]) -> None:
        """Write its complete root to one tar archive.

        Args:
            path: the file.

        Raises:
            ImageError: a layer is missing or malformed.
        """
        userns_helper.call(_export, self, Path(path).absolute())

    @telling_of_descriptors("squash")
    def squash(self, reference: str | Reference | None = None, *, compression: Compression = "gzip") -> Image:
        """Return an image with the same root and defaults, in one layer.

        Args:
            reference: its name, or None.
            compression: ``gzip``, ``zstd`` or ``none``.
        """
        squashed: Image = userns_helper.call(_squash, self, reference, compression)
        return squashed

    @telling_of_descriptors("flatten")
    def flatten(self, path: str | os.PathLike[str], *, form: Literal["erofs", "squashfs"] = "erofs") -> None:
        """Write its root as one read-only filesystem image.

        Args:
            path: the file.
            form: ``erofs`` or ``squashfs``.

        Raises:
            SpecError: the form is unknown.
            UnsupportedError: the program that makes it is not installed.
        """
        userns_helper.call(_flatten, self, Path(path).absolute(), form)


@contextmanager
def _whole(image: Image) -> Iterator[int]:
    """Unpack the complete root of an image to a directory, and remove it afterwards."""
    with workspace(image.store.root / "build") as parent:
        (parent / "root").mkdir()
        with opened(parent / "root") as root:
            os.fchmod(root, 0o755)
            image.unpack_into(root)
            yield root


def _export(image: Image, path: Path) -> None:
    with _whole(image) as root, path.open("wb") as file:
        writer = TreeWriter(file, Writing(epoch=source_date_epoch()))
        writer.add_tree(root)
        writer.close()


def _squash(image: Image, reference: str | Reference | None, compression: Compression) -> Image:
    config, writing = image.config, Writing(epoch=source_date_epoch())
    with _whole(image) as root, image.store.lease() as lease:
        layer = layer_from_directory(image.store, root, lease, writing, compression=compression, root=True)
        history = [History(created_by=f"squash {image.digest}")]
        return Image.from_layers(
            [] if layer is None else [layer], image.store, lease, reference, history, config.defaults, config.platform
        )


def _flatten(image: Image, path: Path, form: str) -> None:
    from containerkit.image.flatten import make_filesystem

    with _whole(image) as root:
        make_filesystem(root, path, form, source_date_epoch())
