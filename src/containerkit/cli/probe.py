"""Report what the caller can do on this host, found by trials, and how to enable the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from containerkit._linux.features import probe

if TYPE_CHECKING:
    import argparse

__all__ = ["define", "main"]


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the report and return 0.

    Raises:
        SetupError: the trials could not be run.
    """
    report = probe()
    if options.json:
        import json

        # Sets have no order, and JSON has no sets.
        text = json.dumps(attrs.asdict(report), indent=2, default=sorted)
    else:
        text = str(report)
    print(text, flush=True)  # noqa: T201 - a command line speaks
    return 0
