"""Forget the name and password for a registry, wherever container tools keep them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cli.login import checked_registry

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io", help="host[:port]; docker.io")


def main(options: argparse.Namespace) -> int:
    """Forget them; returns 0, also when there were none.

    Raises:
        ImageError: a file of credentials is malformed, or a helper program fails.
    """
    from containerkit.image.registry import forget_credentials

    registry = checked_registry(options.registry)
    found = forget_credentials(registry)
    said = f"logged out of {registry}" if found else f"there was nothing to forget for {registry}"
    print(said, flush=True)  # noqa: T201 - a command line speaks
    return 0
