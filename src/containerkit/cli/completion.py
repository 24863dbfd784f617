"""Print the completion of a shell, made from the same parsers as the commands' help."""

from __future__ import annotations

import argparse
from typing import Final

from containerkit.cli import COMMANDS
from containerkit.cli.commands import parser_of
from containerkit.cli.detached import say

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
  source <(containerkit completion bash)
  containerkit completion zsh > "${fpath[1]}/_containerkit"
  containerkit completion fish > ~/.config/fish/completions/containerkit.fish
"""

_TAKE_NAMES: Final = (
    *("start", "stop", "restart", "kill", "wait", "pause", "unpause", "rm", "rename", "update"),
    *("logs", "exec", "attach", "inspect", "top", "stats", "diff", "commit", "cp", "generate"),
)

_BASH: Final = """\
_containerkit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case $verb in
{cases}
    esac
    case $verb in
        {named})
            if [ "${{word#-}}" = "$word" ]; then
                words=$(containerkit ps -a --format '{{{{.Names}}}} {{{{.ID}}}}' 2>/dev/null)
            fi ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
    [ ${{#COMPREPLY[@]}} -eq 0 ] && compopt -o default
}}
complete -F _containerkit containerkit"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def main(options: argparse.Namespace) -> int:
    """Print it; returns 0."""
    known = {verb: _options(parser_of(verb)) for verb in COMMANDS}
    say({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](known))
    return 0


def _options(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Return the options of a parser that are shown, with what they do."""
    found: list[tuple[str, str]] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no other list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - as above
            found += [(name, "") for name in action.choices]
        elif action.help != argparse.SUPPRESS:
            found += [(name, (action.help or "").replace("%%", "%")) for name in action.option_strings]
    return found


def _bash(known: dict[str, list[tuple[str, str]]]) -> str:
    cases = "\n".join(
        f'        {verb}) words="{" ".join(name for name, _ in each)}" ;;' for verb, each in known.items()
    )
    return _BASH.format(verbs=" ".join(known), cases=cases, named="|".join(_TAKE_NAMES))


def _zsh(known: dict[str, list[tuple[str, str]]]) -> str:
    return f"#compdef containerkit\nautoload -U +X bashcompinit && bashcompinit\n{_bash(known)}"


def _fish(known: dict[str, list[tuple[str, str]]]) -> str:
    lines = ["complete -c containerkit -f"]
    for verb, purpose in COMMANDS.items():
        lines.append(f"complete -c containerkit -n __fish_use_subcommand -a {verb} -d {_fished(purpose)}")
    for verb, each in known.items():
        for name, purpose in each:
            kind = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" if name[0] == "-" else f"-a {name}"
            lines.append(
                f"complete -c containerkit -n '__fish_seen_subcommand_from {verb}' {kind} -d {_fished(purpose)}"
            )
    named = " ".join(_TAKE_NAMES)
    listed = "(containerkit ps -a --format '{{.Names}}' 2>/dev/null)"
    lines.append(f'complete -c containerkit -n "__fish_seen_subcommand_from {named}" -a "{listed}"')
    return "\n".join(lines)


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
