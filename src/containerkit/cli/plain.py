"""Read plain command lines without argparse: importing it and making a parser takes as long as starting a container.

:class:`Plain` takes the definitions of a command as a parser of argparse does. It reads only what has one meaning:
options that are written out, each with its value, and arguments in one piece. For anything else, such as help, a
mistake, several flags in one word, or a definition that is not known here, argparse reads the same words with the same
definitions. So a command line has one meaning, and argparse prints all messages.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Final, NoReturn

__all__ = ["REMAINDER", "SUPPRESS", "Options", "read"]

REMAINDER: Final = "..."
"""``argparse.REMAINDER``: all further words."""

SUPPRESS: Final = "==SUPPRESS=="
"""``argparse.SUPPRESS``: an option that the help does not show."""

_FLAGS: Final = {"store_true": (True, False), "store_false": (False, True)}  # the value with it and without it


class Options:
    """The values of a command line, as attributes."""

    words: Sequence[str]


def read(define: Callable[[Any], object], prog: str, words: Sequence[str], *, add_help: bool) -> Options | None:
    """Return the values of a command line; None if argparse has to read it.

    Args:
        define: adds the options and arguments to a parser.
        prog: the command.
        words: what follows it.
        add_help: whether ``-h`` is the help.
    """
    try:
        plain = Plain(prog, add_help=add_help)
        define(plain)
        return plain.read(words)
    except NotPlainError:
        return None


class NotPlainError(Exception):
    """Only argparse knows the meaning."""


class _Option:
    """An option or an argument.

    Attributes:
        dest: the attribute of its value.
        action: what it does, in argparse's words.
        count: argparse's ``nargs``.
        const, default, choices: as for argparse.
        group: the group of options of which only one may be given, or the option itself.
    """

    __slots__ = ("action", "choices", "const", "count", "default", "dest", "group")

    def __init__(self, dest: str, group: object, given: dict[str, Any]) -> None:
        self.dest = dest
        self.group = group or self
        self.action = given.get("action", "store")
        self.count = given.get("nargs")
        self.choices = given.get("choices")
        self.const, self.default = given.get("const"), given.get("default")
        if self.action in _FLAGS:
            self.const, absent = _FLAGS[self.action]
            self.default = given.get("default", absent)

    def take(self, name: str, value: str | None, words: Iterator[str], values: dict[str, Any]) -> None:
        """Store its value.

        Args:
            name: its name on the command line.
            value: what follows ``=``, or None.
            words: the words after it.
            values: the values so far.

        Raises:
            NotPlainError: it has no value, has one that is not allowed, or does something that only argparse knows.
        """
        if self.action in _FLAGS or self.action == "store_const":
            if value is not None:
                raise NotPlainError
            values[self.dest] = self.const
            return
        if self.action not in ("store", "append", "append_named") or self.count is not None:
            raise NotPlainError
        if value is None:
            value = next(words, "-")
            if value.startswith("-"):  # another option, or a negative number
                raise NotPlainError
        if value == "--":  # argparse drops it
            raise NotPlainError
        if self.choices is not None and value not in self.choices:
            raise NotPlainError
        if self.action == "store":
            values[self.dest] = value
        else:
            more: Any = value if self.action == "append" else (name, value)
            values[self.dest] = [*(values[self.dest] or ()), more]


class Plain:
    """The definitions of a command, or of a group of its options. Its methods are those of a parser of argparse."""

    usage: str | None = None

    def __init__(
        self, prog: str = "", *, add_help: bool = True, of: Plain | None = None, exclusive: bool = False
    ) -> None:
        self.prog = prog
        self._group = object() if exclusive else None
        self._arguments: list[_Option] = []
        self._option_string_actions: dict[str, _Option | None] = {"--help": None}
        if add_help:
            self._option_string_actions["-h"] = None
        if of is not None:
            self._arguments, self._option_string_actions = of._arguments, of._option_string_actions  # noqa: SLF001 - it is a part

    def add_argument_group(self, *_: str) -> Plain:
        """Return a part of the help, which has no meaning here."""
        return Plain(of=self)

    def add_mutually_exclusive_group(self, *, required: bool = False) -> Plain:
        """Return a group of options of which only one may be given."""
        if required:
            raise NotPlainError
        return Plain(of=self, exclusive=True)

    def add_subparsers(self, **_: Any) -> NoReturn:
        """Leave a command with verbs to argparse."""
        raise NotPlainError

    def add_argument(self, *names: str, **given: Any) -> None:
        """Define an option or an argument, as for argparse."""
        if "type" in given or "required" in given:
            raise NotPlainError
        if not names[0].startswith("-"):
            self._arguments.append(_Option(names[0], None, given))
            return
        long = next((name for name in names if name.startswith("--")), names[0])
        option = _Option(given.get("dest") or long.lstrip("-").replace("-", "_"), self._group, given)
        for name in names:
            self._option_string_actions[name] = option

    def read(self, words: Sequence[str]) -> Options:
        """Return the values of a command line.

        Raises:
            NotPlainError: argparse has to read it.
        """
        found = Options()
        values = found.__dict__
        for option in (*self._option_string_actions.values(), *self._arguments):
            if option is not None:
                values.setdefault(option.dest, option.default)
        self._store(self._read_options(words, values), values)
        return found

    def _read_options(self, words: Sequence[str], values: dict[str, Any]) -> list[str]:
        """Store the options, and return the arguments."""
        has_rest = bool(self._arguments) and self._arguments[-1].count == REMAINDER
        chosen: dict[object, _Option] = {}
        arguments: list[str] = []
        ended = False  # argparse takes no arguments in two pieces
        left = iter(words)
        for word in left:
            if word in ("-", "--") or not word.startswith("-"):
                if has_rest:
                    return [word, *left]
                if word == "--" or ended:
                    raise NotPlainError
                arguments.append(word)
                continue
            ended = bool(arguments)
            name, mark, value = word.partition("=")
            option = self._option_string_actions.get(name)
            if option is None or (mark and not name.startswith("--")):
                raise NotPlainError
            if chosen.setdefault(option.group, option) is not option:
                raise NotPlainError
            option.take(name, value if mark else None, left, values)
        return arguments

    def _store(self, words: list[str], values: dict[str, Any]) -> None:
        """Store the arguments."""
        for option in self._arguments:
            if option.choices is not None or option.action != "store":
                raise NotPlainError
            if option.count == REMAINDER:
                if words[:1] == ["--"] and len(self._arguments) > 1:
                    raise NotPlainError
                values[option.dest], words = words, []
            elif option.count is None:
                if not words or words[0] == "--":
                    raise NotPlainError
                values[option.dest], *words = words
            elif len(self._arguments) > 1 or option.count not in ("*", "+") or (option.count == "+" and not words):
                raise NotPlainError
            elif words or option.default is None:
                values[option.dest], words = words, []
        if words:
            raise NotPlainError
