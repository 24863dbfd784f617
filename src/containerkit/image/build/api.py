"""Builds in Python, and the entry point for Dockerfiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit.errors import SpecError
from containerkit.image.build.copying import context_source
from containerkit.image.build.dockerfile import Dockerfile, Instruction, Stage, parse_dockerfile
from containerkit.image.build.engine import ENTITLEMENTS, Engine
from containerkit.image.build.running import Around
from containerkit.archive.tarwrite import source_date_epoch
from containerkit.image.platform import Platform
from containerkit.image.progress import silent
from containerkit.image.reference import Reference
from containerkit.image.store import Store
from containerkit.meanings import explained
from containerkit.spec.traffic import Egress
from containerkit.spec.words import sequence
from containerkit.start import userns_helper

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from containerkit.image.build.copying import Source
    from containerkit.image.image import Image
    from containerkit.image.options import BuildOptions, Entitlement, Pull
    from containerkit.image.progress import Progress
    from containerkit.options import ListOf

__all__ = ["Build", "build_dockerfile"]

_IMAGE: Final = "docker-image://"


@explained
def build_dockerfile(
    context: str | os.PathLike[str] | None = ".",
    *,
    dockerfile: str | os.PathLike[str] | None = None,
    text: str | None = None,
    **options: Unpack[BuildOptions],
) -> Image:
    """Build an image from a Dockerfile.

    Args:
        context: the directory to copy from, or None for a build that copies nothing. Default: the working directory.
        dockerfile: the file. Default: ``Dockerfile`` (or ``Containerfile``) in the context.
        text: the content, in place of a file.
        options: see :class:`containerkit.image.options.BuildOptions`.

    Raises:
        SpecError: the file does not exist or is malformed. The error names the line.
        ExitError: a command failed. ``stdout`` has the last lines of its output.
        ImageError: a base image is not available.

    Source: Dockerfile reference.
    """
    name = "Dockerfile"
    if text is None:
        path = Path(dockerfile) if dockerfile is not None else _find(Path(context or "."))
        name = path.name
        try:
            text = path.read_text("utf-8", "surrogateescape")
        except OSError as error:
            raise SpecError(f"{path}: {error.strerror}") from error
    source = None if context is None else context_source(context, name)
    return _run(parse_dockerfile(text), source, options)


def _contexts(given: Mapping[str, str | os.PathLike[str]]) -> dict[str, Source | str]:
    found: dict[str, Source | str] = {}
    for name, place in given.items():
        if isinstance(place, str) and place.startswith(_IMAGE):
            found[name] = place.removeprefix(_IMAGE)
        elif isinstance(place, str) and "://" in place:
            raise SpecError(f"build: the context {name!r}: {place!r:.100} is neither a directory nor {_IMAGE}NAME")
        else:
            found[name] = attrs.evolve(context_source(place), name=f"the context {name}")
    return found


def _find(directory: Path) -> Path:
    for name in ("Dockerfile", "Containerfile"):
        if (directory / name).is_file():
            return directory / name
    raise SpecError(f"{directory} contains neither a Dockerfile nor a Containerfile")


def _run(dockerfile: Dockerfile, source: Source | None, options: BuildOptions) -> Image:
    known = {field.name for field in attrs.fields(_Options)}
    if unknown := sorted(set(options) - known):
        raise SpecError(f"build: unknown argument {unknown[0]!r}; there are {', '.join(sorted(known))}")
    chosen = _Options(**options)
    if chosen.egress is not None and chosen.network != "internet":
        raise SpecError("build: egress rules require network='internet'")
    store = chosen.store or Store()
    tag = Reference.parse(chosen.tag) if isinstance(chosen.tag, str) else chosen.tag
    platform = Platform.parse(chosen.platform) if isinstance(chosen.platform, str) else chosen.platform
    if chosen.hosts and chosen.network != "internet":
        raise SpecError("build: hosts require network='internet'")
    settings = {
        "labels": chosen.labels,
        "contexts": _contexts(chosen.contexts),
        "around": Around(hosts=chosen.hosts, rlimits=chosen.rlimits, shm_size=chosen.shm_size),
        "arguments": chosen.args, "platform": platform or Platform.host(), "pull": chosen.pull,
        "network": chosen.network, "egress": chosen.egress, "allow": frozenset(chosen.allow),
        "secrets": _secrets(chosen.secrets), "cached": chosen.cache,
        "epoch": chosen.epoch if chosen.epoch is not None else source_date_epoch(),
    }  # fmt: skip
    log, progress = userns_helper.Callback(chosen.log), userns_helper.Callback(chosen.progress)
    built: Image = userns_helper.call(_build, store, dockerfile, source, settings, (chosen.target, tag), log, progress)
    return built


def _build(
    store: Store,
    dockerfile: Dockerfile,
    source: Source | None,
    settings: dict[str, Any],
    target: tuple[str, Reference | None],
    log: Callable[[str], None],
    progress: Progress,
) -> Image:
    """Build in a process that can create, read and remove files of all ids. Layers and containers leave such files."""
    with store.lease() as lease:
        return Engine(dockerfile, store, lease, context=source, log=log, progress=progress, **settings).build(*target)


def _nothing(_: str) -> None:
    """Ignore a line."""


def _entitlements(_: object, __: object, value: ListOf[str]) -> None:
    if isinstance(value, str) or (unknown := sorted(set(value) - set(ENTITLEMENTS))):
        wrong = value if isinstance(value, str) else unknown[0]
        raise SpecError(f"build: allow must be some of {', '.join(ENTITLEMENTS)}, as a tuple, not {wrong!r}")


def _egress(values: ListOf[str] | None) -> tuple[str, ...] | None:
    if values is None:
        return None
    if isinstance(values, Egress):
        raise SpecError("build: egress is a list of texts, such as ['pypi.org:443'], not an Egress")
    Egress.only(*sequence(values, "build: egress"))
    return tuple(values)


@attrs.frozen(kw_only=True)
class _Options:
    tag: str | Reference | None = None
    target: str = ""
    args: Mapping[str, str] = attrs.field(factory=dict)
    platform: str | Platform | None = None
    pull: Pull = "missing"
    network: Literal["none", "internet", "host"] = attrs.field(
        default="none", validator=attrs.validators.in_(("none", "internet", "host"))
    )
    egress: tuple[str, ...] | None = attrs.field(default=None, converter=_egress)
    allow: ListOf[Entitlement] | tuple[Entitlement, ...] = attrs.field(default=(), validator=_entitlements)
    secrets: Mapping[str, bytes | str | os.PathLike[str]] = attrs.field(factory=dict)
    contexts: Mapping[str, str | os.PathLike[str]] = attrs.field(factory=dict)
    hosts: Mapping[str, str] = attrs.field(factory=dict)
    rlimits: Mapping[str, int | tuple[int, int]] | None = None
    shm_size: int | str | None = None
    labels: Mapping[str, str] = attrs.field(factory=dict)
    cache: bool = True
    epoch: int | None = None
    store: Store | None = None
    log: Callable[[str], None] = _nothing
    progress: Progress = silent


def _secrets(given: Mapping[str, bytes | str | os.PathLike[str]]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for name, value in given.items():
        if isinstance(value, (bytes, str)):
            found[name] = value if isinstance(value, bytes) else value.encode()
            continue
        try:
            found[name] = Path(value).read_bytes()
        except OSError as error:
            raise SpecError(f"secret {name!r}: {value}: {error.strerror}") from error
    return found


def _quoted(value: str) -> str:
    """Quote a word so that a Dockerfile uses it literally."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _pairs(pairs: Mapping[str, str]) -> str:
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


def _literal(words: tuple[str, ...]) -> str:
    return json.dumps([word.replace("\\", "\\\\").replace("$", "\\$") for word in words])


@attrs.frozen(kw_only=True)
class Build:
    """A build in Python. Each method returns a new build with one more step. Nothing happens before :meth:`build`.

    Arguments are used literally: no variables are replaced, except by the shell in :meth:`run`.

    Attributes:
        base: the base image: a reference, or ``scratch``.
        steps: the steps.
        stages: the builds from which files are copied.
        platform: the platform of the base, or an empty string.
    """

    base: str
    steps: tuple[Instruction, ...] = ()
    stages: tuple[Build, ...] = ()
    platform: str = ""

    @classmethod
    def from_(cls, base: str, *, platform: str = "") -> Build:
        """Start from an image.

        Args:
            base: its reference, or ``scratch`` for an empty root.
            platform: the platform of the base. Default: the platform of the build.

        Source: Dockerfile reference, "FROM".
        """
        return cls(base=base, platform=platform)

    def _with(self, name: str, text: str, **flags: Any) -> Build:
        chosen = {
            key.replace("_", "-"): value if isinstance(value, tuple) else (str(value),)
            for key, value in flags.items()
            if value not in (None, "", (), False)
        }
        return attrs.evolve(self, steps=(*self.steps, Instruction(name=name, flags=chosen, text=text)))

    def run(
        self,
        command: str | list[str] | tuple[str, ...],
        *,
        mounts: ListOf[str] = (),
        network: Literal["", "none", "host", "default"] = "",
        security: Literal["", "sandbox", "insecure"] = "",
    ) -> Build:
        """Run a command and keep its changes.

        Args:
            command: a line for the shell, or an argv.
            mounts: as for ``--mount``, such as ``type=cache,target=/var/cache/apt``.
            network: ``none``, or ``host`` if the build allows it. Default: that of the build.
            security: ``insecure`` for all capabilities and no filter, if the build allows it. Default: ``sandbox``.

        Source: Dockerfile reference, "RUN".
        """
        text = command if isinstance(command, str) else json.dumps(list(command))
        return self._with("RUN", text, mount=tuple(mounts), network=network, security=security)

    def copy(
        self,
        *sources_and_target: str,
        from_: Build | str | None = None,
        chown: str = "",
        chmod: str = "",
        exclude: ListOf[str] = (),
        parents: bool = False,
    ) -> Build:
        """Copy files to the image.

        Args:
            sources_and_target: one or more sources, and the destination last.
            from_: another build or an image to copy from. Default: the build context.
            chown: ``user[:group]``. Default: root, or unchanged from the other build or image.
            chmod: octal permission bits. Default: unchanged.
            exclude: patterns of files to leave out.
            parents: whether to keep the parent directories of each source.

        Source: Dockerfile reference, "COPY".
        """
        stages, origin = self.stages, ""
        if isinstance(from_, Build):
            if from_ not in stages:
                stages = (*stages, from_)
            origin = f"stage-{stages.index(from_)}"
        elif from_ is not None:
            origin = from_
        more = {"from": origin, "exclude": tuple(exclude), "parents": parents and "true"}
        return attrs.evolve(
            self._with("COPY", _literal(sources_and_target), chown=chown, chmod=chmod, **more), stages=stages
        )

    def add(
        self,
        *sources_and_target: str,
        chown: str = "",
        chmod: str = "",
        checksum: str = "",
        keep_git_dir: bool = False,
    ) -> Build:
        """Copy files to the image. Archives are unpacked, addresses and git repositories are fetched.

        Args:
            sources_and_target: as for :meth:`copy`; also addresses, and repositories such as
                ``https://example.org/repo.git#v1:docs``.
            chown: ``user[:group]``. Default: root.
            chmod: permission bits. Default: unchanged.
            checksum: the digest of the fetched file, or the commit.
            keep_git_dir: whether to keep the directory ``.git`` of a repository.

        Source: Dockerfile reference, "ADD".
        """
        keep = keep_git_dir and "true"
        flags = {"chown": chown, "chmod": chmod, "checksum": checksum, "keep_git_dir": keep}
        return self._with("ADD", _literal(sources_and_target), **flags)

    def env(self, **variables: str) -> Build:
        """Set environment variables. Source: Dockerfile reference, "ENV"."""
        return self._with("ENV", _pairs(variables))

    def label(self, labels: Mapping[str, str] | None = None, **more: str) -> Build:
        """Set labels. Source: Dockerfile reference, "LABEL"."""
        return self._with("LABEL", _pairs({**(labels or {}), **more}))

    def workdir(self, path: str) -> Build:
        """Set the working directory, and create it. Source: Dockerfile reference, "WORKDIR"."""
        return self._with("WORKDIR", _quoted(path))

    def user(self, user: str) -> Build:
        """Set the user that runs commands. Source: Dockerfile reference, "USER"."""
        return self._with("USER", _quoted(user))

    def entrypoint(self, *words: str) -> Build:
        """Set the entrypoint. Source: Dockerfile reference, "ENTRYPOINT"."""
        return self._with("ENTRYPOINT", json.dumps(list(words)))

    def command(self, *words: str) -> Build:
        """Set the default command. Source: Dockerfile reference, "CMD"."""
        return self._with("CMD", json.dumps(list(words)))

    def shell(self, *words: str) -> Build:
        """Set the shell of :meth:`run`. Source: Dockerfile reference, "SHELL"."""
        return self._with("SHELL", json.dumps(list(words)))

    def expose(self, *ports: int | str) -> Build:
        """Declare the ports on which it listens. Source: Dockerfile reference, "EXPOSE"."""
        return self._with("EXPOSE", " ".join(map(str, ports)))

    def volume(self, *paths: str) -> Build:
        """Declare the directories that contain data. Source: Dockerfile reference, "VOLUME"."""
        return self._with("VOLUME", _literal(paths))

    def stop_signal(self, name: str) -> Build:
        """Set the signal that ends a container. Source: Dockerfile reference, "STOPSIGNAL"."""
        return self._with("STOPSIGNAL", name)

    def healthcheck(self, *words: str, interval: str = "", timeout: str = "", retries: int = 0) -> Build:
        """Set the command that checks whether it works. Without arguments, disable the check.

        Source: Dockerfile reference, "HEALTHCHECK".
        """
        text = f"CMD {json.dumps(list(words))}" if words else "NONE"
        return self._with("HEALTHCHECK", text, interval=interval, timeout=timeout, retries=retries or "")

    @property
    def dockerfile(self) -> Dockerfile:
        """The same build as a Dockerfile."""
        stages: list[Stage] = []
        _collect(self, stages, "")
        return Dockerfile(stages=tuple(stages))

    @explained
    def build(self, *, context: str | os.PathLike[str] | None = None, **options: Unpack[BuildOptions]) -> Image:
        """Build the image.

        Args:
            context: the directory from which :meth:`copy` copies.
            options: see :class:`containerkit.image.options.BuildOptions`.

        Raises:
            SpecError: a step is invalid.
            ExitError: a command failed.
            ImageError: a base image is not available.
        """
        source = None if context is None else context_source(context)
        return _run(self.dockerfile, source, options)


def _collect(build: Build, stages: list[Stage], name: str) -> str:
    """Add the stages that a build needs, then the build itself. Return its name."""
    names = {
        f"stage-{number}": _collect(inner, stages, f"s{len(stages)}-{number}")
        for number, inner in enumerate(build.stages)
    }
    steps: list[Instruction] = []
    for step in build.steps:
        origin = step.flag("from")
        flags = {**step.flags, "from": (names[origin],)} if origin in names else step.flags
        steps.append(attrs.evolve(step, flags=flags, line=len(steps) + 1))
    unique = f"{name}x{len(stages)}" if name else ""
    stages.append(Stage(base=build.base, name=unique, platform=build.platform, instructions=tuple(steps)))
    return unique
