"""Print a unit file of systemd that starts a container or a project at boot, or write the manual pages."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING, Final

from containerkit.cli.detached import say
from containerkit.detached.container import find
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

__all__ = ["EPILOG", "define", "main", "quoted"]

EPILOG: Final = """\
  containerkit generate systemd web > /etc/systemd/system/web.service
  systemctl daemon-reload && systemctl enable --now web
  containerkit generate systemd --file compose.yaml > ~/.config/systemd/user/app.service
  containerkit generate man /usr/local/share/man/man1
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


_PROJECT: Final = """\
# Made by: containerkit generate systemd
[Unit]
Description=Project {name}
Wants=network-online.target
After=network-online.target

[Service]
Type=exec
WorkingDirectory={folder}
ExecStart={program} compose {words} up
ExecStop=-{program} compose --project-name {name} down
Restart=on-failure
TimeoutStopSec=90
KillMode=mixed
Delegate=yes

[Install]
WantedBy={target}
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their options."""
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    unit = verbs.add_parser("systemd", help="print a unit file for a container, or for a project")
    unit.add_argument("name", metavar="CONTAINER", nargs="?", help="a detached container with a name, made by 'run -d'")
    unit.add_argument(
        "-f", "--file", metavar="FILE", action="append", default=[], help="for a project: its compose file; repeatable"
    )
    unit.add_argument("-p", "--project-name", metavar="NAME", help="for a project: its name (default: as for compose)")
    manual = verbs.add_parser("man", help="write the manual pages")
    manual.add_argument("directory", metavar="DIR", help="the directory for them; created if it is missing")


def main(options: argparse.Namespace) -> int:
    """Print or write it. Return 0.

    Raises:
        StateError: no such container, or the command line that created it is not known.
        SpecError: neither a container nor a project is named, or the project's files are invalid.
    """
    if options.verb == "man":
        from containerkit.cli.manual import write

        for name in write(options.directory):
            say(name)
        return 0
    if bool(options.name) == bool(options.file):
        raise SpecError("generate systemd: name a container, or the files of a project with --file")
    return _project(options) if options.file else _container(options)


def _program() -> str:
    found = shutil.which("containerkit")
    return quoted(found) if found else f"{quoted(sys.executable)} -m containerkit"


def _project(options: argparse.Namespace) -> int:
    from containerkit.project import Project

    files = [os.path.abspath(path) for path in options.file]
    project = Project.load(*files, name=options.project_name)
    words = [*(word for path in files for word in ("--file", path)), "--project-name", project.name]
    target = "multi-user.target" if os.geteuid() == 0 else "default.target"
    shown = " ".join(map(quoted, words))
    folder = quoted(os.path.dirname(files[0]))
    say(_PROJECT.format(name=project.name, folder=folder, program=_program(), words=shown, target=target).rstrip())
    return 0


def _container(options: argparse.Namespace) -> int:
    one = find(options.name)
    if not one.name:
        raise StateError(f"{one!r}: it has no name for the unit to use; run containerkit rename {one.id} NAME")
    words, directory = one.command_line
    if not words:
        raise StateError(f"{one!r}: it was created from Python, so no command line is known that would create it again")
    program = _program()
    shown = " ".join(map(quoted, _named(words, one.name)))
    stop_s = one.stop_timeout_s + 10
    say(_UNIT.format(name=one.name, directory=quoted(directory), program=program, words=shown, stop_s=stop_s).rstrip())
    return 0


def _named(words: Sequence[str], name: str) -> list[str]:
    """Return the command line with the present name, in the last position, which takes precedence."""
    from containerkit.cli.parsing import parser_of

    # Everything after the first argument that is not an option belongs to the command, so the name goes before it.
    count = len(parser_of("run").parse_args(words).command)
    options, command = list(words[: len(words) - count]), list(words[len(words) - count :])
    return [*options, "--name", name, *command]


def quoted(word: str) -> str:
    """Return an argument quoted for a command line of systemd. Source: systemd.service(5), "Command lines"."""
    text = word.replace("%", "%%").replace("$", "$$")
    if text and all(c.isalnum() or c in "-_./:=,@+%$" for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def write_pidfile(path: str, pid: int | None) -> None:
    """Write a pid file for systemd atomically."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="ascii") as file:
        file.write(f"{pid}\n")
    os.replace(temporary, path)
