"""Manual pages, made from the same parsers as the commands' help.

Source: man(7), groff_man_style(7).
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Final

from containerkit.cli.parsers import Command, commands

__all__ = ["pages", "write"]

_STATUS: Final = (
    "0 on success, 125 if containerkit itself failed, 1 if some of several things failed. Commands that run a command "
    "return its status: 126 if it can't be executed, 127 if it does not exist, 128+N if signal N ended it."
)


def write(directory: str) -> list[str]:
    """Write all pages to a directory, which is created if it is missing. Return the names of the files."""
    os.makedirs(directory, exist_ok=True)
    names = []
    for name, text in pages().items():
        names.append(f"{name}.1")
        with open(os.path.join(directory, f"{name}.1"), "w", encoding="utf-8") as file:
            file.write(text)
    return names


def pages() -> dict[str, str]:
    """Return the text of each page, by its name."""
    known = list(commands())
    found = {"containerkit": _overview([command for command in known if len(command.path) == 1])}
    seen: set[int] = set()
    for command in known:
        if id(command.parser) not in seen:  # an alias shares the page of its command
            seen.add(id(command.parser))
            found["-".join(("containerkit", *command.path))] = _page(command)
    return found


def _head(name: str, purpose: str) -> list[str]:
    from containerkit import __version__

    return [
        f'.TH "{_escaped(name).upper()}" 1 "{_date()}" "containerkit {__version__}" "containerkit"',
        ".SH NAME",
        f"{_escaped(name)} \\- {_escaped(purpose or 'a command of containerkit')}",
    ]


def _date() -> str:
    """Return today's date, or that of ``SOURCE_DATE_EPOCH``."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%d", time.gmtime(int(epoch) if epoch.isdecimal() else None))


def _overview(known: list[Command]) -> str:
    lines = _head("containerkit", "Linux containers, without a daemon")
    lines += [".SH SYNOPSIS", ".B containerkit", ".I COMMAND", ".RI [ OPTIONS ]", ".SH COMMANDS"]
    for command in known:
        lines += [".TP", f".BR containerkit\\-{_escaped(command.path[0])} (1)", _escaped(command.purpose)]
    lines += [".SH EXIT STATUS", _text(_STATUS)]
    return "\n".join(lines) + "\n"


def _page(command: Command) -> str:
    name = "-".join(("containerkit", *command.path))
    parser = command.parser
    lines = _head(name, command.purpose)
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    lines += [".SH SYNOPSIS", _text(usage)]
    if parser.description and parser.description.rstrip(".").lower() != command.purpose.lower():
        lines += [".SH DESCRIPTION", _text(parser.description)]
    if command.verbs:
        lines.append(".SH VERBS")
        for verb, purpose in command.verbs.items():
            lines += [".TP", f".B {_escaped(verb)}", _text(purpose or "the same")]
    if given := _arguments(parser):
        lines += [".SH ARGUMENTS", *given]
    options = list(command.options())
    if options:
        lines.append(".SH OPTIONS")
        for action in options:
            lines += [".TP", _option(action), _text(_help(action) or "see above")]
    if parser.epilog:
        lines += [".SH NOTES", *_epilog(parser.epilog)]
    lines += [".SH EXIT STATUS", _text(_STATUS), ".SH SEE ALSO", ".BR containerkit (1)"]
    return "\n".join(lines) + "\n"


def _arguments(parser: argparse.ArgumentParser) -> list[str]:
    lines: list[str] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        if action.option_strings or isinstance(action, argparse._SubParsersAction) or action.help == argparse.SUPPRESS:  # noqa: SLF001 - as above
            continue
        name = action.metavar or (
            f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper()
        )
        lines += [".TP", f".I {_escaped(str(name))}", _text(_help(action) or "see above")]
    return lines


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%%", "%")


def _option(action: argparse.Action) -> str:
    names = ", ".join(f"\\fB{_escaped(name)}\\fR" for name in action.option_strings)
    if action.nargs == 0:
        return names
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    shown = f"\\fI{_escaped(str(value))}\\fR"
    return f"{names} [{shown}]" if action.nargs == "?" else f"{names} {shown}"


def _epilog(text: str) -> list[str]:
    """Return paragraphs. Indented lines are commands, and are not changed."""
    lines: list[str] = []
    is_code = False
    for line in text.strip("\n").splitlines():
        if line.startswith("  ") != is_code and line.strip():
            is_code = not is_code
            lines.append(".RS 4\n.nf" if is_code else ".fi\n.RE")
        if line.strip():
            lines.append(_text(line.strip()))
        elif lines and not is_code:
            lines.append(".PP")
    if is_code:
        lines.append(".fi\n.RE")
    return [line for number, line in enumerate(lines) if line != ".PP" or _goes_on(lines, number)]


def _goes_on(lines: list[str], number: int) -> bool:
    return number + 1 < len(lines) and not lines[number + 1].startswith(".")


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("\u2026", "...")


def _text(text: str) -> str:
    """Return a text in which no line is a request of roff."""
    found = []
    for line in text.splitlines():
        escaped = _escaped(line.strip())
        if escaped:
            found.append(f"\\&{escaped}" if escaped[0] in ".'" else escaped)
    return "\n".join(found)
