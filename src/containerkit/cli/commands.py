"""Parse the options of a command, run it, and convert errors to messages and exit statuses."""

from __future__ import annotations

import sys
from errno import ENOENT, ENOTDIR

from containerkit.cli import FAILED, PLACES, plain
from containerkit.errors import ContainerError, SetupError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Final

__all__ = ["HOST_NAMES", "complain", "printable", "run", "verb_of"]

HOST_NAMES: Final = ("run", "create", "explain")
"""The commands whose option ``-h`` is the host name, as in Docker."""

_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


def run(name: str, words: Sequence[str]) -> int:
    """Run one command.

    Args:
        name: a name in :data:`containerkit.cli.COMMANDS`.
        words: its options and arguments.

    Returns:
        The exit status.
    """
    try:
        verb = verb_of(name)
        options = _options(name, verb, words)
        options.words = words
        return int(verb.main(options))
    except SystemExit as end:  # --help, or an error that was printed already
        return end.code if isinstance(end.code, int) else FAILED
    except (ContainerError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        complain(": ".join((*getattr(error, "__notes__", ()), str(error))))
        return _status(error)


def _options(name: str, verb: Any, words: Sequence[str]) -> Any:
    """Return the values of the options and arguments.

    Raises:
        SystemExit: argparse has printed the help or an error.
    """
    options = plain.read(verb.define, f"containerkit {name}", words, add_help=name not in HOST_NAMES)
    if options is not None:
        return options
    from containerkit.cli.parsing import parser_of

    return parser_of(name, verb).parse_args(["--help"] if list(words) == ["-h"] else words)


def verb_of(name: str) -> Any:
    """Return the object with ``define`` and ``main`` of a command: its module, or an attribute of a shared module."""
    path = f"containerkit.cli.{PLACES.get(name, name)}"
    __import__(path)  # importlib imports more
    module = sys.modules[path]
    return getattr(module, name) if name in PLACES else module


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
