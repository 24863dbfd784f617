"""Print the completion of a shell, made from the same parsers as the commands' help."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli import LONG
from containerkit.cli.detached import say
from containerkit.cli.parsers import Command, commands, values_of

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
  source <(containerkit completion bash)
  containerkit completion zsh > "${fpath[1]}/_containerkit"
  containerkit completion fish > ~/.config/fish/completions/containerkit.fish
"""

_LISTS: Final = {
    "containers": "containerkit ps -a --format '{{.Names}} {{.ID}}'",
    "images": "containerkit images --format '{{.Repository}}:{{.Tag}}'",
    "volumes": "containerkit volume ls -q",
    "networks": "containerkit network ls -q",
}
"""The commands that print the names of a kind of object."""

_BASH: Final = """\
_containerkit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} at= offer= list= i=1 each
    COMPREPLY=()
    while [ $i -lt $COMP_CWORD ]; do
        each=${{COMP_WORDS[i]}}
        [ "$at" = container ] && [ "$each" != prune ] && [ "${{each#-}}" = "$each" ] && at=
        [ "$each" = -- ] && break
        case "${{at:+$at }}$each" in
            {paths}) at="${{at:+$at }}$each" ;;
        esac
        i=$((i+1))
    done
    case $at in
        ls|list) at=ps ;;
        remove) at=rm ;;
    esac
    case "$at $before" in
{values}
    esac
    if [ -z "$offer$list" ]; then
        case $at in
{cases}
        esac
        case $word in -*) list= ;; esac
    fi
    case $list in
{lists}
    esac
    case $word in
        -*|'') ;;
        *:*) offer=${{offer//:/\\\\:}} ;;
    esac
    COMPREPLY=($(compgen -W "$offer" -- "$word"))
    [ ${{#COMPREPLY[@]}} -eq 0 ] && compopt -o default 2>/dev/null
    return 0
}}
complete -F _containerkit containerkit"""

_FISH: Final = """\
function __containerkit_path
    set -l path
    for word in (commandline -opc)[2..]
        if test "$path" = container; and not string match -q -- '-*' $word; and test $word != prune
            set path
        end
        if contains -- (string join -- ' ' $path $word) {paths}
            set path (string join -- ' ' $path $word)
        end
    end
    switch "$path"
        case ls list
            echo ps
        case remove
            echo rm
        case '*'
            echo $path
    end
end
complete -c containerkit -f"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="of which")


def main(options: argparse.Namespace) -> int:
    """Print it. Return 0."""
    known = list(commands())
    say({"bash": _bash, "zsh": _zsh, "fish": _fish}[options.shell](known))
    return 0


def _path(command: Command) -> str:
    return " ".join(command.path)


def _all_paths(known: list[Command]) -> list[str]:
    """Return the paths of all commands, including the names that are only valid after ``container``."""
    return [*map(_path, known), *(name for name in ("ls", "list", "remove"))]


def _verbs_of(command: Command) -> list[str]:
    return [*command.verbs, *(LONG if command.path == ("container",) else ())]


def _bash(known: list[Command]) -> str:
    values, cases = [], []
    top = " ".join(command.path[0] for command in known if len(command.path) == 1)
    cases.append(f'            "") offer="{top} --help --version" ;;')
    for command in known:
        for action in command.options():
            found = values_of(action)
            if found:
                given = f'offer="{" ".join(found)}"' if isinstance(found, tuple) else f"list={found}"
                places = "|".join(f"'{_path(command)} {name}'" for name in action.option_strings)
                values.append(f"        {places}) {given} ;;")
        options = " ".join(name for action in command.options() for name in action.option_strings)
        words = " ".join([*_verbs_of(command), *command.choices, options])
        more = f" list={command.subject}" if command.subject else ""
        cases.append(f"            '{_path(command)}') offer=\"{words}\"{more} ;;")
    lists = [f'        {name}) offer="$offer $({program} 2>/dev/null)" ;;' for name, program in _LISTS.items()]
    paths = "|".join(f"'{path}'" for path in _all_paths(known))
    return _BASH.format(
        paths=paths, values="\n".join(values), cases="\n".join(cases), lists="\n".join(lists)
    )  # fmt: skip


def _zsh(known: list[Command]) -> str:
    # zsh runs the function of bash.
    loads = ("autoload -U +X compinit && compinit -u", "autoload -U +X bashcompinit && bashcompinit")
    return "\n".join(("#compdef containerkit", *loads, _bash(known)))


def _fish(known: list[Command]) -> str:
    lines = [_FISH.format(paths=" ".join(map(_fished, _all_paths(known))))]
    for command in known:
        if len(command.path) == 1:
            lines.append(_fish_line("", f"-a {command.path[0]}", command.purpose))
        path = _path(command)
        for verb, purpose in command.verbs.items():
            lines.append(_fish_line(path, f"-a {verb}", purpose))
        if command.path == ("container",):
            lines.append(_fish_line(path, f"-a {_fished(' '.join(LONG))}", ""))
        if command.choices:
            lines.append(_fish_line(path, f"-a {_fished(' '.join(command.choices))}", ""))
        if command.subject:
            listed = f"({_LISTS[command.subject]} 2>/dev/null | string split ' ')"
            lines.append(_fish_line(path, f"-a {_fished(listed)}", ""))
        for action in command.options():
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in action.option_strings
            )
            found = values_of(action)
            words = " ".join(found) if isinstance(found, tuple) else f"({_LISTS[found]} 2>/dev/null)"
            value = f" -x -a {_fished(words)}" if words else "" if action.nargs == 0 else " -r"
            lines.append(_fish_line(path, names + value, (action.help or "").replace("%%", "%")))
    return "\n".join(lines)


def _fish_line(path: str, what: str, purpose: str) -> str:
    told = f" -d {_fished(purpose)}" if purpose else ""
    where = _fished(f'test "$(__containerkit_path)" = "{path}"')
    return f"complete -c containerkit -n {where} {what}{told}"


def _fished(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
