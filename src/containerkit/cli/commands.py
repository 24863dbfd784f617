"""Parses the options of a command, runs it, and turns errors into messages and exit statuses."""

from __future__ import annotations

import argparse
import sys
from errno import ENOENT, ENOTDIR
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

from containerkit.cli import COMMANDS, FAILED
from containerkit.errors import ContainerError, SetupError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Parser", "complain", "printable", "run"]

_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


class Parser(argparse.ArgumentParser):
    """Speaks of mistakes as all of the command line does."""

    def error(self, message: str) -> NoReturn:
        """Complain and end with the status of containerkit's own failures."""
        complain(f"{self.prog.removeprefix('containerkit ')}: {message} (see '{self.prog} --help')")
        raise SystemExit(FAILED)


def run(name: str, words: Sequence[str]) -> int:
    """Run one command.

    Args:
        name: one of :data:`containerkit.cli.COMMANDS`.
        words: its options and arguments.

    Returns:
        The exit status.
    """
    module = import_module(f"containerkit.cli.{name}")
    parser = Parser(
        prog=f"containerkit {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an option of a later version must not change what a script means
    )
    assert name in COMMANDS
    module.define(parser)
    try:
        return int(module.main(parser.parse_args(words)))
    except SystemExit as end:  # --help, or a mistake that was complained about
        return end.code if isinstance(end.code, int) else FAILED
    except (ContainerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        complain(": ".join((*getattr(error, "__notes__", ()), str(error))))
        return _status(error)


def complain(message: str) -> None:
    """Write a message to stderr, as ``containerkit: MESSAGE``; it may quote what somebody else says."""
    try:
        print(f"containerkit: {printable(message)}", file=sys.stderr, flush=True)  # noqa: T201 - a command line speaks
    except OSError:  # the terminal is gone, there is nobody to complain to
        return


def printable(text: str) -> str:
    """Return a text so that it can't steer a terminal: what is not printable is escaped, but for the ends of lines."""
    if text.isprintable():
        return text
    escape = str.maketrans({char: _escaped(char) for char in set(text) - {"\n"} if not char.isprintable()})
    return text.translate(escape)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def _status(error: Exception) -> int:
    """Return what a shell gives for a command that could not be started. Source: POSIX, XCU 2.8.2."""
    if isinstance(error, SetupError) and error.operation == "execve":
        return _NOT_FOUND if error.errno in (ENOENT, ENOTDIR) else _NOT_EXECUTABLE
    return FAILED
