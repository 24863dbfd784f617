"""The verbs of ``containerkit image`` that are also separate commands, as in Docker: ``pull``, ``images``, ``rmi``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli.image import add_store, files, making, names, transfer

if TYPE_CHECKING:
    import argparse

    from containerkit.cli.image.verb import Verb

__all__: list[str] = []

_VERBS: Final = {verb.name: verb for verb in (*transfer.VERBS, *names.VERBS, *files.VERBS, *making.VERBS)}
_NAMES: Final = {"images": "list", "rmi": "remove"}


class _Short:
    """A command that runs a verb of ``containerkit image``.

    Args:
        verb: the verb.
    """

    def __init__(self, verb: Verb) -> None:
        self._verb = verb
        self.EPILOG = verb.epilog

    def define(self, parser: argparse.ArgumentParser) -> None:
        """Add its options."""
        self._verb.define(parser)
        add_store(parser)

    def main(self, options: argparse.Namespace) -> int:
        """Run it, and return the exit status."""
        return self._verb.main(options)


def __getattr__(name: str) -> _Short:
    """Return the command of a name."""
    try:
        return _Short(_VERBS[_NAMES.get(name, name)])
    except KeyError:
        raise AttributeError(name) from None
