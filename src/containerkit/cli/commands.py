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

__all__ = ["complain", "run"]

_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


class _Parser(argparse.ArgumentParser):
    """Speaks of mistakes as all of the command line does."""

    def error(self, message: str) -> NoReturn:
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
    parser = _Parser(
        prog=f"containerkit {name}",
        description=module.__doc__,
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # an option of a later version must not change what a script means
    )
    assert name in COMMANDS
    module.define(parser)
    try:
        options = parser.parse_args(words)
    except SystemExit as end:  # --help, or a mistake that was complained about
        return end.code if isinstance(end.code, int) else FAILED
    try:
        return int(module.main(options))
    except (ContainerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        complain(str(error))
        return _status(error)


def complain(message: str) -> None:
    """Write a message to stderr, as ``containerkit: MESSAGE``."""
    try:
        print(f"containerkit: {message}", file=sys.stderr, flush=True)  # noqa: T201 - a command line speaks
    except OSError:  # the terminal is gone, there is nobody to complain to
        return


def _status(error: Exception) -> int:
    """Return what a shell gives for a command that could not be started. Source: POSIX, XCU 2.8.2."""
    if isinstance(error, SetupError) and error.operation == "execve":
        return _NOT_FOUND if error.errno in (ENOENT, ENOTDIR) else _NOT_EXECUTABLE
    return FAILED
