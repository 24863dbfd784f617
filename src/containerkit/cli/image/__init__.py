"""Pull, push, build, convert and inspect images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli import elsewhere
from containerkit.cli.image import files, making, names, transfer

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "add_store", "define", "main"]

EPILOG: Final = """\
An IMAGE is a name such as alpine:3.20 or registry.example.org/team/app@sha256:..., or the first digits of its digest or
id. Images are kept in /var/lib/containerkit/images for root, for other users below $XDG_DATA_HOME.
$CONTAINERKIT_IMAGES sets another directory.

  containerkit image pull debian:12
  containerkit image build --tag app:1 .
  containerkit image list
  containerkit run --image app:1 -- --help
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add a parser for each verb."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in (*transfer.VERBS, *names.VERBS, *files.VERBS, *making.VERBS):
        inner = verbs.add_parser(
            verb.name,
            aliases=verb.aliases,
            help=verb.purpose,
            description=f"{verb.purpose[0].upper()}{verb.purpose[1:]}.",
            epilog=verb.epilog,
            formatter_class=parser.formatter_class,
            allow_abbrev=False,
        )
        verb.define(inner)
        add_store(inner)
        elsewhere.add({"remove": "rmi", "list": "images"}.get(verb.name, verb.name), inner)
        inner.set_defaults(verb=verb.main)


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the option for the store."""
    parser.add_argument("--store", metavar="DIR", help="the directory of the images (default: the user's store)")


def main(options: argparse.Namespace) -> int:
    """Run a verb and return the exit status.

    Raises:
        ContainerError: the verb failed.
    """
    return int(options.verb(options))
