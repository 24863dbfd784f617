"""Builds in Python, and the way in for Dockerfiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from containerkit import deputy
from containerkit.errors import SpecError
from containerkit.image.build.copying import context_source
from containerkit.image.build.dockerfile import Dockerfile, Instruction, Stage, parse_dockerfile
from containerkit.image.build.engine import ENTITLEMENTS, Engine
from containerkit.image.layers.tarwrite import source_date_epoch
from containerkit.image.platform import Platform
from containerkit.image.progress import silent
from containerkit.image.reference import Reference
from containerkit.image.store import Store

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping

    from containerkit.image.build.copying import Source
    from containerkit.image.image import Image
    from containerkit.image.progress import Progress

__all__ = ["Build", "build_dockerfile"]


def build_dockerfile(
    context: str | os.PathLike[str] | None = ".",
    *,
    dockerfile: str | os.PathLike[str] | None = None,
    text: str | None = None,
    **options: Any,
) -> Image:
    """Build an image from a Dockerfile.

    Args:
        context: the folder that it copies from; None for a build that copies nothing. Default: here.
        dockerfile: the file. Default: ``Dockerfile`` (or ``Containerfile``) in the context.
        text: its content, in the place of a file.
        options: as for :meth:`Build.build`.

    Raises:
        SpecError: it is not there, or malformed; the error names the line.
        ExitError: a command of it failed; ``stdout`` holds the last lines that it wrote.
        ImageError: a base image can't be had.

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


def _find(folder: Path) -> Path:
    for name in ("Dockerfile", "Containerfile"):
        if (folder / name).is_file():
            return folder / name
    raise SpecError(f"{folder} holds neither a Dockerfile nor a Containerfile")


def _run(dockerfile: Dockerfile, source: Source | None, options: dict[str, Any]) -> Image:
    known = {field.name for field in attrs.fields(_Options)}
    if unknown := sorted(set(options) - known):
        raise SpecError(f"build: unknown argument {unknown[0]!r}; there are {', '.join(sorted(known))}")
    chosen = _Options(**options)
    store = chosen.store or Store()
    tag = Reference.parse(chosen.tag) if isinstance(chosen.tag, str) else chosen.tag
    platform = Platform.parse(chosen.platform) if isinstance(chosen.platform, str) else chosen.platform
    settings = {
        "arguments": chosen.args, "platform": platform or Platform.host(), "pull": chosen.pull,
        "network": chosen.network, "allow": frozenset(chosen.allow),
        "secrets": _secrets(chosen.secrets), "cached": chosen.cache,
        "epoch": chosen.epoch if chosen.epoch is not None else source_date_epoch(),
    }  # fmt: skip
    log, progress = deputy.Callback(chosen.log), deputy.Callback(chosen.progress)
    built: Image = deputy.call(_build, store, dockerfile, source, settings, (chosen.target, tag), log, progress)
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
    """Build where files of all ids can be made, read and removed: layers and what containers leave hold such."""
    with store.lease() as lease:
        return Engine(dockerfile, store, lease, context=source, log=log, progress=progress, **settings).build(*target)


def _nothing(_: str) -> None:
    """Let a line go."""


def _entitlements(_: object, __: object, value: Collection[str]) -> None:
    if isinstance(value, str) or (unknown := sorted(set(value) - set(ENTITLEMENTS))):
        wrong = value if isinstance(value, str) else unknown[0]
        raise SpecError(f"build: allow must be some of {', '.join(ENTITLEMENTS)}, as a tuple, not {wrong!r}")


@attrs.frozen(kw_only=True)
class _Options:
    tag: str | Reference | None = None
    target: str = ""
    args: Mapping[str, str] = attrs.field(factory=dict)
    platform: str | Platform | None = None
    pull: str = "missing"
    network: str = attrs.field(default="none", validator=attrs.validators.in_(("none", "host")))
    allow: Collection[str] = attrs.field(default=(), validator=_entitlements)
    secrets: Mapping[str, bytes | str | os.PathLike[str]] = attrs.field(factory=dict)
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
    """Quote a word so that a Dockerfile means it literally."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _pairs(pairs: Mapping[str, str]) -> str:
    return " ".join(f"{key}={_quoted(str(value))}" for key, value in pairs.items())


def _literal(words: tuple[str, ...]) -> str:
    return json.dumps([word.replace("\\", "\\\\").replace("$", "\\$") for word in words])


@attrs.frozen(kw_only=True)
class Build:
    """A build in Python: each method returns a new one with a step more. Nothing happens before :meth:`build`.

    What is passed is meant literally: no variable in it is replaced, except by the shell in :meth:`run`.

    Attributes:
        base: what it starts from: a reference, or ``scratch``.
        steps: what follows.
        stages: the builds that it copies from.
        platform: what the base must run on, or an empty string.
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
            platform: what it must run on. Default: what is built for.

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
        mounts: tuple[str, ...] = (),
        network: str = "",
        security: str = "",
    ) -> Build:
        """Run a command and keep what it changes.

        Args:
            command: a line for the shell, or words.
            mounts: as for ``--mount``, such as ``type=cache,target=/var/cache/apt``.
            network: ``none``, or ``host`` where the build allows it. Default: the build's.
            security: ``insecure`` for all capabilities and no filter, where the build allows it. Default: ``sandbox``.

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
        exclude: tuple[str, ...] = (),
        parents: bool = False,
    ) -> Build:
        """Copy files in.

        Args:
            sources_and_target: one or more sources, and the destination last.
            from_: another build or an image to copy from. Default: the build context.
            chown: ``user[:group]``. Default: root, or as in the other build or image.
            chmod: octal permission bits. Default: as they are.
            exclude: patterns of what is left out.
            parents: keep the folders above each source.

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
        """Copy files in, unpacking archives and fetching addresses and repositories of git.

        Args:
            sources_and_target: as for :meth:`copy`; also addresses, and repositories such as
                ``https://example.org/repo.git#v1:docs``.
            chown: ``user[:group]``. Default: root.
            chmod: permission bits. Default: as they are.
            checksum: the digest of what is fetched, or the commit.
            keep_git_dir: keep a repository's folder ``.git``.

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
        """Set the working directory, and make it. Source: Dockerfile reference, "WORKDIR"."""
        return self._with("WORKDIR", _quoted(path))

    def user(self, user: str) -> Build:
        """Set who runs commands. Source: Dockerfile reference, "USER"."""
        return self._with("USER", _quoted(user))

    def entrypoint(self, *words: str) -> Build:
        """Set the program. Source: Dockerfile reference, "ENTRYPOINT"."""
        return self._with("ENTRYPOINT", json.dumps(list(words)))

    def command(self, *words: str) -> Build:
        """Set the default command. Source: Dockerfile reference, "CMD"."""
        return self._with("CMD", json.dumps(list(words)))

    def shell(self, *words: str) -> Build:
        """Set what runs a line of :meth:`run`. Source: Dockerfile reference, "SHELL"."""
        return self._with("SHELL", json.dumps(list(words)))

    def expose(self, *ports: int | str) -> Build:
        """Say which ports it listens on. Source: Dockerfile reference, "EXPOSE"."""
        return self._with("EXPOSE", " ".join(map(str, ports)))

    def volume(self, *paths: str) -> Build:
        """Say which folders hold data. Source: Dockerfile reference, "VOLUME"."""
        return self._with("VOLUME", _literal(paths))

    def stop_signal(self, name: str) -> Build:
        """Say what ends a container. Source: Dockerfile reference, "STOPSIGNAL"."""
        return self._with("STOPSIGNAL", name)

    def healthcheck(self, *words: str, interval: str = "", timeout: str = "", retries: int = 0) -> Build:
        """Say how to find out whether it works; without words, that nothing does.

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

    def build(self, *, context: str | os.PathLike[str] | None = None, **options: Any) -> Image:
        """Build the image.

        Args:
            context: the folder that :meth:`copy` copies from.
            options: ``tag`` (its name), ``target`` (a stage), ``args`` (values for ARG), ``platform``, ``pull``
                (``missing``, ``always``, ``never``), ``network`` of its commands (``none`` or ``host``; default
                ``none``), ``allow`` (what single commands may ask for: ``network.host``, ``security.insecure``; default
                nothing), ``secrets`` (contents, or paths as :class:`pathlib.Path`, by id), ``cache`` (use what earlier
                builds made; default True), ``epoch`` (seconds that no time may be younger than; default
                ``SOURCE_DATE_EPOCH``), ``store``, ``log`` (called with each line that a command writes) and
                ``progress`` (called with each step).

        Raises:
            SpecError: a step can't be.
            ExitError: a command failed.
            ImageError: a base image can't be had.
        """
        source = None if context is None else context_source(context)
        return _run(self.dockerfile, source, options)


def _collect(build: Build, stages: list[Stage], name: str) -> str:
    """Add the stages that a build needs, then the build itself; return its name."""
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
