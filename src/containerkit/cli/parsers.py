"""All commands with their verbs and options, for the completion and the manual pages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.cli import COMMANDS
from containerkit.cli.parsing import parser_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Command", "commands", "values_of"]

_SUBJECTS: Final = {
    "CONTAINER": "containers",
    "IMAGE": "images",
    "VOLUME": "volumes",
    "[CONTAINER:]SOURCE": "containers",
}
_VALUES: Final = {"--image": "images", "--network": "networks", "--net": "networks", "--volumes-from": "containers"}


@attrs.frozen(kw_only=True)
class Command:
    """A command, or a verb of one.

    Attributes:
        path: its words, such as ``("image", "pull")``.
        parser: its parser.
        purpose: what it does, in one line.
    """

    path: tuple[str, ...]
    parser: argparse.ArgumentParser
    purpose: str

    @property
    def verbs(self) -> dict[str, str]:
        """Its verbs and their aliases, and what they do."""
        return {name: purpose for name, _, purpose in _verbs(self.parser)}

    def options(self) -> Iterator[argparse.Action]:
        """Yield its visible options."""
        for action in self.parser._actions:  # noqa: SLF001 - argparse has no other list of them
            if action.option_strings and action.help != argparse.SUPPRESS:
                yield action

    @property
    def subject(self) -> str:
        """The kind of its arguments: ``containers``, ``images`` or ``volumes``; empty for anything else."""
        for action in self.parser._actions:  # noqa: SLF001 - as above
            if not action.option_strings and str(action.metavar) in _SUBJECTS:
                return _SUBJECTS[str(action.metavar)]
        return ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices of its first argument, or nothing."""
        for action in self.parser._actions:  # noqa: SLF001 - as above
            is_verb = isinstance(action, argparse._SubParsersAction)  # noqa: SLF001 - as above
            if not action.option_strings and action.choices and not is_verb:
                return tuple(map(str, action.choices))
        return ()


def values_of(action: argparse.Action) -> tuple[str, ...] | str:
    """Return the possible values of an option: words, or ``images``, ``networks``, ``containers``; else nothing."""
    if action.choices:
        return tuple(map(str, action.choices))
    metavar = str(action.metavar or "")
    if metavar.count("|") and metavar.replace("|", "").replace("-", "").isalpha() and metavar.islower():
        return tuple(metavar.split("|"))
    return next((_VALUES[name] for name in action.option_strings if name in _VALUES), ())


def commands() -> Iterator[Command]:
    """Yield all commands, each before its verbs."""
    for name, purpose in COMMANDS.items():
        yield from _with_verbs((name,), parser_of(name), purpose)


def _with_verbs(path: tuple[str, ...], parser: argparse.ArgumentParser, purpose: str) -> Iterator[Command]:
    yield Command(path=path, parser=parser, purpose=purpose)
    for name, inner, what in _verbs(parser):
        yield from _with_verbs((*path, name), inner, what)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser, str]]:
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            inner: dict[str, Any] = dict(action.choices)
            helps = {id(inner[each.dest]): each.help or "" for each in action._choices_actions}  # noqa: SLF001 - as above
            for name, each in inner.items():
                yield name, each, helps.get(id(each), "")
