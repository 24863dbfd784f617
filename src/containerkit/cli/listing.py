"""Lists as a table, as JSON, by a template, or as names. All commands that list share these options."""

from __future__ import annotations

import attrs

from containerkit.cli.detached import formatted, listed, say, table
from containerkit.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

__all__ = ["Listing", "formatted", "inspect", "listed", "names_wanted", "say", "table"]


@attrs.frozen
class Listing:
    """One kind of list.

    Args:
        columns: the fields that the table shows.
        key: the field that ``--quiet`` prints.
    """

    columns: tuple[str, ...]
    key: str = attrs.field(kw_only=True)

    def define(self, parser: argparse.ArgumentParser) -> None:
        """Add ``--quiet``, ``--json`` and ``--format``."""
        parser.add_argument("-q", "--quiet", action="store_true", help=f"print only the field {self.key}")
        parser.add_argument("--json", action="store_true", help="print JSON: one array")
        parser.add_argument(
            "--format",
            metavar="TEMPLATE",
            help=f"a template of Go, such as '{{{{.{self.key}}}}}' or 'table {{{{.{self.key}}}}}'; or json",
        )
        parser.add_argument("--no-trunc", action="store_true", help="accepted: nothing is shortened")

    def show(self, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print rows.

        Raises:
            SpecError: the template is malformed, or there is no such field.
        """
        template = options.format
        if options.json:
            import json

            say(json.dumps(list(rows), indent=2))
        elif options.quiet:
            for row in rows:
                say(str(row[self.key]))
        elif template is None or template == "table":
            titles = [_title(name) for name in self.columns]
            say(table([titles, *([_shown(row[name]) for name in self.columns] for row in rows)]))
        else:
            for line in listed(template, map(dict, rows)):
                say(line)


def inspect(template: str | None, found: Sequence[dict[str, Any]]) -> None:
    """Print what an ``inspect`` has found: as one JSON array, or by a template.

    Raises:
        SpecError: the template is malformed, or there is no such field.
    """
    if template is None:
        import json

        say(json.dumps(found, indent=2))
    else:
        for line in listed(template, found):
            say(line)


def names_wanted(command: str, filters: Iterable[str]) -> list[str]:
    """Return the texts that a name must contain, from filters of the form ``name=TEXT``.

    Raises:
        SpecError: a filter of another kind.
    """
    wanted = []
    for text in filters:
        kind, _, value = text.partition("=")
        if kind != "name":
            raise SpecError(f"{command} --filter {text!r:.60}: only name=TEXT is supported")
        wanted.append(value)
    return wanted


def _title(name: str) -> str:
    return "".join(
        f" {c}" if c.isupper() and i and not name[i - 1].isupper() else c for i, c in enumerate(name)
    ).upper()


def _shown(value: Any) -> str:
    from containerkit.cli.commands import printable

    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    return "-" if value in (None, "") else printable(str(value)).replace("\n", "\\n")
