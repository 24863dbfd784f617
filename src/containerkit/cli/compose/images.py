"""Verbs for the images of a project: build, pull, push and commit them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.compose.common import load, note, remote, show, with_needed
from containerkit.errors import ContainerError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from containerkit.image import Image
    from containerkit.project.project import Project

__all__ = ["VERBS"]


def _chosen(project: Project, options: argparse.Namespace, *, deps: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the selected services: their names and keys."""
    names = with_needed(project, options.services) if deps else options.services
    for name, keys in project.model["services"].items():
        if not names or name in names:
            yield name, keys


def _build(options: argparse.Namespace) -> int:
    from containerkit.project.images import build_image, build_order
    from containerkit.project.support import unsupported_builds

    project = load(options, services=options.services)
    chosen = dict(_chosen(project, options, deps=options.with_dependencies))
    unsupported_builds(project, chosen)
    extra = dict(each.partition("=")[::2] for each in options.build_arg)
    log: Callable[[str], object] = (lambda _: None) if options.quiet else note
    for name in build_order(chosen):
        if "build" in (keys := chosen[name]):
            build = {**keys["build"], "args": {**keys["build"].get("args", {}), **extra}}
            image = build_image(
                project, name, {**keys, "build": build}, no_cache=options.no_cache, pull=options.pull, log=log
            )
            show(f"{name} {image.id}")
            if options.push:
                _push_one(image, quiet=options.quiet)
    return 0


def _pull(options: argparse.Namespace) -> int:
    from containerkit.image import Image

    project = load(options, services=options.services)
    failed = 0
    for _, keys in _chosen(project, options, deps=options.include_deps):
        if "image" not in keys or ("build" in keys and options.ignore_buildable):
            continue
        with ExitStack() as stack:
            try:
                shown = _progress(stack, quiet=options.quiet)
                platform = keys.get("platform")
                if options.policy == "missing":
                    Image.get(keys["image"], pull="missing", platform=platform)
                else:
                    Image.pull(keys["image"], platform=platform, progress=shown)
            except ContainerError as error:
                failed += _failed(error, ignored=options.ignore_pull_failures)
    return min(failed, 1)


def _push(options: argparse.Namespace) -> int:
    from containerkit.image import Image
    from containerkit.project.images import tag_of

    project = load(options, services=options.services)
    failed = 0
    for name, keys in _chosen(project, options, deps=options.include_deps):
        if "build" in keys and "image" in keys:
            try:
                _push_one(Image.get(tag_of(project, name, keys), pull="never"), quiet=options.quiet)
            except ContainerError as error:
                failed += _failed(error, ignored=options.ignore_push_failures)
    return min(failed, 1)


def _push_one(image: Image, *, quiet: bool) -> None:
    with ExitStack() as stack:
        digest = image.push(progress=_progress(stack, quiet=quiet))
    assert image.reference is not None
    show(str(image.reference.with_digest(str(digest))))


def _progress(stack: ExitStack, *, quiet: bool) -> Any:
    from containerkit.image.progress import silent, terminal_progress

    return silent if quiet else stack.enter_context(terminal_progress())


def _failed(error: ContainerError, *, ignored: bool) -> int:
    """Report a failure that is to be ignored, and return 1; raise any other."""
    if not ignored:
        raise error
    note(f"containerkit: {error}")
    return 1


def _commit(options: argparse.Namespace) -> int:
    show(
        remote(options).ask(
            "commit", service=options.service, index=options.index, reference=options.reference, author=options.author,
            message=options.message,
        )
    )  # fmt: skip
    return 0


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "build": _build, "pull": _pull, "push": _push, "commit": _commit,
}  # fmt: skip
