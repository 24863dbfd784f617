"""A complete build: find the needed stages, build them in order, and store the resulting image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError
from containerkit.image.build.copying import Source
from containerkit.image.build.steps import StageBuilder
from containerkit.image.build.words import expand, split_words
from containerkit.image.config import DEFAULT_PATH, Defaults, ImageConfig, timestamp
from containerkit.image.image import Image
from containerkit.archive.view import View
from containerkit.image.platform import Platform
from containerkit.image.progress import ProgressEvent
from containerkit.image.store.cache import Cache, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.image.build.dockerfile import Dockerfile, Stage
    from containerkit.image.build.running import Around
    from containerkit.image.options import Pull
    from containerkit.image.progress import Progress, Status
    from containerkit.image.reference import Reference
    from containerkit.image.store import Lease, Store

__all__ = ["ENTITLEMENTS", "Engine"]

ENTITLEMENTS: Final = ("network.host", "security.insecure")
"""Permissions of commands that the caller of a build must grant. Source: docker buildx build, "--allow"."""

_SCRATCH = "scratch"


class Engine:
    """One build.

    Args:
        dockerfile: the Dockerfile.
        store: the store for base images and results.
        lease: a claim that covers them.
        context: the source of COPY, or None.
        contexts: more sources by name, which precede stages and images: directories, or names of images.
        around: what commands find around them.
        labels: more labels of the image.
        arguments: values for ARG.
        platform: the platform to build for.
        pull: when to pull base images: ``missing``, ``always`` or ``never``.
        network: ``none``, ``internet`` or ``host``.
        egress: with ``internet``: the only destinations that may be reached; None for all.
        allow: what single commands may request: some of ``ENTITLEMENTS``.
        secrets: contents by id.
        log: called with each line that a command writes.
        progress: called with each step.
        epoch: in seconds; later times are set to it. None leaves times unchanged.
        cached: whether to use results of earlier builds.
    """

    def __init__(
        self,
        dockerfile: Dockerfile,
        store: Store,
        lease: Lease,
        *,
        context: Source | None,
        contexts: Mapping[str, Source | str],
        around: Around,
        labels: Mapping[str, str],
        arguments: Mapping[str, str],
        platform: Platform,
        pull: Pull,
        network: str,
        egress: tuple[str, ...] | None,
        allow: frozenset[str],
        secrets: Mapping[str, bytes],
        log: Callable[[str], None],
        progress: Progress,
        epoch: int | None,
        cached: bool,
    ) -> None:
        self.dockerfile = dockerfile
        self.store = store
        self.lease = lease
        self.context = context
        self.contexts = contexts
        self.around = around
        self.labels = dict(labels)
        self.arguments = dict(arguments)
        self.platform = platform
        self.pull = pull
        self.network = network
        self.egress = egress
        self.allow = allow
        self.secrets = secrets
        self.log = log
        self.progress = progress
        self.epoch = epoch
        self.escape = dockerfile.escape
        self.cache = Cache(store, enabled=cached)
        self.global_arguments = self._platform_arguments()
        self._built: dict[int, StageBuilder] = {}
        self._images: dict[str, Image] = {}
        self._current = 0
        self._read_global_arguments()

    def _platform_arguments(self) -> dict[str, str]:
        host = Platform.host()
        found: dict[str, str] = {}
        for prefix, platform in (("TARGET", self.platform), ("BUILD", host)):
            found |= {
                f"{prefix}PLATFORM": str(platform),
                f"{prefix}OS": platform.os,
                f"{prefix}ARCH": platform.architecture,
                f"{prefix}VARIANT": platform.variant,
            }
        return found

    def _read_global_arguments(self) -> None:
        for one in self.dockerfile.arguments:
            try:
                words = split_words(one.text, self.global_arguments, self.escape)
            except SpecError as error:
                raise one.problem(str(error)) from error
            for word in words:
                name, equals, default = word.partition("=")
                if name in self.arguments:
                    self.global_arguments[name] = self.arguments[name]
                elif equals:
                    self.global_arguments[name] = default

    def timestamp(self) -> str:
        """Return the time for new objects."""
        return timestamp(self.epoch)

    def report(self, shown: str, status: Status) -> None:
        """Report that a step is done, or was in the cache."""
        self.progress(ProgressEvent(action="build", subject=shown.partition("\n")[0], status=status))

    def build(self, target: str, reference: Reference | None) -> Image:
        """Build a stage and everything it needs, and store its image.

        Args:
            target: the name or number of the stage; empty for the last one.
            reference: the image's name, or None.

        Raises:
            SpecError: the Dockerfile is malformed.
            ExitError: a command failed.
            ImageError: a base image is not available.
        """
        stage = self.stage(self.dockerfile.find(target))
        layers = tuple(blob for blob, _ in stage.layers)
        config = stage.config
        if self.labels:
            defaults = attrs.evolve(config.defaults, labels={**config.defaults.labels, **self.labels})
            config = config.evolve(defaults=defaults)
        if not config.created:
            config = config.evolve(created=self.timestamp() if self.epoch is not None else "1970-01-01T00:00:00Z")
        manifest = self.store.add_image(config, layers, reference, self.lease)
        return Image(store=self.store, manifest=manifest, reference=reference)

    def stage(self, index: int) -> StageBuilder:
        """Return a stage, which is built once. The stages that it needs are built before it, without recursion."""
        for one in (*self._needed(index), index):
            self._build_stage(one)
        return self._built[index]

    def _needed(self, index: int) -> list[int]:
        """Return the earlier stages that it needs and that are not built yet, the lowest first."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            one = waiting.pop()
            stage = self.dockerfile.stages[one]
            flags = [value for step in stage.instructions for value in step.flags.get("from", ())]
            named = [self._stage_named(self._expanded(stage, stage.base), one)]
            for flag in flags:
                before = self._stage_named(flag, one)
                named.append(int(flag) if before is None and flag.isdecimal() and int(flag) < one else before)
            waiting += [before for before in named if before is not None and before not in found | self._built.keys()]
            found.update(before for before in named if before is not None)
        return sorted(found)

    def _build_stage(self, index: int) -> None:
        if index not in self._built:
            stage = self.dockerfile.stages[index]
            outer, self._current = self._current, index
            try:
                builder = self._begin(stage, index)
                builder.run_triggers()
                for one in stage.instructions:
                    builder.execute(one)
            finally:
                self._current = outer
            self._built[index] = builder

    def _begin(self, stage: Stage, index: int) -> StageBuilder:
        name = self._expanded(stage, stage.base)
        platform = self.platform
        if stage.platform:
            platform = Platform.parse(self._expanded(stage, stage.platform))
        if not name:
            raise SpecError(f"line {stage.line}: FROM: {stage.base} is empty; give the argument a value")
        if name == _SCRATCH:
            config = ImageConfig(platform=platform, defaults=Defaults(env={"PATH": DEFAULT_PATH}))
            return StageBuilder(self, config, [], key_of(_SCRATCH, str(platform)))
        if isinstance(self.contexts.get(name), Source):
            raise SpecError(f"line {stage.line}: FROM: the context {name!r} is a directory; use FROM scratch and COPY --from")
        before = self._stage_named(name, index)
        if before is not None:
            base = self.stage(before)
            return StageBuilder(self, base.config, list(base.layers), base.key)
        image = self._image(name, platform)
        config = image.config
        layers = list(zip(image.manifest.layers, config.diff_ids, strict=True))
        self.lease.claim([image.digest, image.id, *(blob.digest for blob, _ in layers), *config.diff_ids])
        return StageBuilder(self, config, layers, key_of("image", str(image.id)))

    def _expanded(self, stage: Stage, text: str) -> str:
        try:
            return expand(text, self.global_arguments, self.escape)
        except SpecError as error:
            raise SpecError(f"line {stage.line}: FROM: {error}") from error

    def _stage_named(self, name: str, before: int) -> int | None:
        if name in self.contexts:
            return None
        for index, stage in enumerate(self.dockerfile.stages[:before]):
            if stage.name and stage.name == name.lower():
                return index
        return None

    def _image(self, name: str, platform: Platform) -> Image:
        other = self.contexts.get(name)
        name = other if isinstance(other, str) else name
        key = f"{name} {platform}"
        if key not in self._images:
            self._images[key] = Image.get(
                name, pull=self.pull, platform=platform, store=self.store, progress=self.progress
            )
        return self._images[key]

    def source(self, origin: str) -> Source:
        """Return the source for ``--from``: a further context, a stage by name or number, an image, or the build context.

        Args:
            origin: the name; empty for the build context.

        Raises:
            SpecError: the build has no context.
            ImageError: the image is not available.
        """
        if not origin:
            if self.context is None:
                raise SpecError("the build has no context to copy from (hint: pass context=DIRECTORY)")
            return self.context
        if isinstance(other := self.contexts.get(origin), Source):
            return other
        index = self._stage_named(origin, self._current)
        if index is None and origin.isdecimal() and int(origin) < self._current:
            index = int(origin)
        if index is not None:
            return Source(view=self.stage(index).view(), name=f"stage {origin}")
        image = self._image(origin, self.platform)
        return Source(view=View(image.unpack(self.lease)), name=f"image {origin}")
