"""Manifests and indexes, of OCI and of Docker's schema 2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import ImageError
from containerkit.image import media
from containerkit.image.digest import Digest
from containerkit.image.document import Document, encode
from containerkit.image.platform import Platform
from containerkit.meanings import explained

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self, Unpack

    from containerkit.image.options import DescriptorOptions

__all__ = ["REF_NAME", "Descriptor", "Index", "Manifest", "parse_manifest"]

REF_NAME: Final = "org.opencontainers.image.ref.name"
_ATTESTATION: Final = "vnd.docker.reference.type"
_MOST_ITEMS: Final = 4096


@attrs.frozen(kw_only=True)
class Descriptor:
    """The description of a blob: its type, digest and size, and possibly other addresses of it.

    Args:
        media_type: its media type.
        digest: its digest.
        size: its size in bytes.
        urls: other addresses of the blob.
        annotations: free strings.
        platform: of an image in an index: the platform on which it runs.
        artifact_type: the type of an artifact that is not an image.

    Source: OCI image specification, descriptor.md.
    """

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    platform: Platform | None = None
    artifact_type: str = ""

    @classmethod
    @explained
    def of(cls, content: bytes, media_type: str, **options: Unpack[DescriptorOptions]) -> Self:
        """Describe some bytes.

        Args:
            content: the bytes.
            media_type: their media type.
            options: see :class:`containerkit.image.options.DescriptorOptions`.
        """
        return cls(media_type=media_type, digest=Digest.of(content), size=len(content), **options)

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Parse a descriptor.

        Raises:
            ImageError: it is malformed.
        """
        platform = document.child("platform")
        return cls(
            media_type=document.text("mediaType"),
            digest=document.digest("digest"),
            size=document.integer("size"),
            urls=document.texts("urls"),
            annotations=document.table("annotations"),
            platform=None if platform is None else _platform(platform),
            artifact_type=document.text("artifactType", ""),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        content: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.urls:
            content["urls"] = list(self.urls)
        if self.annotations:
            content["annotations"] = dict(self.annotations)
        if self.platform is not None:
            content["platform"] = _platform_json(self.platform)
        if self.artifact_type:
            content["artifactType"] = self.artifact_type
        return content

    @property
    def ref_name(self) -> str:
        """The name of this descriptor in an image layout, or an empty string."""
        return self.annotations.get(REF_NAME, "")

    @property
    def is_image(self) -> bool:
        """Whether it is an image to run, not an attestation or signature of one."""
        if _ATTESTATION in self.annotations:
            return False
        return self.platform is None or self.platform.architecture != "unknown"


@attrs.frozen(kw_only=True)
class Manifest:
    """One image: its config and its layers, lowest first.

    Args:
        media_type: that of OCI or Docker.
        config: descriptor of the config.
        layers: descriptors of the layers, lowest first.
        annotations: free strings.
        subject: the manifest to which this one refers, if it is such an artifact.
        artifact_type: the type of an artifact.
        raw: the original bytes, of which the digest is made.

    Source: OCI image specification, manifest.md; Docker image manifest version 2, schema 2.
    """

    media_type: str = media.OCI_MANIFEST
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    subject: Descriptor | None = None
    artifact_type: str = ""
    raw: bytes = attrs.field(default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.raw:
            object.__setattr__(self, "raw", encode(self.to_json()))

    @classmethod
    def from_document(cls, document: Document, media_type: str, raw: bytes) -> Self:
        """Parse a manifest.

        Raises:
            ImageError: it is malformed.
        """
        subject = document.child("subject")
        return cls(
            media_type=media_type,
            config=Descriptor.from_document(document.required("config")),
            layers=_several(document, "layers"),
            annotations=document.table("annotations"),
            subject=None if subject is None else Descriptor.from_document(subject),
            artifact_type=document.text("artifactType", ""),
            raw=raw,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        content: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            content["artifactType"] = self.artifact_type
        content["config"] = self.config.to_json()
        content["layers"] = [layer.to_json() for layer in self.layers]
        if self.subject is not None:
            content["subject"] = self.subject.to_json()
        if self.annotations:
            content["annotations"] = dict(self.annotations)
        return content

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this manifest."""
        return Descriptor.of(self.raw, self.media_type)

    @property
    def digest(self) -> Digest:
        """The digest of this manifest."""
        return Digest.of(self.raw)

    @property
    def is_image(self) -> bool:
        """Whether its config is that of an image, so that it can be unpacked and run."""
        return self.config.media_type in media.CONFIGS


@attrs.frozen(kw_only=True)
class Index:
    """A set of manifests under one name, one for each platform.

    Args:
        media_type: OCI's or Docker's.
        manifests: descriptors of the manifests.
        annotations: free strings.
        raw: the original bytes, of which the digest is made.

    Source: OCI image specification, image-index.md.
    """

    media_type: str = media.OCI_INDEX
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    raw: bytes = attrs.field(default=b"", repr=False)

    def __attrs_post_init__(self) -> None:
        if not self.raw:
            object.__setattr__(self, "raw", encode(self.to_json()))

    @classmethod
    def from_document(cls, document: Document, media_type: str, raw: bytes) -> Self:
        """Parse an index.

        Raises:
            ImageError: it is malformed.
        """
        return cls(
            media_type=media_type,
            manifests=_several(document, "manifests"),
            annotations=document.table("annotations"),
            raw=raw,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        content: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "manifests": [manifest.to_json() for manifest in self.manifests],
        }
        if self.annotations:
            content["annotations"] = dict(self.annotations)
        return content

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this index."""
        return Descriptor.of(self.raw, self.media_type)

    @property
    def digest(self) -> Digest:
        """The digest of this index."""
        return Digest.of(self.raw)

    def select(self, platform: Platform, subject: str = "index") -> Descriptor:
        """Return the manifest that fits a platform best.

        Args:
            platform: the platform on which it must run.
            subject: the name of the index in an error.

        Raises:
            ImageError: none of them fits. The error lists the available platforms.

        Source: OCI image specification, image-index.md.
        """
        images = [one for one in self.manifests if one.is_image]
        offered = [one.platform or Platform(os=platform.os, architecture=platform.architecture) for one in images]
        at = platform.best(offered)
        if at is None:
            there = ", ".join(sorted({str(one) for one in offered})) or "no image at all"
            raise ImageError(f"{subject}: no image for {platform} (hint: it has {there}; pass platform=...)")
        return images[at]


def parse_manifest(raw: bytes, media_type: str = "", place: str = "manifest") -> Manifest | Index:
    """Parse a manifest or index, and check that it is what it claims to be.

    Args:
        raw: the original bytes.
        media_type: the type stated by the sender; empty to use the document alone.
        place: its name in errors.

    Raises:
        ImageError: it is malformed, of an unknown type, of Docker's obsolete schema 1, or two types at once.

    Source: OCI image specification, manifest.md and image-index.md.
    """
    document = Document.read(raw, place)
    version = document.integer("schemaVersion", 2)
    if version == 1:
        raise ImageError(f"{place}: Docker's schema 1 is no longer read (hint: push the image again with a newer tool)")
    if version != 2:
        raise ImageError(f"{place}.schemaVersion: expected 2, got {version}")
    media_type = media_type.partition(";")[0].strip()
    written = document.text("mediaType", "")
    known = media.INDEXES | media.MANIFESTS
    if written and media_type in known and media_type != written:
        raise ImageError(f"{place}: it was sent as {media_type}, but its own media type is {written}")
    kind = written or (media_type if media_type in known else "")
    if "manifests" in document.content and ("layers" in document.content or "config" in document.content):
        raise ImageError(f"{place}: it has the fields of both a manifest and an index")
    if not kind:
        kind = media.OCI_INDEX if "manifests" in document.content else media.OCI_MANIFEST
    if kind in media.INDEXES:
        return Index.from_document(document, kind, raw)
    if kind in media.MANIFESTS:
        return Manifest.from_document(document, kind, raw)
    raise ImageError(f"{place}: the media type {kind!r} is neither a manifest nor an index")


def _several(document: Document, key: str) -> tuple[Descriptor, ...]:
    found = tuple(Descriptor.from_document(child) for child in document.children(key))
    if len(found) > _MOST_ITEMS:
        raise ImageError(f"{document.place}.{key}: {len(found)} entries; at most {_MOST_ITEMS} are allowed")
    return found


def _platform(document: Document) -> Platform:
    return Platform(
        os=document.text("os", "linux"),
        architecture=document.text("architecture", "unknown"),
        variant=document.text("variant", ""),
        os_version=document.text("os.version", ""),
        os_features=document.texts("os.features"),
    )


def _platform_json(platform: Platform) -> dict[str, Any]:
    content: dict[str, Any] = {"architecture": platform.architecture, "os": platform.os}
    if platform.os_version:
        content["os.version"] = platform.os_version
    if platform.os_features:
        content["os.features"] = list(platform.os_features)
    if platform.variant:
        content["variant"] = platform.variant
    return content
