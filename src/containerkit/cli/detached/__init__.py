"""The commands for detached containers."""

from __future__ import annotations

import sys

from containerkit.cli.commands import complain, printable
from containerkit.errors import ContainerError
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from containerkit.detached.container import Detached

__all__ = ["Verb", "for_each", "formatted", "listed", "say", "say_safely", "table"]


class Verb(NamedTuple):
    """A command.

    Attributes:
        define: adds its options to a parser.
        main: runs it, and returns the exit status.
    """

    define: Callable[[argparse.ArgumentParser], None]
    main: Callable[[argparse.Namespace], int]


def say(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_safely(text: str) -> None:
    """Write a text that others may have chosen, such as a path, as one line that can't control a terminal."""
    say(printable(text).replace("\n", "\\n"))


def for_each(names: Iterable[str], do: Callable[[Detached], object]) -> int:
    """Call a function for each container, and print the given name. After a failure continue with the next container.

    Returns:
        The exit status: 1 if a call has failed.
    """
    from containerkit.detached.container import find

    status = 0
    for name in names:
        try:
            do(find(name))
        except ContainerError as error:
            complain(str(error))
            status = 1
        else:
            say(name)
    return status


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text in columns. The first row contains the titles."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def formatted(template: str, value: Any) -> str:
    """Return a template of Docker's filled in from a value, see :class:`containerkit.cli.gotemplate.Template`.

    Raises:
        SpecError: the template is malformed, or there is no such field.
    """
    from containerkit.cli.gotemplate import Template

    return Template(template)(value)


def listed(template: str, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each row: by a template, as a table after ``table``, or as JSON for ``json``.

    Raises:
        SpecError: the template is malformed, or there is no such field.
    """
    from containerkit.cli.gotemplate import Template, titles

    if template == "json":
        template = "{{json .}}"
    word, _, rest = template.replace(r"\t", "\t").partition(" ")
    if word != "table" or not rest:
        yield from map(Template(template), rows)
        return
    fill = Template(rest)
    cells = [fill(row).split("\t") for row in (titles(), *rows)]
    most = max(map(len, cells))
    yield table([[*row, *[""] * (most - len(row))] for row in cells])
