"""Images as files: read and write docker-archive and oci-archive."""

from __future__ import annotations

import os
import stat
import tarfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, cast

import attrs

from containerkit.archive.compression import Plain, recognise
from containerkit.errors import ImageError, SpecError
from containerkit.image import media
from containerkit.image.config import ImageConfig
from containerkit.image.digest import Digest
from containerkit.image.document import LARGEST_BYTES, Document, encode
from containerkit.image.manifest import REF_NAME, Descriptor, Index, Manifest
from containerkit.image.reference import Reference
from containerkit.image.store.collect import reachable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from containerkit.archive.limits import UnpackLimits
    from containerkit.image.store import Lease, Store

__all__ = ["load", "save"]

_PIECE: Final = 1 << 20
_MOST_MEMBERS: Final = 100_000
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'


def save(
    store: Store,
    images: Sequence[tuple[Descriptor, str]],
    path: str | os.PathLike[str] | int,
    *,
    form: str = "oci-archive",
) -> None:
    """Write images to one file.

    An existing regular file is replaced only after everything has been written. Anything else, such as a pipe, a device
    or what a symlink leads to, is written to directly: it is never replaced itself.

    Args:
        store: the store that contains them.
        images: descriptor and name of each. An image with an empty name is saved without one.
        path: the file, or a descriptor, which stays open.
        form: ``oci-archive`` (images as they are) or ``docker-archive`` (what ``docker load`` reads: uncompressed
            layers).

    Raises:
        SpecError: the form is unknown.
        ImageError: an image is incomplete in the store.

    Source: OCI image specification, image-layout.md; Docker image specification 1.2, "Combined Image JSON".
    """
    writers = {"oci-archive": _save_oci, "docker-archive": _save_docker}
    if form not in writers:
        raise SpecError(f"form must be one of {', '.join(writers)}, not {form!r}")
    if isinstance(path, int) or not _is_replaced(path):
        with (
            open(path, "wb", closefd=not isinstance(path, int)) as file,
            tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar,
        ):
            writers[form](store, images, tar)
        return
    goal = Path(path)
    new = goal.with_name(f".{goal.name}.{os.getpid()}.new")
    try:
        with tarfile.open(new, "w", format=tarfile.PAX_FORMAT) as tar:
            writers[form](store, images, tar)
        new.replace(goal)
    finally:
        new.unlink(missing_ok=True)


def _is_replaced(path: str | os.PathLike[str]) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except FileNotFoundError:
        return True


def _member(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    tar.addfile(info, file)


def _bytes(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    from io import BytesIO

    _member(tar, name, len(content), BytesIO(content))


def _save_oci(store: Store, images: Sequence[tuple[Descriptor, str]], tar: tarfile.TarFile) -> None:
    _bytes(tar, "oci-layout", _LAYOUT)
    digests: dict[Digest, None] = {}
    entries: list[Descriptor] = []
    for descriptor, name in images:
        digests |= dict.fromkeys(digest for digest in reachable(store, descriptor) if store.blobs.has(digest))
        entries.append(attrs.evolve(descriptor, annotations={REF_NAME: name} if name else {}))
    for digest in sorted(digests):
        with store.blobs.open(digest) as file:
            _member(tar, f"blobs/{digest.algorithm}/{digest.encoded}", os.fstat(file.fileno()).st_size, file)
    _bytes(tar, "index.json", Index(manifests=tuple(entries)).raw)


def _save_docker(store: Store, images: Sequence[tuple[Descriptor, str]], tar: tarfile.TarFile) -> None:
    listed: list[dict[str, Any]] = []
    written: set[str] = set()
    for descriptor, name in images:
        manifest = store.manifest(descriptor)
        config = store.config(manifest)
        entry: dict[str, Any] = {"Config": f"{manifest.config.digest.encoded}.json", "RepoTags": [], "Layers": []}
        if name:
            entry["RepoTags"].append(Reference.parse(name).without_digest().familiar_with_tag)
        if entry["Config"] not in written:
            _bytes(tar, entry["Config"], config.raw)
            written.add(entry["Config"])
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            member = f"{diff_id.encoded}.tar"
            entry["Layers"].append(member)
            if member not in written:
                _add_plain_layer(store, tar, layer, diff_id, member)
                written.add(member)
        listed.append(entry)
    _bytes(tar, "manifest.json", encode(listed))


def _add_plain_layer(store: Store, tar: tarfile.TarFile, layer: Descriptor, diff_id: Digest, member: str) -> None:
    """Write a layer uncompressed. It is read twice, because a tar archive contains the size first."""
    state, size = diff_id.hasher(), 0
    with store.blobs.open(layer.digest) as file, Plain(file, limits=store.limits) as stream:
        while piece := stream.read(_PIECE):
            state.update(piece)
            size += len(piece)
    diff_id.check(state, "layer, uncompressed")
    with store.blobs.open(layer.digest) as file, Plain(file, limits=store.limits) as stream:
        _member(tar, member, size, cast("IO[bytes]", stream))


# --- Load


def load(store: Store, path: str | os.PathLike[str], lease: Lease) -> list[tuple[Manifest | Index, str]]:
    """Read images from a docker-archive, an oci-archive, or a directory with an image layout, into a store.

    Args:
        store: the destination.
        path: the file (compressed or not) or directory.
        lease: a claim that will cover them.

    Returns:
        Each image with its name, which is empty if it has none. They are not named in the store yet.

    Raises:
        ImageError: the file is in another format or malformed, or a blob does not match its digest.

    Source: OCI image specification, image-layout.md; Docker image specification 1.2.
    """
    try:
        with _opened(Path(path), store.limits) as source:
            if source.has("index.json"):
                return _load_oci(store, source, lease)
            if source.has("manifest.json"):
                return _load_docker(store, source, lease)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: it does not exist") from error
    except tarfile.TarError as error:
        raise ImageError(f"{path}: the archive is damaged ({error})") from error
    raise ImageError(f"{path}: neither a docker-archive nor an OCI image layout")


class _Source:
    """Files by name, in an archive or a directory: only regular files, never through a symlink that leads out of it."""

    def __init__(self, where: Path, tar: tarfile.TarFile | None) -> None:
        self._where = where
        self._members: dict[str, tarfile.TarInfo] = {}
        self._tar = tar
        if tar is not None:
            for count, member in enumerate(tar):
                if count > _MOST_MEMBERS:
                    raise ImageError(f"{where}: more than {_MOST_MEMBERS} members")
                self._members[os.path.normpath(member.name)] = member

    def has(self, name: str) -> bool:
        return name in self._members if self._tar is not None else (self._where / name).is_file()

    def open(self, name: str) -> tuple[BinaryIO, int]:
        """Open a file and return it with its size."""
        name = os.path.normpath(name)
        if name.startswith(("/", "../")) or name == "..":
            raise ImageError(f"{self._where}: the name {name!r} leads out of it")
        if self._tar is not None:
            member = self._resolved(name)
            file = self._tar.extractfile(member) if member.isreg() else None
            if file is None:
                raise ImageError(f"{self._where}: {name} is not a regular file")
            return cast("BinaryIO", file), member.size
        try:
            descriptor = os.open(self._where / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ImageError(f"{self._where}: {name}: {error.strerror}") from error
        return cast("BinaryIO", os.fdopen(descriptor, "rb", buffering=0)), os.fstat(descriptor).st_size

    def _resolved(self, name: str) -> tarfile.TarInfo:
        """Find a member. docker save writes a repeated layer as a link to the first one."""
        for _ in range(3):
            member = self._members.get(name)
            if member is None:
                raise ImageError(f"{self._where}: {name} is missing")
            if not (member.issym() or member.islnk()):
                return member
            base = name.rpartition("/")[0] if member.issym() else ""
            name = os.path.normpath(f"{base}/{member.linkname}" if base else member.linkname)
        raise ImageError(f"{self._where}: {name} is part of a loop of links")

    def read(self, name: str) -> bytes:
        file, size = self.open(name)
        with file:
            if size > LARGEST_BYTES:
                raise ImageError(f"{self._where}: {name} is larger than {LARGEST_BYTES} bytes")
            return file.read()


class _Bounded:
    """A file that limits the size of a single read, because tarfile reads as much as an archive asks for."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._most:
            raise ImageError(f"the archive requires a single read of {size} bytes")
        return self._file.read(size)


@contextmanager
def _opened(path: Path, limits: UnpackLimits) -> Iterator[_Source]:
    if path.is_dir():
        yield _Source(path, None)
        return
    with ExitStack() as stack:
        file: BinaryIO = stack.enter_context(path.open("rb"))
        if recognise(file.read(6)) == "none":
            file.seek(0)
        else:
            file.seek(0)
            file = stack.enter_context(_plain_copy(file, path, limits))
        bounded = cast("IO[bytes]", _Bounded(file, limits.header_bytes))
        tar = stack.enter_context(tarfile.open(fileobj=bounded, mode="r:"))
        yield _Source(path, tar)


@contextmanager
def _plain_copy(file: BinaryIO, path: Path, limits: UnpackLimits) -> Iterator[BinaryIO]:
    """Uncompress an archive to an unnamed file, because its members are read out of order."""
    with TemporaryDirectory() as directory, (Path(directory) / "plain").open("w+b") as plain:
        with Plain(file, str(path), limits=limits) as stream:
            while piece := stream.read(_PIECE):
                plain.write(piece)
        plain.seek(0)
        yield plain


def _load_oci(store: Store, source: _Source, lease: Lease) -> list[tuple[Manifest | Index, str]]:
    raw = source.read("index.json")
    index = Index.from_document(Document.read(raw, "index.json"), media.OCI_INDEX, raw)
    found: list[tuple[Manifest | Index, str]] = []
    for entry in index.manifests:
        document = _copy_tree(store, source, entry, lease)
        name = entry.annotations.get("io.containerd.image.name", entry.ref_name)
        found.append((document, name))
    return found


def _copy_tree(store: Store, source: _Source, entry: Descriptor, lease: Lease) -> Manifest | Index:
    """Copy a manifest or index and everything it refers to. Of an index, copy what exists."""
    found: list[Manifest | Index] = []
    waiting, seen = [entry], {entry.digest}
    while waiting:
        one = waiting.pop()
        _copy_blob(store, source, one, lease)
        document = store.document(one)
        found.append(document)
        if isinstance(document, Index):
            below = [inner for inner in document.manifests if inner.digest not in seen]
            seen.update(inner.digest for inner in below)
            waiting += [inner for inner in below if source.has(_blob_name(inner.digest))]
            continue
        for blob in (document.config, *document.layers):
            if media.is_distributed(blob.media_type):
                _copy_blob(store, source, blob, lease)
    return found[0]


def _blob_name(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.encoded}"


def _copy_blob(store: Store, source: _Source, blob: Descriptor, lease: Lease) -> None:
    lease.claim([blob.digest])
    with store.blobs.ingest(blob) as writer:
        if writer.done:
            return
        writer.restart()
        file, _ = source.open(_blob_name(blob.digest))
        with file:
            while piece := file.read(_PIECE):
                writer.write(piece)
        writer.commit()


def _load_docker(store: Store, source: _Source, lease: Lease) -> list[tuple[Manifest | Index, str]]:
    import json

    try:
        listed = json.loads(source.read("manifest.json"))
    except (ValueError, RecursionError) as error:
        raise ImageError(f"manifest.json: not a JSON document ({error})") from error
    if not isinstance(listed, list):
        raise ImageError("manifest.json: expected a list")
    found: list[tuple[Manifest | Index, str]] = []
    for number, item in enumerate(listed):
        entry = Document(item, f"manifest.json[{number}]")
        manifest = _docker_image(store, source, entry, lease)
        names = entry.texts("RepoTags") or ("",)
        found += [(manifest, str(Reference.parse(name)) if name else "") for name in names]
    return found


def _docker_image(store: Store, source: _Source, entry: Document, lease: Lease) -> Manifest:
    config = ImageConfig.parse(source.read(entry.text("Config")), entry.text("Config"))
    names = entry.texts("Layers")
    if len(names) != len(config.diff_ids):
        raise ImageError(f"{entry.place}: {len(names)} layers, but its config names {len(config.diff_ids)}")
    layers = tuple(
        _docker_layer(store, source, name, diff_id, lease) for name, diff_id in zip(names, config.diff_ids, strict=True)
    )
    lease.claim([Digest.of(config.raw)])
    described = store.blobs.add(config.raw, media.OCI_CONFIG)
    manifest = Manifest(config=described, layers=layers)
    lease.claim([manifest.digest])
    store.blobs.add(manifest.raw, manifest.media_type)
    return manifest


def _docker_layer(store: Store, source: _Source, name: str, diff_id: Digest, lease: Lease) -> Descriptor:
    """Store a layer, gzipped so that a later push is small. Its diff id is checked at the same time."""
    from containerkit.image.layers.blob import LayerWriter

    file, _ = source.open(name)
    with file, LayerWriter(store, lease) as writer:
        with Plain(file, name, limits=store.limits) as stream:
            while piece := stream.read(_PIECE):
                writer.write(piece)
        descriptor, found = writer.commit()
    if found != diff_id:
        raise ImageError(f"{name}: expected diff id {diff_id}, got {found}")
    return descriptor
