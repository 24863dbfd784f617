"""Run a command in a detached container, and exit with its status."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack

from containerkit.cli.attend import Attendant
from containerkit.cli.detached import Verb
from containerkit.cli.plain import REMAINDER, SUPPRESS
from containerkit.cli.signals import FORWARDED, Signals
from containerkit.container.lifecycle import Container
from containerkit.detached.view import View
from containerkit.errors import SpecError
from containerkit.spec.command import User, default_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

__all__ = ["exec"]

_ALSO_TAKEN: Final = frozenset({signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP})


def _define(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} [OPTIONS] CONTAINER COMMAND [ARGUMENT ...]"
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="pass on standard input (default: it is empty)"
    )
    parser.add_argument("-t", "--tty", action="store_true", help="allocate a terminal")
    parser.add_argument("-d", "--detach", action="store_true", help="return at once, without streams")
    parser.add_argument(
        "-e", "--env", metavar="NAME[=VALUE]", action="append", default=[], help="set a variable; repeatable"
    )
    parser.add_argument(
        "--env-file", metavar="FILE", action="append", default=[], help="a file of variables, one per line"
    )
    parser.add_argument("-w", "--workdir", "--cwd", metavar="DIR", dest="cwd", help="the working directory")
    parser.add_argument("-u", "--user", metavar="UID[:GID]", help="ids, or names that exist in the container")
    parser.add_argument("name", metavar="CONTAINER", help="its name or id; also one of the OCI command")
    parser.add_argument("command", nargs=REMAINDER, metavar="COMMAND", help=SUPPRESS)


def _main(options: argparse.Namespace) -> int:
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        raise SpecError(f"a command is required, such as: containerkit exec {options.name} sh")
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED | _ALSO_TAKEN if options.tty else FORWARDED))
        container = stack.enter_context(Container.attach(options.name))
        if isinstance(container, View):
            container.note("exec_start", command=" ".join(words))
        fields = _fields(options, container)
        if options.detach:
            null = stack.enter_context(open(os.devnull, "r+b"))
            container.popen(words, stdin=null, stdout=null, stderr=null, **fields)
            return 0
        if options.tty:
            from containerkit.cli import terminal
            from containerkit.cli.relay import Relay

            process = container.popen(words, pty=terminal.size(), **fields)
            raw = stack.enter_context(terminal.RawMode(0))
            attendant: Attendant = Relay(process, signals, raw, None)
        else:
            stdin: Any = None if options.interactive else open(os.devnull, "rb")  # noqa: SIM115 - closed with the stack
            if stdin is not None:
                stack.callback(stdin.close)
            process = container.popen(words, stdin=stdin, **fields)
            attendant = Attendant(process, signals, None)
        attendant.stay()
        status = process.wait()
    return status if status >= 0 else 128 - status


def _fields(options: argparse.Namespace, container: Container) -> dict[str, Any]:
    fields: dict[str, Any] = {name: value for name in ("cwd", "user") if (value := getattr(options, name)) is not None}
    for path in reversed(options.env_file):
        from containerkit.cli import keeping

        options.env = [*keeping.lines("--env-file", path), *options.env]
    if options.env or options.tty:
        from containerkit.cli import values

        of_image: dict[str, Any] = dict(container.rootfs.defaults)
        base = {**default_environment(User()), **dict(of_image.get("env", ()))}
        if options.tty and "TERM" in os.environ:
            base["TERM"] = os.environ["TERM"]
        fields["env"] = values.environment(options.env, base)
    return fields


exec = Verb(_define, _main)  # noqa: A001 - the name of the command
