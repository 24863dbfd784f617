"""The command line: ``containerkit COMMAND``.

Each command is a module with ``define(parser)``, which names its arguments, and ``main(options)``, which returns the
exit status. A command's module, and the library itself, are loaded when the command is given: ``run`` should cost
little more than the container.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMMANDS", "FAILED", "main"]

COMMANDS: Final = {
    "run": "run a command in a container of its own",
    "explain": "print the operations that 'run' would do",
    "probe": "tell what this host can do, and what would help",
    "seccomp": "record the system calls of a command, as a profile",
    "image": "fetch, send, build, convert and look at images",
    "template": "make a root from what the host has or a distribution offers",
    "login": "keep the name and password for a registry",
    "logout": "forget them",
    "ps": "list the containers that the OCI command has on record",
    "gc": "remove what killed owners have left behind",
}
"""The commands, each a module of this package, and what they do."""

FAILED: Final = 125
"""The exit status of containerkit's own failures; the command's own are passed on."""

_INTERRUPTED: Final = 130  # 128 + SIGINT
_BROKEN_PIPE: Final = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the words after ``containerkit`` (default: those that the interpreter was started with).

    Returns:
        The exit status: for ``run`` that of the command, as a shell gives it; 125 when containerkit itself failed.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    _fill_streams()
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. The interpreter would say so when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _BROKEN_PIPE


def _fill_streams() -> None:
    """Put the null device where a stream was closed: the next file that is opened would take its place."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("-h", "--help", "help"):
        return _help(words[1:])
    if name in ("-V", "--version", "version"):
        from containerkit import __version__

        return _say(f"containerkit {__version__}")
    if name not in COMMANDS:
        return _unknown(name)
    from containerkit.cli import commands

    return commands.run(name, words[1:])


def _help(words: list[str]) -> int:
    if words and words[0] in COMMANDS:
        return _dispatch([words[0], "--help"])
    lines = [f"  {name:9} {purpose}" for name, purpose in COMMANDS.items()]
    return _say(
        "usage: containerkit COMMAND ...\n\n"
        "Linux containers, without a daemon.\n\n" + "\n".join(lines) + "\n\n"
        "'containerkit COMMAND --help' tells the options of each."
    )


def _say(text: str) -> int:
    print(text, flush=True)  # noqa: T201 - a command line speaks
    return 0


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    near = get_close_matches(name, COMMANDS, 1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(COMMANDS)}"
    print(f"containerkit: no command {name!r}; {advice}", file=sys.stderr)  # noqa: T201 - a command line speaks
    return FAILED
