"""Parse the options of a command, run it, and convert errors to messages and exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from errno import ENOENT, ENOTDIR
from importlib import import_module

from containerkit.cli import COMMANDS, FAILED, PLACES
from containerkit.errors import ContainerError, SetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final, NoReturn

__all__ = ["Parser", "complain", "parser_of", "printable", "run"]

_HOST_NAMES: Final = ("run", "create", "explain")
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


class Parser(argparse.ArgumentParser):
    """A parser that reports errors in the same form as the rest of the command line."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with the status of containerkit's own failures."""
        complain(f"{self.prog.removeprefix('containerkit ')}: {message} (see '{self.prog} --help')")
        raise SystemExit(FAILED)


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


def run(name: str, words: Sequence[str]) -> int:
    """Run one command.

    Args:
        name: a name in :data:`containerkit.cli.COMMANDS`.
        words: its options and arguments.

    Returns:
        The exit status.
    """
    verb = _verb(name)
    parser = parser_of(name, verb)
    try:
        options = parser.parse_args(["--help"] if list(words) == ["-h"] else words)
        options.words = words
        return int(verb.main(options))
    except SystemExit as end:  # --help, or an error that was printed already
        return end.code if isinstance(end.code, int) else FAILED
    except (ContainerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        complain(": ".join((*getattr(error, "__notes__", ()), str(error))))
        return _status(error)


def _verb(name: str) -> Any:
    """Return the object with ``define`` and ``main`` of a command: its module, or an attribute of a shared module."""
    module = import_module(f"containerkit.cli.{PLACES.get(name, name)}")
    return getattr(module, name) if name in PLACES else module


def parser_of(name: str, verb: Any = None) -> Parser:
    """Return the parser of a command.

    Args:
        name: one of :data:`containerkit.cli.COMMANDS`.
        verb: the object with its ``define`` (default: it is looked up).
    """
    verb = _verb(name) if verb is None else verb
    parser = Parser(
        prog=f"containerkit {name}",
        description=verb.__doc__ if name not in PLACES else f"{COMMANDS[name].capitalize()}.",
        epilog=getattr(verb, "EPILOG", None),
        formatter_class=_Formatter,
        add_help=name not in _HOST_NAMES,  # -h is the host name there, as in Docker
        allow_abbrev=False,  # an option of a later version must not change the meaning of a script
    )
    if name in _HOST_NAMES:
        parser.add_argument("--help", action="help", help="show this help message and exit")
    verb.define(parser)
    from containerkit.cli import elsewhere

    elsewhere.add(name, parser)
    return parser


def complain(message: str) -> None:
    """Write a message to stderr as ``containerkit: MESSAGE``. It may contain untrusted text."""
    try:
        print(f"containerkit: {printable(message)}", file=sys.stderr, flush=True)  # noqa: T201 - it prints errors
    except OSError:  # the terminal is gone
        return


def printable(text: str) -> str:
    """Return a text that can't control a terminal: characters that are not printable are escaped, except newlines."""
    if text.isprintable():
        return text
    escape = str.maketrans({char: _escaped(char) for char in set(text) - {"\n"} if not char.isprintable()})
    return text.translate(escape)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _status(error: Exception) -> int:
    """Return the status that a shell reports for a command that could not be started. Source: POSIX, XCU 2.8.2."""
    if isinstance(error, SetupError) and error.operation == "execve":
        return _NOT_FOUND if error.errno in (ENOENT, ENOTDIR) else _NOT_EXECUTABLE
    return FAILED
