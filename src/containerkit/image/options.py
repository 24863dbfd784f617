"""The keyword arguments that calls about images share; see :mod:`containerkit.options`.

Source: PEP 589, PEP 692.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, TypedDict

from containerkit.options import (
    AddedEnvironmentOptions,
    ConfinementOptions,
    DirectoryOptions,
    OverlayOptions,
    ProcessOptions,
    StreamOptions,
    TerminalAndGroupOptions,
    TextOptions,
    UserOptions,
    WaitOptions,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import Literal

    from containerkit.image.config import Defaults, Healthcheck, History
    from containerkit.image.digest import Digest
    from containerkit.image.platform import Platform
    from containerkit.image.progress import Progress
    from containerkit.image.reference import Reference
    from containerkit.image.registry import Credentials, RegistrySettings
    from containerkit.image.store import Store
    from containerkit.options import Input, ListOf

    Pull = Literal["missing", "always", "never"]
    Compression = Literal["gzip", "zstd", "none"]
    Archive = Literal["oci-archive", "docker-archive"]
    Entitlement = Literal["network.host", "security.insecure"]

__all__ = [
    "AnyBuildOptions",
    "AnyImageRunOptions",
    "BuildOptions",
    "CommitOptions",
    "ConfigOptions",
    "DescriptorOptions",
    "DockerfileOptions",
    "ImageCommand",
    "ImageRootOptions",
    "ImageRunOptions",
    "PullOptions",
    "RegistryOptions",
    "TemplateRootOptions",
    "VolumeOptions",
]


class RegistryOptions(TypedDict, total=False):
    """How an image is pulled."""

    platform: str | Platform | None
    """The platform, such as ``linux/arm64`` (default: this machine's)."""
    settings: RegistrySettings | None
    """How to reach registries (default: those of the machine and user)."""
    credentials: Credentials | None
    """The credentials (default: those that other container tools have stored)."""
    progress: Progress
    """Called with each step (default: none)."""


class PullOptions(RegistryOptions, total=False):
    """The arguments of :meth:`Image.pull`."""

    all_platforms: bool
    """Whether to pull the images of all platforms, for a later push (default False)."""
    store: Store | None
    """The store (default: the user's)."""
    unpack: bool
    """Whether to unpack its layers as well (default True)."""


class VolumeOptions(TypedDict, total=False):
    """How the volumes of an image are handled."""

    volumes: bool
    """Whether each container gets its own copy of the volumes in the config (default True). They are kept in memory,
    start with the image's content, and are gone with the container; they do not belong to its changes. A path gets no
    volume if something is mounted on or above it."""


class ImageRootOptions(OverlayOptions, VolumeOptions, RegistryOptions, total=False):
    """The arguments of :meth:`RootFS.image`."""

    pull: Pull
    """``"missing"`` (only if it is not in the store, default), ``"always"`` or ``"never"``."""
    store: str | os.PathLike[str] | None
    """The directory of the store (default: the user's)."""


class TemplateRootOptions(OverlayOptions, VolumeOptions, total=False):
    """The arguments of :meth:`RootFS.template`: those of the library's own templates, and those of the root."""

    store: str | os.PathLike[str] | None
    """The directory of the store (default: the user's)."""
    path: str
    """``busybox``: the program (default: the machine's static one)."""
    programs: ListOf[str]
    """``host``: the machine's programs to include, with their libraries (default ``sh``)."""
    files: ListOf[str]
    """``host``: more files of the machine (default none)."""
    suite: str
    """``debian``, ``ubuntu``: the release (default ``stable``, ``noble``)."""
    variant: Literal["minbase", "apt", "essential", "standard", "buildd"]
    """``debian``, ``ubuntu``: the set of initial packages (default ``minbase``)."""
    components: ListOf[str]
    """``debian``, ``ubuntu``: the components of the archive (default ``main``; ``main`` and ``universe``)."""
    mirror: str
    """``debian``, ``ubuntu``, ``alpine``: the address of the packages (default: the distribution's own)."""
    packages: ListOf[str]
    """``debian``, ``ubuntu``, ``alpine``: more packages (default none)."""
    branch: str
    """``alpine``: the release (default ``latest-stable``)."""
    apk: str
    """``alpine``: the program that installs packages (default: the machine's, if there is one)."""
    reference: str
    """``image``: the image."""


class ImageRunOptions(
    AddedEnvironmentOptions,
    DirectoryOptions,
    ProcessOptions,
    UserOptions,
    ConfinementOptions,
    StreamOptions,
    TerminalAndGroupOptions,
    WaitOptions,
    total=False,
):
    """The arguments of :meth:`Image.run` that :meth:`Container.run` has too; ``env`` is different."""


class AnyImageRunOptions(ImageRunOptions, TextOptions, total=False):
    """The same, with the input and the arguments for text mode."""

    input: Input
    """The data for stdin (default: none, /dev/null)."""


class BuildOptions(TypedDict, total=False):
    """How an image is built."""

    tag: str | Reference | None
    """The image's name (default none)."""
    target: str
    """The stage to build, by name or number (default: the last)."""
    args: Mapping[str, str]
    """Values for ``ARG``."""
    platform: str | Platform | None
    """The platform (default: this machine's)."""
    pull: Pull
    """When to pull base images: ``"missing"`` (default), ``"always"`` or ``"never"``."""
    network: Literal["none", "internet", "host"]
    """The network of its commands (default ``"none"``)."""
    egress: ListOf[str] | None
    """With ``network="internet"``: the only destinations that they may reach, as for :meth:`containerkit.Egress.only`
    (default: all)."""
    allow: ListOf[Entitlement] | tuple[Entitlement, ...]
    """What single commands may request (default nothing)."""
    secrets: Mapping[str, bytes | str | os.PathLike[str]]
    """Contents, or paths as :class:`pathlib.Path`, by id."""
    contexts: Mapping[str, str | os.PathLike[str]]
    """More sources for ``COPY --from`` and ``FROM`` by name, which precede stages and images: directories, or images as
    ``docker-image://NAME``."""
    hosts: Mapping[str, str]
    """With ``network="internet"``: more addresses of names for its commands."""
    rlimits: Mapping[str, int | tuple[int, int]] | None
    """The limits of resources of its commands (default: those of the library)."""
    shm_size: int | str | None
    """The size of ``/dev/shm`` for its commands (default: that of the library)."""
    labels: Mapping[str, str]
    """More labels of the image."""
    cache: bool
    """Whether to use results of earlier builds (default True)."""
    epoch: int | None
    """The latest time of files in seconds; later times are set to it (default ``SOURCE_DATE_EPOCH``)."""
    store: Store | None
    """The store (default: the user's)."""
    log: Callable[[str], None]
    """Called with each line that a command writes (default: none)."""
    progress: Progress
    """Called with each step (default: none)."""


class DockerfileOptions(BuildOptions, total=False):
    """How an image is built from a Dockerfile."""

    dockerfile: str | os.PathLike[str] | None
    """The file (default: ``Dockerfile``, or ``Containerfile``, in the context)."""
    text: str | None
    """The content, in place of a file."""


class AnyBuildOptions(DockerfileOptions, total=False):
    """How an image is built, from a Dockerfile or in Python."""

    context: str | os.PathLike[str] | None
    """For a build in Python: the directory to copy from (default: it copies nothing)."""


class DescriptorOptions(TypedDict, total=False):
    """The fields of a descriptor that do not follow from the bytes."""

    urls: tuple[str, ...]
    """Other addresses of the blob."""
    annotations: Mapping[str, str]
    """Free strings."""
    platform: Platform | None
    """Of an image in an index: the platform on which it runs."""
    artifact_type: str
    """The type of an artifact that is not an image."""


class ConfigOptions(TypedDict, total=False):
    """The fields of an image's config."""

    platform: Platform
    """The platform on which the image runs."""
    defaults: Defaults
    """The defaults of containers made from it."""
    diff_ids: tuple[Digest, ...]
    """The digests of its uncompressed layers, lowest first."""
    history: tuple[History, ...]
    """Its history, oldest first."""
    created: str
    """RFC 3339 time, or empty."""
    author: str
    """The author, or empty."""


class ImageCommand(TypedDict):
    """The defaults for a command in the config of an image, as arguments of :meth:`Container.run`."""

    env: dict[str, str]
    """The environment."""
    cwd: NotRequired[str]
    """The working directory, absolute."""
    user: NotRequired[str]
    """``user[:group]`` by name or number."""


class CommitOptions(TypedDict, total=False):
    """The fields of a new image that differ from its base: see :class:`containerkit.image.Defaults`."""

    env: Mapping[str, str]
    """Environment variables, in order."""
    entrypoint: tuple[str, ...]
    """The program; ``command`` is appended to it."""
    command: tuple[str, ...]
    """The arguments, or the complete command if there is no entrypoint."""
    user: str
    """``user[:group]`` by name or number; empty is root."""
    working_dir: str
    """The working directory; empty is ``/``."""
    volumes: tuple[str, ...]
    """Directories that contain data."""
    labels: Mapping[str, str]
    """Free strings."""
    stop_signal: str
    """The name of the signal that ends it; empty is SIGTERM."""
    exposed_ports: tuple[str, ...]
    """Such as ``80/tcp``."""
    healthcheck: Healthcheck | None
    """How to check whether a container works."""
    shell: tuple[str, ...]
    """The shell for shell-form instructions of a build; empty is ``/bin/sh -c``."""
    on_build: tuple[str, ...]
    """Instructions for a build that starts from this image."""
