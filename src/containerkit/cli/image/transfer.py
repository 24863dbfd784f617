"""``containerkit image pull`` and ``push``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli.image.verb import Verb, find, image_argument, pinned, platform_option, progress, quiet_option, say
from containerkit.cli.image.verb import store as chosen_store

if TYPE_CHECKING:
    import argparse

__all__ = ["VERBS"]


def _define_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="NAME", help="such as alpine:3.20 or ghcr.io/org/app@sha256:...")
    platform_option(parser)
    parser.add_argument("--all-platforms", action="store_true", help="the images of all platforms, for a later push")
    parser.add_argument("--no-unpack", action="store_true", help="do not unpack the layers until they are needed")
    quiet_option(parser)


def _pull(options: argparse.Namespace) -> int:
    from containerkit.image import Image

    with progress(options) as shown:
        image = Image.pull(
            options.image,
            platform=options.platform,
            all_platforms=options.all_platforms,
            store=chosen_store(options),
            unpack=not options.no_unpack,
            progress=shown,
        )
    say(pinned(image))
    return 0


def _define_push(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    parser.add_argument("target", metavar="NAME", nargs="?", help="the destination (default: the image's own name)")
    parser.add_argument("--all-platforms", action="store_true", help="the complete index that contains the image")
    quiet_option(parser)


def _push(options: argparse.Namespace) -> int:
    from containerkit.image import Reference

    image = find(options, options.image)
    with progress(options) as shown:
        digest = image.push(options.target, all_platforms=options.all_platforms, progress=shown)
    target = image.reference if options.target is None else Reference.parse(options.target)
    assert target is not None
    say(str(target.with_digest(str(digest))))
    return 0


VERBS: Final = (
    Verb("pull", "pull an image from its registry and print its name with its digest", _define_pull, _pull),
    Verb("push", "push an image to a registry and print its name there with its digest", _define_push, _push),
)
