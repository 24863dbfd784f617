"""Create a container without starting it, and print its id. ``containerkit start`` starts it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cli import arguments, keeping, run

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]

define = run.define


def main(options: argparse.Namespace) -> int:
    """Create its record. Return 0.

    Raises:
        ContainerError: it can't be created.
    """
    options.detach = True
    keeping.check(options)
    image = arguments.image(options)
    words = arguments.words(options, image)
    return keeping.detach(options, image, words, arguments.container(options, image), start=False)
