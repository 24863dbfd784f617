"""Remove objects that killed owners have left behind: control groups, and others that the kernel does not remove."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cli import FAILED
from containerkit.cli.commands import complain
from containerkit.gc import gc

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-q", "--quiet", action="store_true", help="do not list what is removed")


def main(options: argparse.Namespace) -> int:
    """Collect the garbage. Return 0, or 125 if something could not be removed."""
    swept = gc()
    if not options.quiet:
        for line in swept.removed:
            print(f"removed {line}", flush=True)  # noqa: T201 - a command line speaks
    for line in swept.left:
        complain(f"left behind: {line}")
    return FAILED if swept.left else 0
