"""Print a unit file of systemd that starts a container at boot, as ``run -d`` has started it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

from containerkit.cli.detached import say
from containerkit.detached.container import find
from containerkit.errors import StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["EPILOG", "define", "main", "quoted"]

EPILOG: Final = """\
  containerkit generate systemd web > /etc/systemd/system/web.service
  systemctl daemon-reload && systemctl enable --now web
"""

_UNIT: Final = """\
# Made by: containerkit generate systemd {name}
[Unit]
Description=Container {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=forking
PIDFile=/run/containerkit-{name}.pid
WorkingDirectory={directory}
ExecStartPre=-{program} rm --force {name}
ExecStart={program} run --pidfile /run/containerkit-{name}.pid {words}
ExecStop={program} stop {name}
ExecStopPost=-{program} rm --force {name}
KillMode=mixed
TimeoutStopSec={stop_s:g}
Delegate=yes

[Install]
WantedBy=multi-user.target
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("kind", choices=("systemd",), help="what is printed")
    parser.add_argument("name", metavar="CONTAINER", help="a detached container with a name, made by 'run -d'")


def main(options: argparse.Namespace) -> int:
    """Print it; returns 0.

    Raises:
        StateError: there is no such container, or no command line is known that makes it.
    """
    one = find(options.name)
    if not one.name:
        raise StateError(f"{one!r}: it has no name, by which the unit could find it: containerkit rename {one.id} NAME")
    words, directory = one.command_line
    if not words:
        raise StateError(f"{one!r}: it was made from Python: no command line is known that would make it again")
    program = shutil.which("containerkit") or f"{sys.executable} -m containerkit"
    shown = " ".join(map(quoted, _named(words, one.name)))
    stop_s = one.stop_timeout_s + 10
    say(_UNIT.format(name=one.name, directory=quoted(directory), program=program, words=shown, stop_s=stop_s).rstrip())
    return 0


def _named(words: Sequence[str], name: str) -> list[str]:
    """Return the command line with the present name, which comes after all others and so counts."""
    from containerkit.cli.commands import parser_of

    # What follows the first word that is not an option is the command's own: the name must stand before it.
    count = len(parser_of("run").parse_args(words).command)
    options, command = list(words[: len(words) - count]), list(words[len(words) - count :])
    return [*options, "--name", name, *command]


def quoted(word: str) -> str:
    """Return a word as a command line of systemd takes it. Source: systemd.service(5), "Command lines"."""
    text = word.replace("%", "%%").replace("$", "$$")
    if text and all(c.isalnum() or c in "-_./:=,@+%$" for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def write_pidfile(path: str, pid: int | None) -> None:
    """Write a pid as systemd reads it, whole or not at all."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{pid}\n")
    os.replace(temporary, path)
