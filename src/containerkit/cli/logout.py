"""Delete the name and password for a registry from all places where container tools store them."""

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
    """Delete the credentials. Return 0, even if there were none.

    Raises:
        ImageError: a file of credentials is malformed, or a helper program fails.
    """
    from containerkit.image.registry import forget_credentials

    registry = checked_registry(options.registry)
    found = forget_credentials(registry)
    said = f"logged out of {registry}" if found else f"there were no credentials for {registry}"
    print(said, flush=True)  # noqa: T201 - the command line prints its output
    return 0
