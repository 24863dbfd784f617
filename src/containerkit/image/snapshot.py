"""Commits: make an image from a running container."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from containerkit.archive.tarwrite import Writing, source_date_epoch
from containerkit.compile.start import UPPER_FD
from containerkit.errors import ImageError, SpecError, StateError, telling_of_descriptors
from containerkit.image.config import Defaults, History, ImageConfig, timestamp
from containerkit.image.diff import layer_from_directory
from containerkit.image.image import Image
from containerkit.image.platform import Platform
from containerkit.image.reference import Reference
from containerkit.image.store import Store
from containerkit.meanings import explained
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Unpack

    from containerkit.container.lifecycle import Container
    from containerkit.image.digest import Digest
    from containerkit.image.manifest import Descriptor
    from containerkit.image.options import CommitOptions, Compression
    from containerkit.image.store import Lease

__all__ = ["change_layer", "commit"]

_MADE = ("/proc", "/sys", "/dev")


@explained
@telling_of_descriptors("commit")
def commit(
    container: Container,
    reference: str | Reference | None = None,
    *,
    base: Image | None = None,
    store: Store | None = None,
    author: str = "",
    message: str = "",
    compression: Compression = "gzip",
    **defaults: Unpack[CommitOptions],
) -> Image:
    """Make an image from the changes of a container, on top of the container's image.

    Files on mounts and in volumes are not included. The same changes give the same digest if ``SOURCE_DATE_EPOCH`` is
    set.

    Args:
        container: a running container.
        reference: the new image's name, or None.
        base: the container's image. Default: the one of ``RootFS.image``; without one, the whole root
            becomes one layer, if it is writable.
        store: the destination. Default: the store of ``base``, otherwise the user's.
        author: the author.
        message: a message for the history.
        compression: ``gzip``, ``zstd`` or ``none``.
        options: see :class:`containerkit.image.options.CommitOptions`.

    Raises:
        StateError: the container is not running, or its writes are not kept.
        SpecError: a field is unknown.
        ImageError: a file changes while it is read.

    Source: OCI image specification, layer.md.
    """
    base = base or _base_of(container)
    store = store or (base.store if base else Store())
    config = base.config if base else ImageConfig(platform=Platform.host())
    _check_fields(defaults)
    epoch = source_date_epoch()
    created = timestamp(epoch)
    with store.lease() as lease:
        volumes = tuple(volume.target for volume in container.rootfs.volumes)
        made = change_layer(container, store, lease, compression=compression, epoch=epoch, exclude=volumes)
        blobs = base.manifest.layers if base else ()
        if base:
            lease.claim([*(blob.digest for blob in blobs), *config.diff_ids])
        entry = History(created=created, created_by="commit", author=author, comment=message, empty_layer=made is None)
        changed = config.evolve(
            defaults=attrs.evolve(config.defaults, **defaults),
            diff_ids=(*config.diff_ids, *([made[1]] if made else [])),
            history=(*config.history, entry),
            created=created,
            author=author or config.author,
        )
        name = Reference.parse(reference) if isinstance(reference, str) else reference
        manifest = store.add_image(changed, (*blobs, *([made[0]] if made else [])), name, lease)
    return Image(store=store, manifest=manifest, reference=name)


def _check_fields(defaults: Iterable[str]) -> None:
    known = {field.name for field in attrs.fields(Defaults)}
    if unknown := sorted(set(defaults) - known):
        raise SpecError(f"commit: unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}")


def change_layer(
    container: Container,
    store: Store,
    lease: Lease,
    *,
    compression: Compression = "gzip",
    epoch: int | None = None,
    exclude: tuple[str, ...] = (),
) -> tuple[Descriptor, Digest] | None:
    """Make a layer from the changes of a running container. Return None if it has changed nothing.

    Args:
        container: a running container.
        store: the destination.
        lease: a claim that will cover the layer.
        compression: ``gzip``, ``zstd`` or ``none``.
        epoch: in seconds; later times are set to it.
        exclude: absolute paths inside to leave out.

    Raises:
        StateError: the container is not running, or its writes are not kept.
        ImageError: a file changes while it is read.
    """
    mounts = tuple(mount.target for mount in container.spec.mounts)
    rootfs = container.rootfs
    on_disk = rootfs.upper is not None or rootfs.kind == "dir"
    translated = on_disk and rootfs.idmap and os.geteuid() == 0
    made: tuple[Descriptor, Digest] | None
    with _upper(container) as (directory, whole):
        how = Writing(overlay=not whole, marks=rootfs.union == "fuse", epoch=epoch, exclude=(*_MADE, *mounts, *exclude))
        # If the mount has no id map, files on disk have the same ids as inside.
        pid = None if translated else container.pid
        made = userns_helper.call(
            _layer, store, userns_helper.Lent(directory), userns_helper.Lent(lease.fileno()), how, compression, pid
        )
    return made


def _layer(
    store: Store, directory: int, claims: int, how: Writing, compression: Compression, pid: int | None
) -> tuple[Descriptor, Digest] | None:
    """Make the layer in a process that can read files of all ids. ``pid`` is a process of the container."""
    if pid is not None:
        how = attrs.evolve(how, owner=_inside_ids(pid, "uid_map"), group=_inside_ids(pid, "gid_map"))
    with store.lease(shared=os.dup(claims)) as lease:
        return layer_from_directory(store, directory, lease, how, compression=compression, root=not how.overlay)


def _base_of(container: Container) -> Image | None:
    rootfs = container.spec.rootfs
    if rootfs.kind != "image":
        return None
    options: dict[str, Any] = {key: value for key, value in rootfs.arguments if key in ("platform", "store")}
    if "store" in options:
        options["store"] = Store(options["store"])
    return Image.open(rootfs.name, **options)


@contextmanager
def _upper(container: Container) -> Iterator[tuple[int, bool]]:
    """Yield the directory that contains what the container writes, and whether it is a complete root."""
    rootfs = container.rootfs
    if rootfs.kind == "host":
        raise StateError(f"{container!r}: its root is the host's, which can't become an image")
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if rootfs.upper is not None:
        descriptor = os.open(rootfs.upper, flags)
    elif rootfs.kind == "dir":
        descriptor = os.open(rootfs.lowers[0], flags)
    elif rootfs.in_memory:
        inner = "/u0" if rootfs.kind == "overlay" else ""
        descriptor = os.open(f"/proc/{container.pid}/fd/{UPPER_FD}{inner}", flags)
    else:
        raise StateError(f"{container!r}: its root is read-only, so there is nothing to commit")
    try:
        yield descriptor, rootfs.kind in ("dir", "tmpfs")
    finally:
        os.close(descriptor)


def _inside_ids(pid: int, which: str) -> Callable[[int], int]:
    """Return a function that converts an id as this process sees it to the id inside. ``which`` names the map.

    Source: user_namespaces(7), "User and group ID mappings: uid_map and gid_map".
    """
    with open(f"/proc/{pid}/{which}", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]

    def inside(number: int) -> int:
        for first, outside, count in ranges:
            if outside <= number < outside + count:
                return first + number - outside
        raise ImageError(f"a file in the container belongs to id {number}, which its user namespace does not map")

    return inside
