"""Parsers of argparse, for all command lines that :mod:`containerkit.cli.plain` does not read."""

from __future__ import annotations

import argparse
import os
import sys

from containerkit.cli import COMMANDS, FAILED, PLACES, elsewhere
from containerkit.cli.commands import HOST_NAMES, complain, verb_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["Parser", "parser_of"]


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in the same form as the rest of the command line."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.register("action", "append_named", AppendNamed)
        self.register("action", "elsewhere", _Elsewhere)

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with the status of containerkit's own failures."""
        complain(f"{self.prog.removeprefix('containerkit ')}: {message} (see '{self.prog} --help')")
        raise SystemExit(FAILED)


class AppendNamed(argparse.Action):
    """Collects the values of several options, each with the name of its option, in their order."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), (option_string, values)])


class _Elsewhere(argparse.Action):
    """Refuses an option and names the replacement."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> NoReturn:
        """Exit with the error."""
        del namespace, values
        parser.error(f"{option_string} is not an option here: {self.metavar}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Finds the width of the terminal without :mod:`shutil`, which would be imported for each command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_columns() - 2)


def _columns() -> int:
    """Return the width of the terminal, as :func:`shutil.get_terminal_size` does."""
    try:
        columns = int(os.environ.get("COLUMNS", ""))
    except ValueError:
        columns = 0
    if columns <= 0:
        try:
            columns = os.get_terminal_size(sys.__stdout__.fileno()).columns  # type: ignore[union-attr] # None is caught
        except (AttributeError, ValueError, OSError):
            columns = 0
    return columns if columns > 0 else 80


def parser_of(name: str, verb: Any = None) -> Parser:
    """Return the parser of a command.

    Args:
        name: one of :data:`containerkit.cli.COMMANDS`.
        verb: the object with its ``define`` (default: it is looked up).
    """
    verb = verb_of(name) if verb is None else verb
    parser = Parser(
        prog=f"containerkit {name}",
        description=verb.__doc__ if name not in PLACES else f"{COMMANDS[name].capitalize()}.",
        epilog=getattr(verb, "EPILOG", None),
        formatter_class=_Formatter,
        add_help=name not in HOST_NAMES,  # -h is the host name there, as in Docker
        allow_abbrev=False,  # an option of a later version must not change the meaning of a script
    )
    if name in HOST_NAMES:
        parser.add_argument("--help", action="help", help="show this help message and exit")
    verb.define(parser)
    elsewhere.add(name, parser)
    return parser
