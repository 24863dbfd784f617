"""List the containers that the OCI command has on record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.records import keeper

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]

_COLUMNS: Final = ("id", "pid", "status", "bundle", "created")
_ALIVE: Final = ("created", "running", "paused")


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-a", "--all", action="store_true", help="also those that have stopped or are being created")
    parser.add_argument("--json", action="store_true", help="print it for programs")
    parser.add_argument("--root", metavar="DIR", help="where they are on record (default: as for containerkit-oci)")


def main(options: argparse.Namespace) -> int:
    """Print them; returns 0.

    Raises:
        StateError, SetupError: the records can't be looked for.
    """
    states = [state for state in keeper().states(options.root) if options.all or state["status"] in _ALIVE]
    if options.json:
        import json

        text = json.dumps([{name: state[name] for name in _COLUMNS} for state in states], indent=2)
    else:
        rows = [[name.upper() for name in _COLUMNS]]
        rows += [[str(state[name]) for name in _COLUMNS] for state in states]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
        text = "\n".join(lines)
    print(text, flush=True)  # noqa: T201 - a command line speaks
    return 0
