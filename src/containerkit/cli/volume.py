"""Make, list and remove volumes: directories that outlive containers, for ``run -v NAME:TARGET``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cli.detached import formatted, say, table
from containerkit.detached import volumes
from containerkit.detached.inspection import rfc3339

if TYPE_CHECKING:
    import argparse
    from typing import Any

__all__ = ["define", "main"]


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make one")
    create.add_argument("name", metavar="NAME")
    create.add_argument("-l", "--label", metavar="NAME[=VALUE]", action="append", default=[], help="repeatable")
    listed = verbs.add_parser("ls", help="list them")
    listed.add_argument("-q", "--quiet", action="store_true", help="print names only")
    listed.add_argument("--json", action="store_true", help="print it for programs")
    inspect = verbs.add_parser("inspect", help="print all that is known of them")
    inspect.add_argument("names", nargs="+", metavar="NAME")
    inspect.add_argument("-f", "--format", metavar="TEMPLATE", help="fields only, such as {{.Mountpoint}}")
    remove = verbs.add_parser("rm", help="remove them with all that is in them")
    remove.add_argument("names", nargs="+", metavar="NAME")
    verbs.add_parser("prune", help="remove those that no detached container has")


def main(options: argparse.Namespace) -> int:
    """Do it; returns 0.

    Raises:
        SpecError, StateError, SetupError, CleanupError: it can't be done.
    """
    if options.verb == "create":
        labels = {name: value for name, _, value in (text.partition("=") for text in options.label)}
        say(volumes.create(options.name, labels=labels).name)
    elif options.verb == "rm":
        for name in options.names:
            volumes.get(name).remove()
            say(name)
    elif options.verb == "prune":
        for name in volumes.prune():
            say(name)
    else:
        _show(options)
    return 0


def _show(options: argparse.Namespace) -> None:
    import json

    if options.verb == "inspect":
        chosen = [_facts(volumes.get(name)) for name in options.names]
        if options.format is not None:
            for facts in chosen:
                say(formatted(options.format, facts))
            return
        say(json.dumps(chosen, indent=2))
        return
    found = volumes.volumes()
    if options.json:
        say(json.dumps([_facts(volume) for volume in found], indent=2))
    elif options.quiet:
        for volume in found:
            say(volume.name)
    else:
        say(table([["NAME", "CREATED"], *[[volume.name, rfc3339(volume.created_at)] for volume in found]]))


def _facts(volume: volumes.Volume) -> dict[str, Any]:
    return {
        "Name": volume.name,
        "Mountpoint": volume.path,
        "CreatedAt": rfc3339(volume.created_at),
        "Labels": dict(volume.labels),
        "UsedBy": volume.users(),
    }
