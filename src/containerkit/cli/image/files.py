"""``containerkit image save``, ``load``, ``import``, ``export`` and ``flatten``: images as files."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli import values
from containerkit.cli.image.verb import Verb, find, image_argument, pinned, platform_option, say
from containerkit.cli.image.verb import store as chosen_store
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse

    from containerkit.image import Defaults, Image

__all__ = ["VERBS"]

_STDOUT: Final = "/dev/stdout"


def _output_option(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help=f"the file to write{more}")


# --- save, load


def _define_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name, digest or id")
    platform_option(parser)
    parser.add_argument("-o", "--output", metavar="FILE", default="-", help="the file to write (default: stdout)")
    parser.add_argument(
        "--format",
        choices=("oci-archive", "docker-archive"),
        default="oci-archive",
        help="docker-archive is for 'docker load' (default: oci-archive)",
    )


def _save(options: argparse.Namespace) -> int:
    from containerkit.image.archive import save

    path: str | int = options.output
    if path == "-":
        _to_stdout("save")
        path = 1  # /dev/stdout is a name that could be replaced
    images = [find(options, text) for text in options.images]
    pairs = [(image.manifest.descriptor, str(image.reference or "")) for image in images]
    save(chosen_store(options), pairs, path, form=options.format)
    return 0


def _define_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", metavar="FILE", nargs="*", help="an archive in either format, or the directory of an image layout"
    )
    parser.add_argument("-i", "--input", metavar="FILE", dest="input", help="the same (default: stdin)")
    parser.add_argument("-q", "--quiet", action="store_true", help="do not print names")


def _load(options: argparse.Namespace) -> int:
    from containerkit.cli.image.streams import as_file
    from containerkit.image import Image

    for given in [*options.files, *([options.input] if options.input else [])] or ["-"]:
        with as_file(given) as path:
            for image in Image.load(path, store=chosen_store(options)):
                if not options.quiet:
                    say(pinned(image))
    return 0


def _to_stdout(verb: str) -> str:
    """Return the path of stdout.

    Raises:
        SpecError: it is a terminal.
    """
    if os.isatty(sys.stdout.fileno()):
        raise SpecError(f"{verb}: the output is a terminal; add --output FILE, or use a pipe")
    return _STDOUT


# --- import, export


def _define_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a tar archive of a root, compressed or not; '-' is stdin")
    parser.add_argument("name", metavar="NAME", nargs="?", help="the image's name (default: none)")
    platform_option(parser)
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="a message for its history")
    group = parser.add_argument_group("defaults for containers")
    group.add_argument("--command", metavar="WORDS", help="the default command, such as 'nginx -g \"daemon off;\"'")
    group.add_argument("--entrypoint", metavar="WORDS", help="the program that the command is passed to")
    group.add_argument("-e", "--env", metavar="NAME=VALUE", action="append", default=[], help="a variable; repeatable")
    group.add_argument("--user", metavar="USER[:GROUP]", default="", help="the user of commands")
    group.add_argument("--cwd", metavar="DIR", default="", help="the working directory")
    group.add_argument("--label", metavar="NAME=VALUE", action="append", default=[], help="a label; repeatable")


def _import(options: argparse.Namespace) -> int:
    from containerkit.cli.image.streams import as_file

    with as_file(options.file) as path:
        image = _imported(options, path)
    say(pinned(image))
    return 0


def _imported(options: argparse.Namespace, path: str) -> Image:
    from containerkit.image import Image

    return Image.import_tar(
        path,
        options.name,
        defaults=_defaults(options),
        platform=options.platform,
        store=chosen_store(options),
        comment=options.message,
    )


def _defaults(options: argparse.Namespace) -> Defaults:
    from containerkit.image import Defaults

    return Defaults(
        command=_words("--command", options.command),
        entrypoint=_words("--entrypoint", options.entrypoint),
        env=values.pairs("--env", options.env),
        user=options.user,
        working_dir=options.cwd,
        labels=values.pairs("--label", options.label),
    )


def _words(option: str, text: str | None) -> tuple[str, ...]:
    """Split a command line as a shell does."""
    if text is None:
        return ()
    import shlex

    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise SpecError(f"{option} {text!r}: {error}") from None


def _define_export(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    _output_option(parser, "; '-' is stdout")


def _export(options: argparse.Namespace) -> int:
    path = _to_stdout("export") if options.output == "-" else options.output
    find(options, options.image).export(path)
    return 0


# --- flatten


def _define_flatten(parser: argparse.ArgumentParser) -> None:
    image_argument(parser)
    _output_option(parser)
    forms: dict[str, Any] = {"choices": ("erofs", "squashfs"), "default": "erofs"}
    parser.add_argument("--format", **forms, help="the filesystem (default: erofs)")


def _flatten(options: argparse.Namespace) -> int:
    find(options, options.image).flatten(options.output, form=options.format)
    return 0


VERBS: Final = (
    Verb("save", "write images into one file that other container tools read", _define_save, _save),
    Verb("load", "read images from such files and print their names", _define_load, _load),
    Verb("import", "make an image from a tar archive of a root and print its name", _define_import, _import),
    Verb("export", "write the complete root of an image to a tar archive", _define_export, _export),
    Verb("flatten", "write the root of an image as a filesystem that the kernel can mount", _define_flatten, _flatten),
)
