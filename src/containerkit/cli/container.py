"""The commands for containers by their long names, such as ``container ls``; and ``container prune``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli import LONG
from containerkit.cli.listing import say

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main", "prune"]

EPILOG: Final = f"""\
These are also commands without 'container': {", ".join(LONG)}.
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    pruning = verbs.add_parser("prune", help="remove detached containers that are not running")
    pruning.add_argument("-f", "--force", action="store_true", help="do not ask")


def main(options: argparse.Namespace) -> int:
    """Remove them. Return 0.

    Raises:
        SpecError: there is no terminal for the confirmation.
        ContainerError: a container can't be removed.
    """
    from containerkit.cli.system import confirmed

    if confirmed("remove all detached containers that are not running", force=options.force):
        for name in prune():
            say(name)
    return 0


def prune() -> list[str]:
    """Remove detached containers that are not running. Return their ids."""
    from containerkit.detached.container import containers

    removed = []
    for one in containers(all=True):
        if one.status in ("exited", "created", "dead"):
            one.remove()
            removed.append(one.id)
    return removed
