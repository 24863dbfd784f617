"""The commands for detached containers."""

from __future__ import annotations

import re
import sys

from containerkit.cli.commands import complain, printable
from containerkit.errors import ContainerError, SpecError
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, Final

    from containerkit.detached.container import Detached

__all__ = ["Verb", "check_template", "for_each", "formatted", "say", "say_safely", "table"]


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


_FIELD: Final = r"\{\{\s*(json\s+)?((?:\.\w+)+|\.)\s*\}\}"


def check_template(template: str) -> None:
    """Refuse a template that contains anything but fields.

    Raises:
        SpecError: anything else in double braces.
    """
    if "{{" in template and "{{" in re.sub(_FIELD, "", template):
        raise SpecError(
            f"--format {template!r}: only fields are supported, such as {{{{.Name}}}} and {{{{json .State}}}}"
        )


def formatted(template: str, value: Any) -> str:
    """Return a template of Docker's with its fields filled in: ``{{.State.Status}}``, ``{{json .Config}}``.

    Raises:
        SpecError: anything else in double braces, or an unknown field.
    """
    import json

    check_template(template)

    def fill(found: re.Match[str]) -> str:
        at = value
        for name in found[2].split(".")[1:]:
            if name == "":
                break
            if not isinstance(at, dict) or name not in at:
                known = ", ".join(at) if isinstance(at, dict) else "none"
                raise SpecError(f"--format: there is no field {found[2]!r}; the fields are {known}")
            at = at[name]
        if found[1] or isinstance(at, (dict, list)):
            return json.dumps(at)
        return str(at).lower() if isinstance(at, bool) else "" if at is None else str(at)

    return re.sub(_FIELD, fill, template)
